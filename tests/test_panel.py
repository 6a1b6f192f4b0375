"""Panels: many symbols from one source, one model of all, and forecasts of symbols that it has never seen."""

import dataclasses
import json
from contextlib import closing

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa
import torch
from browser import Watched
from serving_here import serving

from forecast import Predictor, TrainConfig, evaluate, load_checkpoint, save_checkpoint, train
from forecast.__main__ import main
from forecast.errors import AgeError, DataError, UsageError, WindowError
from forecast.inference.dating import with_the_same_sessions
from forecast.model import forecaster
from forecast.model.panel import prepare_panel
from forecast.model.split import split_rows
from forecast.model.training import Trainer
from forecast.pages.page import Grid, Section, write_page
from forecast.prices.panel import Panel, load_panel
from tune_jobs.costs import persistence_losses, row_losses
from tune_jobs.job import run_job
from tune_jobs.options import TuneOptions
from tune_jobs.space import SPACES, SearchSpace

ROWS = 320
SYMBOLS = ("ACME", "BETA", "CORP")
SMALL = TrainConfig(
    symbol="panel", source="x", sequence_length=20, hidden_size=8, max_epochs=2, batch_size=128, members=2
)


def closes(rows=ROWS, symbols=SYMBOLS):
    """Closing prices of weekdays, one column a symbol, at very different levels."""
    generator = np.random.default_rng(0)
    changes = 0.01 * generator.standard_t(5, (rows, len(symbols))) + 0.005 * generator.normal(size=(rows, 1))
    prices = np.exp(np.cumsum(changes, axis=0)) * 10.0 ** np.arange(len(symbols))
    return pd.DataFrame(
        prices.round(6), pd.bdate_range("2015-01-05", periods=rows, name="Date"), list(symbols)
    )


def long(frame):
    return frame.stack().rename_axis(["Date", "Symbol"]).rename("Close").reset_index()


def write_long(frame, path):
    long(frame).to_csv(path / "long.csv", index=False)
    return path / "long.csv"


def write_nixtla(frame, path):
    long(frame).set_axis(["ds", "unique_id", "Close"], axis=1).sort_values("unique_id").to_parquet(
        path / "long.parquet"
    )
    return path / "long.parquet"


def write_wide(frame, path):
    frame.to_csv(path / "wide.csv")
    return path / "wide.csv"


def write_suffixed(frame, path):
    volumes = (frame * 1000).add_prefix("Volume_")
    frame.add_prefix("Close_").join(volumes).to_csv(path / "suffixed.csv")
    return path / "suffixed.csv"


def write_levels(frame, path):
    levels = pd.concat({"Close": frame, "Open": frame * 1.01}, axis=1, names=["Price", "Ticker"])
    levels.to_csv(path / "levels.csv")
    return path / "levels.csv"


def write_directory(frame, path):
    for symbol in frame:
        frame[symbol].rename("Close").to_csv(path / f"{symbol}.csv")
    return path


def write_database(frame, path):
    address = f"sqlite:///{path / 'prices.db'}"
    engine = sa.create_engine(address)
    with closing(engine.raw_connection()):
        long(frame).astype({"Date": str}).to_sql("prices", engine, index=False)
    engine.dispose()
    return f"{address}?table=prices"


WRITERS = [
    write_long,
    write_nixtla,
    write_wide,
    write_suffixed,
    write_levels,
    write_directory,
    write_database,
]


@pytest.mark.parametrize("write", WRITERS)
def test_every_symbol_of_a_source_is_read_with_its_own_prices(write, tmp_path):
    frame = closes()
    panel = load_panel(["all"], source=str(write(frame, tmp_path)))
    assert set(panel.series) == set(SYMBOLS)
    assert not panel.left_out
    for symbol, series in panel.series.items():
        assert series.symbol == symbol
        assert series.feature == "Close"
        assert series.values == pytest.approx(frame[symbol].to_numpy())
        assert np.array_equal(series.dates, frame.index.to_numpy().astype("datetime64[D]"))


@pytest.mark.parametrize("write", WRITERS)
def test_a_symbol_that_cannot_be_used_costs_only_itself_and_says_why(write, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("CORP ACME\nNOPE\n")
    source = tmp_path / "prices"
    source.mkdir()
    panel = load_panel([f"@{names}", "ACME"], source=str(write(closes(), source)))
    assert list(panel.series) == ["CORP", "ACME"]
    assert list(panel.left_out) == ["NOPE"]
    assert "\n" not in panel.left_out["NOPE"]


def test_a_source_that_cannot_list_its_symbols_and_files_without_names_are_refused(tmp_path):
    with pytest.raises(UsageError, match="the source snapshot cannot list its symbols; name them"):
        load_panel(["all"], source="snapshot")
    panel = load_panel(["BTC-USD", "ETH-USD"], source="snapshot")
    assert list(panel.series) == ["BTC-USD"]
    assert "no snapshot of 'ETH-USD'" in panel.left_out["ETH-USD"]
    closes()["ACME"].rename("Close").to_csv(tmp_path / "one.csv")
    with pytest.raises(DataError, match="does not name the symbols of its prices; give one with `symbol`"):
        load_panel(["all"], source=str(tmp_path / "one.csv"))
    with pytest.raises(DataError, match=r"no symbol has usable prices \(1 left out\); ETH-USD: "):
        load_panel(["ETH-USD"], source="snapshot")


def test_no_symbol_gets_the_prices_of_another(tmp_path):
    write_long(closes(symbols=("ACME",)), tmp_path)
    panel = load_panel(["ACME", "BETA"], source=str(tmp_path / "long.csv"))
    assert list(panel.series) == ["ACME"]
    assert panel.left_out["BETA"].endswith("has no symbol 'BETA'; choose from ACME")
    with pytest.raises(DataError, match="has no symbol 'BETA'"):
        load_panel(["BETA"], source=str(tmp_path / "long.csv"))


def test_columns_that_are_no_symbols_are_not_read_as_some(tmp_path):
    frame = closes(symbols=("LOW", "ACME"))
    frame.reset_index().to_csv(tmp_path / "indexed.csv")
    assert list(load_panel(["all"], source=str(tmp_path / "indexed.csv")).series) == ["LOW", "ACME"]
    adjusted = frame.add_suffix("_Adj Close")
    frame.add_suffix("_Close").join(adjusted).to_csv(tmp_path / "adjusted.csv")
    assert list(load_panel(["all"], source=str(tmp_path / "adjusted.csv")).series) == ["LOW", "ACME"]
    frame.set_axis(["Open", "High"], axis=1).to_csv(tmp_path / "bars.csv")
    with pytest.raises(DataError, match="does not name the symbols"):
        load_panel(["all"], source=str(tmp_path / "bars.csv"))


def test_bars_of_different_lengths_are_not_pooled(tmp_path):
    frame = closes()
    for symbol, rows in (("ACME", slice(None)), ("BETA", slice(4, None, 5))):
        frame[symbol].iloc[rows].rename("Close").to_csv(tmp_path / f"{symbol}.csv")
    panel = load_panel(["all"], source=str(tmp_path))
    assert list(panel.series) == ["ACME"]
    assert "its bars are of 1wk, those of ACME of 1d" in panel.left_out["BETA"]


def test_a_symbol_that_is_left_out_has_no_say_in_the_split(tmp_path):
    frame = closes(rows=700, symbols=("ACME", "BETA", "OLD"))
    frame.loc[frame.index[:400], ["ACME", "BETA"]] = np.nan
    frame.loc[frame.index[400:], "OLD"] = np.nan
    panel = load_panel(["all"], source=str(write_long(frame, tmp_path)))
    prepared = prepare_panel(panel, SMALL, 20)
    assert set(prepared.left_out) == {"OLD"}
    assert prepared.borders == split_rows(300, SMALL.train_ratio, SMALL.val_ratio_within_train)


def test_a_symbol_that_hardly_moves_does_not_outweigh_the_others(tmp_path):
    frame = closes(rows=400, symbols=("ACME", "BETA", "HALTED"))
    frame.loc[frame.index[280:], "HALTED"] = frame["HALTED"].iloc[280]
    frame.loc[frame.index[300], "HALTED"] *= 1.0005
    panel = load_panel(["all"], source=str(write_long(frame, tmp_path)))
    prepared = prepare_panel(panel, SMALL, 20)
    result = train(panel, SMALL)
    others = [result.checkpoint.symbols[symbol] for symbol in ("ACME", "BETA")]
    ratios = [each.metrics_validation["MAE"] / each.persistence["validation"]["MAE"] for each in others]
    assert result.validation.model["MAE"] == pytest.approx(np.mean(ratios))
    losses = row_losses(result.checkpoint, prepared, "validation", ["MAE"])["MAE"]
    assert losses.mean() == pytest.approx(np.mean(ratios))


def test_intervals_of_many_steps_are_calibrated_on_days_from_everywhere(panel, monkeypatch):
    series, offsets = panel.series["ACME"], []
    many = Panel({f"S{number}": dataclasses.replace(series, symbol=f"S{number}") for number in range(40)})
    monkeypatch.setattr(forecaster, "CALIBRATED_ROWS", 100)
    genuine = forecaster.look_ahead

    def noted(*arguments):
        offsets.append((arguments[5], arguments[6]))
        return genuine(*arguments)

    monkeypatch.setattr(forecaster, "look_ahead", noted)
    train(many, SMALL.model_copy(update={"max_epochs": 1, "members": 1}))
    every = offsets[0][0]
    assert every > 10
    assert {offset for _, offset in offsets} == set(range(every))


@pytest.fixture(scope="module")
def panel(tmp_path_factory):
    """Three symbols, one of which begins later; one that is too short, and one that stands still."""
    frame = closes(symbols=(*SYMBOLS, "LATE", "NEW", "FLAT"))
    frame.loc[frame.index[:100], "LATE"] = np.nan
    frame.loc[frame.index[:-30], "NEW"] = np.nan
    frame["FLAT"] = 7.0
    path = tmp_path_factory.mktemp("panel")
    return load_panel(["all"], source=str(write_long(frame, path)))


@pytest.fixture(scope="module")
def pooled(panel, tmp_path_factory):
    """A model of the panel, and its file."""
    result = train(panel, SMALL)
    path = tmp_path_factory.mktemp("pooled") / "pooled.pt"
    save_checkpoint(result.checkpoint, path)
    return result, path


def test_all_symbols_are_split_at_the_same_dates_and_normalized_each_on_its_own(panel):
    prepared = prepare_panel(panel, SMALL, 20)
    assert list(prepared.series) == [*SYMBOLS, "LATE"]
    assert "0 training rows" in prepared.left_out["NEW"]
    assert "shorter windows (sequence_length) need fewer rows" in prepared.left_out["NEW"]
    assert "do not vary" in prepared.left_out["FLAT"]
    for symbol, part in prepared.series.items():
        dates = panel.series[symbol].dates
        assert dates[part.split.train_end] == prepared.dates[prepared.borders.train_end]
        assert dates[part.split.validation_end] == prepared.dates[prepared.borders.validation_end]
        training = part.normalized[: part.split.train_end, 0]
        assert training.mean() == pytest.approx(0, abs=1e-9)
        assert part.train_changes.std() == pytest.approx(1, rel=1e-6)
    assert len({part.recursion for part in prepared.parts}) == 1


def test_every_symbol_is_seen_through_the_recursions_that_the_checkpoint_keeps(tmp_path):
    frame = closes(symbols=("ACME", "BETA"))
    spread = 0.002 + 0.01 * np.abs(np.random.default_rng(1).normal(size=frame.shape))
    long(frame).assign(
        High=long(frame * (1 + spread))["Close"], Low=long(frame * (1 - spread))["Close"]
    ).to_csv(tmp_path / "bars.csv", index=False)
    panel = load_panel(["all"], source=str(tmp_path / "bars.csv"), input_columns=("High", "Low"))
    config = SMALL.model_copy(
        update={"input_columns": ("High", "Low"), "volatility": "range", "max_epochs": 1, "members": 1}
    )
    checkpoint = train(panel, config).checkpoint
    assert checkpoint.recursions[0].delta > 0
    for part in prepare_panel(panel, config, 20).parts:
        assert part.encoding(config).recursions == checkpoint.recursions


def test_nothing_a_pooled_model_learns_comes_from_test_rows(panel, pooled):
    from dataclasses import replace

    prepared = prepare_panel(panel, SMALL, 20)
    first_tested = prepared.dates[prepared.borders.validation_end]
    changed = {}
    for symbol, series in panel.series.items():
        matrix = series.matrix.copy()
        matrix[series.dates >= first_tested] *= 3
        changed[symbol] = replace(series, matrix=matrix)
    other = train(Panel(changed), SMALL).checkpoint
    checkpoint = pooled[0].checkpoint
    assert all(torch.equal(value, other.model_state[name]) for name, value in checkpoint.model_state.items())
    assert other.horizon_stretches == checkpoint.horizon_stretches
    assert np.array_equal(other.calibration_scores, checkpoint.calibration_scores)


def test_the_scores_of_a_panel_are_means_of_ratios_and_those_of_a_symbol_are_in_its_units(panel, pooled):
    result, _ = pooled
    ratios = [
        part.metrics_test["MAE"] / part.persistence["test"]["MAE"]
        for part in result.checkpoint.symbols.values()
    ]
    assert result.test.model["MAE"] == pytest.approx(np.mean(ratios))
    assert result.test.persistence["MAE"] == 1
    maes = [result.checkpoint.symbols[symbol].metrics_test["MAE"] for symbol in SYMBOLS]
    assert maes[1] / maes[0] > 3
    assert maes[2] / maes[1] > 3
    assert set(result.checkpoint.left_out) == {"NEW", "FLAT"}
    alone = train(Panel({"ACME": panel.series["ACME"]}), SMALL)
    assert alone.test.persistence["MAE"] == 1


def test_one_symbol_of_a_pooled_model_forecasts_as_a_model_alone_in_its_own_units(panel, pooled):
    _, path = pooled
    predictor = Predictor(path, "cpu", "onnx")
    for symbol in (*SYMBOLS, "LATE"):
        own = predictor.of_symbol(symbol)
        values = panel.series[symbol].values
        window = own.checkpoint.latest_window
        assert window == pytest.approx(values[-own.rows_used :])
        (prediction,) = own.predict([window])
        assert prediction == pytest.approx(values[-1], rel=0.02)
        assert Predictor(path, "cpu", symbol=symbol).predict([window]) == pytest.approx(
            [prediction], rel=1e-6
        )
        low, high = own.predict_intervals([window], [0.9])[0, 0, 0]
        assert low < prediction < high
    with pytest.raises(
        UsageError, match="no symbol 'NOPE'; choose one of these with `symbol`: ACME, BETA, CORP, LATE"
    ):
        predictor.of_symbol("NOPE")


def test_a_symbol_never_seen_is_forecast_alike_whatever_its_prices_units(panel, pooled):
    _, path = pooled
    window = panel.series["CORP"].values
    predictor = Predictor(path, "cpu")
    small, large = (predictor.of_window(scale * window, "NEW") for scale in (1, 1000))
    assert large.predict([1000 * window]) == pytest.approx(1000 * small.predict([window]), rel=1e-9)
    own = predictor.of_symbol("CORP").predict_intervals([window], [0.9])[0, 0, 0]
    assert small.predict_intervals([window], [0.9])[0, 0, 0] == pytest.approx(own, rel=0.01)
    assert small.checkpoint.metrics_test is None
    with pytest.raises(WindowError, match="do not vary"):
        predictor.of_window([5.0] * 40, "FLAT")


def test_losses_of_a_panel_are_those_of_its_sessions_and_mean_its_metrics(panel, pooled):
    prepared, checkpoint = prepare_panel(panel, SMALL, 20), pooled[0].checkpoint
    losses = row_losses(checkpoint, prepared, "test", ["MAE", "CRPS"])
    start, stop = prepared.session_range("test")
    for name, values in losses.items():
        assert len(values) == stop - start
        assert values.mean() == pytest.approx(pooled[0].test.model[name])
    assert persistence_losses(prepared, "test", ["MAE"])["MAE"].mean() == pytest.approx(1)


def test_a_model_is_scored_as_before_on_the_rows_of_one_of_its_symbols(panel, pooled):
    checkpoint = pooled[0].checkpoint
    for symbol in ("BETA", "LATE"):
        again = evaluate(checkpoint, panel.series[symbol])
        assert again.model == pytest.approx(checkpoint.symbols[symbol].metrics_test)
    with pytest.raises(DataError, match=r"no test rows: they come after .* use a series that ends later"):
        evaluate(checkpoint, panel.series["BETA"].part(slice(None, 200)))


@pytest.mark.slow
def test_a_job_searches_one_model_for_all_symbols_and_scores_each(cluster, panel, tmp_path, monkeypatch):
    sizes = SearchSpace(
        sequence_length=(20, 30, 10),
        hidden_size=(4, 8),
        num_layers=(1, 2),
        batch_size=(128,),
        max_epochs=(2, 4, 2),
    )
    monkeypatch.setitem(SPACES, "small", sizes)
    frame = pd.concat({symbol: pd.Series(each.values, each.dates) for symbol, each in panel.series.items()})
    long = frame.rename_axis(["Symbol", "Date"]).rename("Close").reset_index()
    long.to_csv(tmp_path / "panel.csv", index=False)
    options = TuneOptions(
        source=str(tmp_path / "panel.csv"),
        symbols=("all", "NOPE"),
        num_samples=3,
        space="small",
        objectives="mae,crps",
        strategy="min_crps",
        output_dir=tmp_path / "job",
    )
    summary = run_job(options).summary
    assert summary["trials"]["COMPLETE"] == 3
    used = [*SYMBOLS, "LATE"]
    assert summary["symbols"]["used"] == len(used)
    assert set(summary["symbols"]["left_out"]) == {"NEW", "FLAT", "NOPE"}
    assert summary["persistence"]["test"]["CRPS"] == 1
    table = pd.read_csv(tmp_path / "job" / "symbols.csv").set_index("symbol")
    assert set(table.index) == {*used, "NEW", "FLAT", "NOPE"}
    ratios = table["test_CRPS"] / table["persistence_test_CRPS"]
    assert summary["pick"]["test"]["CRPS"] == pytest.approx(ratios[used].mean())
    assert summary["symbols"]["GARCH"]["ratio"] == pytest.approx(
        (table["test_CRPS"] / table["GARCH_test_CRPS"])[used].mean()
    )
    assert "its history is too short" in table.loc["NEW", "left_out"]

    trial = load_checkpoint(summary["pick"]["checkpoint"])
    trainer = Trainer(prepare_panel(panel, trial.config, 30), trial.config)
    trainer.advance(trial.best_epoch)
    assert all(torch.equal(value, trainer.best_state()[name]) for name, value in trial.model_state.items())
    served = Predictor(tmp_path / "job" / "best_pareto_lstm.pt", "cpu")
    assert set(served.whole.symbols) == set(used)
    for symbol in used:
        own = served.of_symbol(symbol).checkpoint
        assert own.trained_until > trial.symbols[symbol].trained_until
        assert own.metrics_test["CRPS"] == pytest.approx(table.loc[symbol, "test_CRPS"])
    report = (tmp_path / "job" / "report.html").read_text()
    assert report.count("<table class=explored>") == 2
    assert f"<td class=number>{ratios['LATE']:.4f}</td>" in report
    assert run_job(options.model_copy(update={"resume": True})).summary["pick"] == summary["pick"]


def post(client, path, **body):
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_server_answers_for_every_symbol_of_a_pooled_model_and_for_others(panel, pooled):
    _, path = pooled
    predictor = Predictor(path, "cpu")
    with serving(path) as client:
        assert [line["symbol"] for line in client.get("/models").json()["models"]] == [*SYMBOLS, "LATE"]
        assert client.get("/model", params={"symbol": "BETA"}).json()["symbol"] == "BETA"
        assert "did you mean BETA?" in client.get("/model", params={"symbol": "BTEA"}).text
        for symbol in (*SYMBOLS, "LATE"):
            window = panel.series[symbol].values.tolist()
            answer = post(client, "/predict", symbol=symbol, values=window, levels=[0.9])
            assert answer["symbol"] == symbol
            own = predictor.of_symbol(symbol)
            assert answer["prediction"] == pytest.approx(own.predict([window])[0], rel=1e-6)
            assert answer["intervals"][0]["lower"] == pytest.approx(
                own.predict_intervals([window], [0.9])[0, 0, 0, 0]
            )
            assert not any("not trained" in line for line in answer.get("warnings", []))
        window = (7 * panel.series["CORP"].values).tolist()
        answer = post(client, "/predict", symbol="NEW", values=window, horizon=2)
        assert answer["symbol"] == "NEW"
        unseen = predictor.of_window(window, "NEW")
        assert answer["predictions"] == pytest.approx(unseen.predict_steps([window], 2)[0], rel=1e-6)
        assert any("was not trained on NEW" in line for line in answer["warnings"])
        still = client.post("/predict", json={"symbol": "FLAT", "values": [5.0] * 40})
        assert still.status_code == 422
        assert "do not vary" in still.json()["detail"][0]["msg"]
        assert client.post("/predict", json={"values": window}).status_code == 422


def test_a_model_that_is_too_old_answers_for_no_symbol(panel, pooled):
    window = panel.series["CORP"].values.tolist()
    known, unseen = {"symbol": "CORP", "values": window}, {"symbol": "corp", "values": window}
    with serving(pooled[1], max_age_sessions=5, when_too_old="refuse") as client:
        for body in (known, unseen):
            assert client.post("/predict", json=body).status_code == 503
        for series in ([known, unseen], [unseen, known], [unseen]):
            assert client.post("/predict/batch", json={"series": series}).status_code == 503
    with serving(pooled[1]) as client:
        dated = client.post("/predict/batch", json={"series": [known], "last_date": "2016-03-25"})
        assert dated.status_code == 422
        assert dated.json()["detail"][0]["loc"] == ["body", "last_date"]
        ragged = {"symbol": "NEW", "values": [[1.0, 2.0], [3.0]]}
        assert client.post("/predict", json=ragged).status_code == 422
        assert client.post("/predict/batch", json={"series": [ragged]}).status_code == 422


@pytest.mark.parametrize(
    "options", [{}, {"levels": [0.5, 0.9]}, {"horizon": 3, "levels": [0.9]}, {"horizon": 1}]
)
def test_one_request_for_many_symbols_has_the_answers_of_many_requests(panel, pooled, options):
    _, path = pooled
    series = [
        {"symbol": symbol, "values": panel.series[symbol].values[-days:].tolist()}
        for symbol, days in (("CORP", 300), ("ACME", 25), ("LATE", 200), ("NEW", 30))
    ]
    with serving(path) as client:
        together = post(client, "/predict/batch", series=series, **options)
        assert together["symbols"] == ["CORP", "ACME", "LATE", "NEW"]
        for place, one in enumerate(series):
            alone = post(client, "/predict", **one, **options)
            expected = alone["predictions"] if "horizon" in options else alone["prediction"]
            assert together["predictions"][place] == pytest.approx(expected, rel=1e-6)
            if "levels" in options:
                for found, own in zip(together["intervals"][place], alone["intervals"], strict=True):
                    assert found["lower"] == pytest.approx(own["lower"], rel=1e-6)
                    assert found["upper"] == pytest.approx(own["upper"], rel=1e-6)
        assert any(line.startswith("NEW: the model was not trained on") for line in together["warnings"])
        assert any(line.startswith("ACME: the window has 25 values") for line in together["warnings"])


@pytest.mark.parametrize(
    ("item", "where"),
    [
        ({"symbol": "ACME", "values": [1.0, 2.0]}, ["body", "series", 1, "values"]),
        ({"symbol": "ACME", "values": [1.0] * 20 + [-1.0]}, ["body", "series", 1, "values"]),
        ({"symbol": "NEW", "values": [3.0] * 40}, ["body", "series", 1, "values"]),
        ({"symbol": "ACME"}, ["body", "series", 1, "values"]),
        ({"symbol": 5, "values": [1.0] * 30}, ["body", "series", 1, "symbol"]),
    ],
)
def test_a_bad_window_of_one_symbol_is_named(panel, pooled, item, where):
    good = {"symbol": "BETA", "values": panel.series["BETA"].values.tolist()}
    with serving(pooled[1]) as client:
        answer = client.post("/predict/batch", json={"series": [good, item]})
        assert answer.status_code == 422
        assert answer.json()["detail"][0]["loc"] == where
        assert client.post("/predict/batch", json={"series": []}).status_code == 422


def test_folds_of_a_panel_are_refused():
    with pytest.raises(ValueError, match="`validation_folds` 3 needs a single symbol: a panel has one split"):
        TuneOptions(symbols=("all",), validation_folds=3)


def test_the_commands_train_a_panel_and_forecast_a_symbol_of_it_or_another(tmp_path, capsys):
    source = write_wide(closes(), tmp_path)
    model = str(tmp_path / "model.pt")
    options = ["--source", str(source), "--checkpoint", model]
    small = ["--sequence-length", "20", "--hidden-size", "4", "--max-epochs", "1", "--members", "1"]
    assert main(["train", *options, "--symbols", "ACME", "BETA,NOPE", *small, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert set(answer["symbols"]) == {"ACME", "BETA"}
    assert set(answer["left_out"]) == {"NOPE"}
    assert main(["infer", "--checkpoint", model, "--symbol", "BETA", "--json"]) == 0
    known = json.loads(capsys.readouterr().out)
    assert known["symbol"] == "BETA"
    assert known["last_value"] == pytest.approx(closes()["BETA"].iloc[-1])
    assert known["forecast_dates"]
    assert main(["infer", "--checkpoint", model, "--symbol", "CORP", "--json"]) == 0
    printed = capsys.readouterr()
    unknown = json.loads(printed.out)
    assert unknown["last_value"] == pytest.approx(closes()["CORP"].iloc[-1])
    assert "was not trained on CORP" in printed.err
    assert unknown["forecast_dates"] == known["forecast_dates"]
    assert unknown["model_age"] == known["model_age"]
    assert main(["train", *options, "--symbols", "all", *small]) == 0
    printed = capsys.readouterr().out
    assert "3 symbols' Close" in printed
    assert "3 symbols used; train 231 sessions to " in printed
    assert "Means over 3 symbols of each metric divided by persistence's" in printed


@pytest.fixture(scope="module")
def commanded(tmp_path_factory):
    """The prices of three symbols, and the file of a model of them that a command has trained."""
    path = tmp_path_factory.mktemp("commanded")
    source, model = write_wide(closes(), path), path / "model.pt"
    small = [
        "--sequence-length",
        "20",
        "--hidden-size",
        "4",
        "--max-epochs",
        "1",
        "--members",
        "1",
        "--quiet",
    ]
    assert (
        main(["train", "--source", str(source), "--symbols", "all", "--checkpoint", str(model), *small]) == 0
    )
    return path, str(model)


def test_infer_without_a_symbol_forecasts_each_symbol_as_infer_with_it_does(commanded, capsys):
    path, model = commanded
    assert main(["infer", "--checkpoint", model, "--json", "--levels", "0.9"]) == 0
    together = json.loads(capsys.readouterr().out)
    assert together["left_out"] == {}
    assert [answer["symbol"] for answer in together["forecasts"]] == list(SYMBOLS)
    for answer, asked in zip(together["forecasts"], together["series"], strict=True):
        assert (
            main(["infer", "--checkpoint", model, "--json", "--levels", "0.9", "--symbol", answer["symbol"]])
            == 0
        )
        alone = json.loads(capsys.readouterr().out)
        assert answer["prediction"] == pytest.approx(alone.pop("prediction"), rel=1e-6)
        assert answer["intervals"][0]["lower"] == pytest.approx(alone.pop("intervals")[0]["lower"], rel=1e-6)
        assert {name: (answer | asked)[name] for name in alone} == alone
    later = closes().iloc[:-5].assign(BETA=np.nan)
    later.to_csv(path / "later.csv")
    options = ["--horizon", "2", "--levels", "0.5", "0.9"]
    assert main(["infer", "--checkpoint", model, "--file", str(path / "later.csv"), *options]) == 0
    printed = capsys.readouterr().out
    assert printed.count(str(later.index[-1].date())) == 2
    assert f"{later['CORP'].iloc[-1]:,.6g}" in printed
    assert "left out: 1\n  BETA: " in printed
    assert "…" not in printed
    (later.tail(300) * [1000, 1, 0.001]).to_csv(path / "later.csv")
    assert main(["infer", "--checkpoint", model, "--file", str(path / "later.csv")]) == 0
    assert "warning: ACME, CORP: prices outside the training range" in capsys.readouterr().err


def test_what_infer_prints_for_all_symbols_is_a_request_for_their_forecasts(commanded, tmp_path, capsys):
    _, model = commanded
    shorter = closes()
    shorter.iloc[-1, 1] = np.nan
    shorter.to_csv(tmp_path / "shorter.csv")
    with serving(model) as client:
        for file, same_session in (([], True), (["--file", str(tmp_path / "shorter.csv")], False)):
            for options in ([], ["--levels", "0.9", "--horizon", "2"]):
                assert main(["infer", "--checkpoint", model, "--json", *file, *options]) == 0
                printed = json.loads(capsys.readouterr().out)
                answer = post(client, "/predict/batch", **printed)
                assert printed["same_session"] == same_session
                assert answer["symbols"] == [each["symbol"] for each in printed["forecasts"]]
                name = "predictions" if options else "prediction"
                for found, own in zip(answer["predictions"], printed["forecasts"], strict=True):
                    assert found == pytest.approx(own[name], rel=1e-6)
                assert ("intervals" in answer) == bool(options)


def test_infer_refuses_bars_of_another_length_than_those_of_a_model_of_many(commanded):
    path, model = commanded
    for symbol in ([], ["--symbol", "BETA"], ["--symbol", "NEW"]):
        frame = closes(rows=400).rename(columns={"CORP": "NEW"} if "NEW" in symbol else {})
        frame.iloc[4::5].to_csv(path / "weekly.csv")
        with pytest.raises(DataError, match="has bars of 1wk, which are not bars of 1d"):
            main(["infer", "--checkpoint", model, "--file", str(path / "weekly.csv"), *symbol])


def test_a_symbol_never_seen_is_dated_by_its_own_calendar(commanded, tmp_path, capsys):
    _, model = commanded
    every_day = closes(symbols=("NEW",)).set_index(pd.date_range("2019-01-01", periods=ROWS, name="Date"))
    every_day.to_csv(tmp_path / "new.csv")
    infer = ["infer", "--checkpoint", model, "--json", "--horizon", "3", "--symbol"]
    assert main([*infer, "NEW", "--file", str(tmp_path / "new.csv")]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["last_date"] == "2019-11-16"  # a Saturday
    assert answer["forecast_dates"] == ["2019-11-17", "2019-11-18", "2019-11-19"]
    values = ["--values", *map(str, every_day["NEW"]), "--last-date", "2016-03-25"]
    assert main([*infer, "NEW", *values]) == 0
    assert json.loads(capsys.readouterr().out)["forecast_dates"] == ["2016-03-28", "2016-03-29", "2016-03-30"]
    with pytest.raises(WindowError, match=r"does not know the calendar of NEW-USD.* leave the dates out"):
        main([*infer, "NEW-USD", *values])
    with pytest.raises(AgeError, match="last training row is"):
        main([*infer, "NEW-USD", *values[:-2], "--max-age-sessions", "3", "--when-too-old", "refuse"])
    body = {"values": every_day["NEW"].tolist(), "last_date": "2016-03-25"}
    with serving(model) as client:
        assert post(client, "/predict", symbol="NEW", **body)["forecast_dates"] == ["2016-03-28"]
        assert client.post("/predict", json={"symbol": "NEW-USD", **body}).status_code == 422


@pytest.mark.parametrize("write", [write_wide, write_long, write_levels])
def test_infer_reads_one_symbol_of_a_file_of_many(commanded, write, tmp_path, capsys):
    _, model = commanded
    file = str(write(closes(symbols=("CORP", "BETA", "NEW")), tmp_path))
    for symbol in ("BETA", "NEW"):
        assert main(["infer", "--checkpoint", model, "--file", file, "--symbol", symbol, "--json"]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert answer["symbol"] == symbol
        assert answer["last_value"] == pytest.approx(closes(symbols=("CORP", "BETA", "NEW"))[symbol].iloc[-1])


def test_values_without_a_symbol_are_not_taken_for_those_of_the_first(commanded, tmp_path, capsys):
    _, model = commanded
    (tmp_path / "values.txt").write_text("\n".join(map(str, range(100, 140))))
    given = (["--values", *map(str, range(100, 140))], ["--file", str(tmp_path / "values.txt")])
    for values in given:
        with pytest.raises(UsageError, match="`symbol` is needed for the values of one symbol"):
            main(["infer", "--checkpoint", model, *values])
        assert main(["infer", "--checkpoint", model, *values, "--symbol", "ACME"]) == 0
        capsys.readouterr()


def test_symbols_whose_windows_end_with_the_same_session_are_forecast_together():
    days = np.arange("2020-01-01", "2020-01-11", dtype="datetime64[D]")
    windows = {
        "ACME": days,
        "SHORT": days[-5:],
        "OLD": days[:-1],
        "HOLES": days[[1, 3, 5, 7, 9]],
        "BETA": days,
        "UNDATED": None,
    }
    groups = sorted(with_the_same_sessions(windows))
    assert groups == [["ACME", "BETA", "SHORT"], ["HOLES"], ["OLD"], ["UNDATED"]]


def test_readers_sort_and_search_a_long_table(browser, tmp_path):
    rows = [["ACME", "9.5"], ["BETA", "10.25"], ["CORP", ""], ["ACRE", "-1"]]
    grid = Grid(["symbol", "ratio"], rows, explored=True)
    write_page(tmp_path / "page.html", "A page", [], [Section("Symbols", [grid])])
    page = Watched(browser, offline=True)
    page.tab.goto((tmp_path / "page.html").as_uri())

    def shown():
        return page.tab.locator("tr:visible td:first-child").all_text_contents()

    assert shown() == ["ACME", "BETA", "CORP", "ACRE"]
    page.tab.get_by_role("button", name="ratio").click()
    assert shown() == ["ACRE", "ACME", "BETA", "CORP"]
    page.tab.get_by_role("button", name="symbol").click()
    page.tab.get_by_role("button", name="symbol").click()
    assert shown() == ["CORP", "BETA", "ACRE", "ACME"]
    page.tab.get_by_role("searchbox", name="Search the table").fill("ac")
    assert shown() == ["ACRE", "ACME"]
    assert page.errors == []
    page.context.close()
