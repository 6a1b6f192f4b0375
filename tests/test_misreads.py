"""Files and windows that could be misread without a word: each is read right, or refused with the remedy."""

from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from forecast import load_series
from forecast.config import FileConfig
from forecast.errors import ForecastError, UsageError
from forecast.prices.calendars import BarGrid, get
from forecast.prices.values import read_values

FIRST, LAST = np.datetime64("2022-01-03"), np.datetime64("2022-06-30")


def loaded(tmp_path, content, symbol="AAPL", **reading):
    path = tmp_path / "prices.csv"
    if isinstance(content, pd.DataFrame):
        content.to_csv(path, index=False)
    else:
        path.write_text(content)
    return load_series(symbol, source=str(path), notify=None, **reading)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Date,Close\nJan-02,1.5\nJan-03,2.5\nJan-04,3.5\n", "where a date should be"),
        ("Date,Close\n0204-01-04,1.5\n2024-01-05,2.5\n", "where a date should be"),
        ("Date;Close\n2024-01-02;99 100\n2024-01-03;100 101\n", "one number or two"),
        ("Date,Close\n2024-01-02,1.5\n2024-01-03,2.5\nMSFT\nDate,Close\n2024-01-04,100\n", "several tables"),
        ("Date,Close,Close\n2024-01-02,1.5,2.5\n", "2 columns called 'Close'"),
        (
            "Date,Close,foo\n2024-01-02,1.5,GOOG\n2024-01-03,2.5,GOOG\n2024-01-04,9.5,MSFT\n2024-01-05,9.4,MSFT\n",
            "add `symbol_column=foo`",
        ),
        (
            "Date,Close\n2024-01-02,1.5\n2024-01-02,900\n2024-01-03,1.6\n",
            "several rows with different prices",
        ),
        (
            "Date,Close\n2024-01-02 EST,1905.12\n2024-01-03 EST,1906.11\n",
            "no dates in a known form",
        ),
        ("Date,Close\n2024-13-45,1.5\n", "where a date should be"),
    ],
)
def test_a_table_with_two_readings_is_refused(tmp_path, content, message):
    with pytest.raises(ForecastError, match=message):
        loaded(tmp_path, content)


def test_quarters_are_not_called_days(tmp_path):
    dates = pd.date_range("2015-03-31", periods=20, freq="QE")
    with pytest.raises(ForecastError, match=r"a row every 9[12] days"):
        loaded(tmp_path, pd.DataFrame({"Date": dates, "Close": np.arange(1, 21)}))


def test_an_empty_cell_of_a_merged_header_belongs_to_the_symbol_before_it(tmp_path):
    header = ",AAPL,,MSFT,\nDate,Open,Close,Open,Close\n"
    assert loaded(tmp_path, header + "2024-01-02,1.5,2.5,3.5,9.5\n").values.tolist() == [2.5]
    assert loaded(tmp_path, header + "2024-01-02,1.5,2.5,3.5,9.5\n", "MSFT").values.tolist() == [9.5]


@pytest.mark.parametrize(("symbol", "name"), [("SAP.DE", "XETR"), ("7203.T", "XTKS"), ("TOYOTA", "XTKS")])
def test_days_that_are_written_as_midnights_in_utc_are_the_exchanges(tmp_path, symbol, name):
    calendar = get(name)
    sessions = calendar.sessions(FIRST, LAST)
    midnights = pd.DatetimeIndex(sessions).tz_localize(calendar.zone).tz_convert("UTC")
    frame = pd.DataFrame({"Date": midnights, "Close": np.arange(1.0, len(sessions) + 1)})
    series = loaded(tmp_path, frame, symbol)
    assert np.array_equal(series.dates, sessions)
    assert series.timeline.calendar_name == name


def hours(name, first=FIRST, last=LAST):
    return get(name).bars(first, last, BarGrid(3600))


@pytest.mark.parametrize("name", ["XNYS", "XTKS", "CMES"])
def test_days_made_of_hours_are_the_exchanges_sessions(tmp_path, name):
    stamps = pd.DatetimeIndex(hours(name)).tz_localize("UTC")
    frame = pd.DataFrame({"Datetime": stamps, "Close": np.arange(1.0, len(stamps) + 1)})
    series = loaded(tmp_path, frame, "X", calendar=name)
    assert np.array_equal(series.dates, get(name).sessions(FIRST, LAST))
    last = [np.searchsorted(hours(name), hours(name, day, day)[-1]) + 1 for day in series.dates]
    assert series.values.tolist() == last


def test_rows_after_the_close_and_an_unfinished_session_make_no_days_price(tmp_path):
    stamps = pd.date_range("2022-03-01 04:00", "2022-03-31 19:30", freq="30min", tz="America/New_York")
    stamps = stamps[(stamps.day_of_week < 5) & (stamps.hour >= 4) & (stamps.hour < 20)]
    frame = pd.DataFrame({"Datetime": stamps, "Close": np.arange(1.0, len(stamps) + 1)})
    unfinished = frame[: -(8 + 2)]
    series = loaded(tmp_path, unfinished, calendar="XNYS")
    at_close = (stamps.hour == 15) & (stamps.minute == 30)
    assert series.values.tolist() == frame["Close"][at_close].tolist()[:-1]


def test_hours_without_a_zone_that_fit_no_exchange_are_refused_until_it_is_named(tmp_path):
    stamps = pd.DatetimeIndex(hours("XTKS")).tz_localize("UTC").tz_convert("Asia/Tokyo").tz_localize(None)
    frame = pd.DataFrame({"Datetime": stamps, "Close": np.arange(1.0, len(stamps) + 1)}).drop(range(0, 24))
    weekdays = frame[frame["Datetime"].dt.day_of_week != 2]
    with pytest.raises(ForecastError, match="name the exchange as `calendar`"):
        loaded(tmp_path, weekdays, "TOYOTA", interval="1h")
    berlin = weekdays.assign(Datetime=weekdays["Datetime"] - pd.Timedelta(hours=7))
    for interval in ("1h", "1d"):
        with pytest.raises(ForecastError, match="neither on its clock nor in UTC"):
            loaded(tmp_path, berlin, "TOYOTA", interval=interval, calendar="XNYS")
    named = loaded(tmp_path, weekdays, "TOYOTA", interval="1h", calendar="XTKS")
    assert named.timeline.text(named.dates[:1])[0].endswith("+09:00")


@pytest.mark.parametrize("told", ["mixed", "%d", "%d/%b"])
def test_a_form_of_dates_that_leaves_parts_to_guesses_is_refused(tmp_path, told):
    with pytest.raises(UsageError, match="no year or no month"):
        loaded(tmp_path, "Date,Close\n13/01/2024,1.5\n02/03/2024,2.5\n", date_format=told)


@pytest.mark.parametrize(
    "values",
    [
        pa.array(["1.5", "2.5"]).dictionary_encode(),
        pa.array([1.5, 2.5], pa.float32()),
        pa.array([Decimal("1.5"), Decimal("2.5")]),
    ],
)
def test_columns_of_any_parquet_type_are_read(tmp_path, values):
    path = tmp_path / "prices.parquet"
    dates = pa.array(["2024-01-02", "2024-01-03"]).dictionary_encode()
    pq.write_table(pa.table({"Date": dates, "Close": values, "X": pa.array([float("inf"), 1])}), path)
    assert load_series("X", source=str(path)).values.tolist() == [1.5, 2.5]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("101.5\n102\n101.8", [101.5, 102, 101.8]),
        ("Close\n101.5\n102", [101.5, 102]),
        ("8,710.15\n8,720.10", [8710.15, 8720.1]),
        ("101.5, 102, 101.8", [101.5, 102, 101.8]),
        ("101.5,102.5,101.8", [101.5, 102.5, 101.8]),
        ("101 102 103", [101, 102, 103]),
        ("8710,15;8711,20", [8710.15, 8711.2]),
        ("\N{MINUS SIGN}5.5\n6.5", [-5.5, 6.5]),
    ],
)
def test_a_window_of_numbers_is_read_as_a_person_reads_it(text, expected):
    assert read_values(text.encode(), "window.txt", FileConfig.model_validate({})) == expected


@pytest.mark.parametrize(
    "text",
    [
        "8,710.15,8,720.10,8,730.20",
        "8710,15,8711,20",
        "1 234.5 1 235.5",
        "100,200,300\n400,500,600",
        "100 101\n101 102",
        "(5.25)\n6.25",
        "NaN\n6.25",
        "[1, NaN]",
        "[1" + "0" * 400 + "]",
    ],
)
def test_a_window_of_numbers_with_two_readings_is_refused(text):
    with pytest.raises(ForecastError):
        read_values(text.encode(), "window.txt", FileConfig.model_validate({}))


@pytest.mark.parametrize(
    "content", [b"\x1f\x8b\x08\x00" + b"\xff" * 30, b"\x00\x01\x02", b"<html><body>no</body></html>"]
)
def test_content_that_is_no_table_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "prices.csv"
    path.write_bytes(content)
    with pytest.raises(ForecastError) as caught:
        load_series("X", source=str(path))
    assert "\n" not in str(caught.value)


def test_dates_of_a_form_that_is_given_may_have_any_form(tmp_path):
    series = loaded(tmp_path, "Date,Close\n2024-002,0.5\n2024-003,1.5\n", date_format="%Y-%j")
    assert [str(day) for day in series.dates] == ["2024-01-02", "2024-01-03"]
