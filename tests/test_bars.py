"""Bars of any length: hours are kept, days are made of hours, and every bar has its place in a calendar."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from hourly import crypto, stock
from serving_here import serving

from forecast import load_series
from forecast.__main__ import main
from forecast.cli.command import run
from forecast.config import DataConfig
from forecast.errors import DataError
from forecast.model.checkpoint import load_checkpoint
from forecast.prices.source import series_from_config

SERIES = {"BTC-USD": crypto(), "AAPL": stock()}


def written(frame, path, **changes):
    frame.assign(**changes).to_csv(path, index=False)
    return str(path)


def loaded(path, symbol, interval="auto", say=None, **options):
    said = [] if say is None else say
    return series_from_config(
        DataConfig(symbol=symbol, source=path, interval=interval, **options), notify=said.append
    )


@pytest.mark.parametrize("symbol", SERIES)
@pytest.mark.parametrize("zone", ["offsets", "none", "UTC"])
def test_hours_are_read_as_they_are_and_no_row_is_lost(tmp_path, symbol, zone):
    frame = SERIES[symbol]
    stamps = frame["Datetime"].dt.tz_localize(None) if zone == "none" else frame["Datetime"]
    stamps = stamps.dt.tz_convert("UTC") if zone == "UTC" else stamps
    series = loaded(written(frame, tmp_path / "hours.csv", Datetime=stamps), symbol)
    assert series.timeline.interval == "1h"
    assert series.values.tolist() == frame["Close"].tolist()
    utc = frame["Datetime"].dt.tz_convert("UTC").dt.tz_localize(None)
    assert np.array_equal(series.dates, utc.to_numpy().astype("datetime64[s]"))
    assert [rule for rule in series.integrity.rules if rule.found] == []


def test_days_made_of_hours_are_each_sessions_last_bar_and_it_is_said(tmp_path):
    frame, said = SERIES["AAPL"], []
    series = loaded(written(frame, tmp_path / "hours.csv"), "AAPL", None, said)
    closes = frame.groupby(frame["Datetime"].dt.date)["Close"].last()
    assert series.values.tolist() == closes.tolist()
    assert [str(day) for day in series.dates] == [str(day) for day in closes.index]
    assert any("has bars of 1h; the last one of each session is its day's price" in line for line in said)


def test_covariates_of_days_made_of_hours_are_those_of_the_whole_day(tmp_path):
    frame = SERIES["BTC-USD"].assign(Open=lambda f: f["Close"] - 1, High=lambda f: f["Close"] + 5, Volume=2)
    path = written(frame, tmp_path / "hours.csv")
    series = loaded(path, "BTC-USD", None, input_columns=("Open", "High", "Volume"))
    days = frame.groupby(frame["Datetime"].dt.date)
    assert series.matrix[:, 1].tolist() == days["Open"].first().tolist()
    assert series.matrix[:, 2].tolist() == days["High"].max().tolist()
    assert series.matrix[:, 3].tolist() == [48] * len(series)


@pytest.mark.parametrize(
    ("make", "interval", "message"),
    [
        (lambda frame: frame, "5m", "has bars of 1h, which are not bars of 5m; use `interval=1h`"),
        (lambda frame: frame[::24], "1h", "has bars of 1d, which are not bars of 1h; use `interval=1d`"),
        (
            lambda frame: frame[:12],
            None,
            "has bars of 1h, but no complete session of .*`interval=auto` to use",
        ),
        (lambda frame: frame[:: 24 * 7], "1d", "has bars of 1wk, which are not bars of 1d"),
        (
            lambda frame: frame.assign(Datetime=frame["Datetime"].dt.strftime("%Y-%m-%d")),
            "1d",
            "several rows with different prices for 100 of its dates",
        ),
    ],
    ids=["shorter", "days as hours", "half a day", "weeks as days", "hours without times"],
)
def test_rows_that_are_not_bars_of_the_length_asked_for_are_refused(tmp_path, make, interval, message):
    path = written(make(SERIES["BTC-USD"]), tmp_path / "prices.csv")
    with pytest.raises(DataError, match=message):
        loaded(path, "BTC-USD", interval)


@pytest.mark.parametrize("ahead", [0, 1, 5, 12, 66])
@pytest.mark.parametrize("step", ["B", "h"])
def test_rows_of_the_future_are_no_prices_however_many(tmp_path, step, ahead):
    now = pd.Timestamp.now("UTC").tz_localize(None).normalize()
    dates = pd.date_range(end=now, periods=300, freq=step)
    dates = dates.append(pd.date_range(dates[-1], periods=ahead + 1, freq=step)[1:])
    written_as = dates.strftime("%Y-%m-%d") if step == "B" else dates.tz_localize("UTC").astype(str)
    frame = pd.DataFrame({"Date": written_as, "Close": np.arange(1, len(dates) + 1)})
    path = tmp_path / "prices.csv"
    frame.to_csv(path, index=False)
    series = loaded(str(path), "X", "1d" if step == "B" else "1h")
    over = dates[
        dates + pd.Timedelta(1, "D" if step == "B" else "h") <= pd.Timestamp.now("UTC").tz_localize(None)
    ]
    assert len(over) - 1 <= len(series) <= len(over) + 1
    assert series.dates[-1] <= np.datetime64("now")


@pytest.mark.parametrize(("step", "interval"), [("W-FRI", "1wk"), ("MS", "1mo")])
def test_longer_bars_are_used_as_they_are_and_it_is_said(tmp_path, step, interval):
    dates, said = pd.date_range("2010-01-01", periods=60, freq=step), []
    path = written(pd.DataFrame({"Date": dates, "Close": np.arange(1, 61)}), tmp_path / "prices.csv")
    series = loaded(path, "X", None, said)
    assert (series.timeline.interval, len(series)) == (interval, 60)
    assert any(f"has bars of {interval}; they are used as they are" in line for line in said)
    following = series.timeline.next_dates(series.dates, 1)
    assert following[0] == pd.date_range(dates[-1], periods=2, freq=step)[1].to_datetime64().astype(
        "datetime64[D]"
    )


def test_a_bar_that_had_not_ended_is_dropped_by_the_clock_of_its_exchange(tmp_path):
    now = pd.Timestamp.now(tz="UTC").floor("h")
    stamps = pd.date_range(end=now, periods=50, freq="h")
    path = written(pd.DataFrame({"Datetime": stamps, "Close": 1.0 + np.arange(50)}), tmp_path / "hours.csv")
    series = loaded(path, "BTC-USD")
    assert len(series) == 49
    assert series.dates[-1] == stamps[-2].tz_localize(None).to_datetime64().astype("datetime64[s]")


def test_the_holes_of_a_series_are_its_calendars_sessions_without_a_row(tmp_path):
    days = SERIES["AAPL"].groupby(SERIES["AAPL"]["Datetime"].dt.date)["Close"].last()
    path = written(pd.DataFrame({"Date": days.index, "Close": days.to_numpy()}), tmp_path / "days.csv")
    assert load_series("AAPL", source=path).integrity.lines() == [f"{len(days)} rows read, nothing to repair"]
    full = pd.read_csv(path)
    full.drop([10, 11]).to_csv(path, index=False)
    (line,) = loaded(path, "AAPL", None, calendar="XNYS").integrity.lines()
    assert line.startswith(
        "holes: 1, kept, never filled in (2 sessions missing, the longest between 2023-10-13"
    )


@pytest.mark.parametrize("symbol", SERIES)
def test_an_hourly_model_is_trained_backtested_served_and_drawn_with_every_step_dated(
    tmp_path, symbol, capsys
):
    torch.set_num_threads(1)
    path, model = written(SERIES[symbol], tmp_path / "hours.csv"), tmp_path / "model.pt"
    data = [
        "--source",
        path,
        "--symbol",
        symbol,
        "--interval",
        "1h",
        "--hidden-size",
        "8",
        "--num-layers",
        "1",
    ]
    options = [*data, "--sequence-length", "20", "--max-epochs", "1"]
    assert run(main, ["train", *options, "--checkpoint", str(model), "--quiet"]) == 0
    backtest = [
        "backtest",
        *options,
        "--folds",
        "2",
        "--output-dir",
        str(tmp_path / "b"),
        "--plot",
        "--quiet",
    ]
    assert run(main, backtest) == 0
    rows = pd.read_csv(tmp_path / "b" / "backtest.csv").query("seed == 1")
    stamps = pd.to_datetime(rows["date"], utc=True)
    known = SERIES[symbol]["Datetime"].dt.tz_convert("UTC")
    assert stamps.isin(known).all()
    assert np.array_equal(rows["actual"].round(2), SERIES[symbol]["Close"].to_numpy()[known.isin(stamps)])
    capsys.readouterr()
    assert run(main, ["infer", "--checkpoint", str(model), "--horizon", "3", "--json"]) == 0
    inferred = json.loads(capsys.readouterr().out)
    with serving(model, engine="torch") as client:
        body = {"values": inferred["values"], "last_date": inferred["last_date"], "horizon": 3}
        answer = client.post("/predict", json=body).json()
        piped = client.post("/predict", json=inferred).json()
    assert piped["forecast_dates"] == inferred["forecast_dates"]
    assert answer["predictions"] == pytest.approx(inferred["predictions"])
    assert answer["forecast_closes"] == inferred["forecast_closes"]
    first = {"BTC-USD": "2024-04-10T00:00:00+00:00", "AAPL": "2025-01-02T09:30:00-05:00"}
    assert answer["forecast_dates"][0] == inferred["forecast_dates"][0] == first[symbol]
    assert load_checkpoint(model).provenance["rows"] == len(SERIES[symbol])
