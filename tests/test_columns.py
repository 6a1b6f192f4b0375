"""Models of several columns, from a file of prices to an answer."""

import json

import numpy as np
import pandas as pd
import pytest
from serving_here import serving

from forecast import Predictor, TrainConfig, load_checkpoint, load_series, save_checkpoint, train
from forecast.__main__ import main
from forecast.cli.command import run
from forecast.errors import DataError, WindowError
from forecast.model.training import evaluate

COLUMNS = ("Volume", "High")


@pytest.fixture(scope="module")
def prices(tmp_path_factory):
    """Write a file in which each close follows from the previous day's volume."""
    generator = np.random.default_rng(0)
    signal = generator.normal(0, 1, 500)
    moves = np.concatenate([[0], 0.02 * signal[:-1]]) + generator.normal(0, 0.002, 500)
    close = 100 * np.exp(np.cumsum(moves))
    frame = pd.DataFrame(
        {
            "Date": pd.date_range("2020-01-01", periods=500).strftime("%Y-%m-%d"),
            "Close": close,
            "High": close * np.exp(0.01 * np.abs(generator.normal(size=500))),
            "Volume": 1e6 * np.exp(np.cumsum(0.1 * signal)),
        }
    )
    frame.loc[7, "Volume"] = 0
    frame.loc[9, "High"] = np.nan
    path = tmp_path_factory.mktemp("prices") / "prices.csv"
    frame.to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def model(prices, tmp_path_factory):
    series = load_series("ACME", source=str(prices), input_columns=COLUMNS)
    config = TrainConfig(
        source=str(prices),
        input_columns=COLUMNS,
        likelihood="student_t",
        sequence_length=5,
        hidden_size=16,
        num_layers=1,
        max_epochs=40,
        learning_rate=5e-3,
    )
    path = tmp_path_factory.mktemp("model") / "acme.pt"
    save_checkpoint(train(series, config).checkpoint, path)
    return path


def rows_of(prices, count=5):
    return load_series("ACME", source=str(prices), input_columns=COLUMNS).matrix[-count:].tolist()


def test_each_column_is_cleaned_and_what_was_dropped_is_said_by_column(prices):
    series = load_series("ACME", source=str(prices), input_columns=COLUMNS)
    assert series.matrix.shape == (498, 3)
    lines = series.integrity.lines()
    assert "non finite: 1, rows dropped (High on 1)" in lines
    assert "non positive: 1, rows dropped (Volume on 1)" in lines
    without = load_series("ACME", source=str(prices))
    assert len(without) == 500
    assert without.provenance.sha256 != series.provenance.sha256


def test_a_column_that_tells_of_the_next_change_is_learned_from(prices, model):
    checkpoint = load_checkpoint(model)
    assert checkpoint.metrics_test["MAE"] < 0.5 * checkpoint.persistence["test"]["MAE"]
    # Each column is normalized with its own statistics of the training rows.
    scalings = checkpoint.normalization.scalings
    assert len(scalings) == 3
    assert len({scaling.change_std for scaling in scalings}) == 3


def test_a_series_without_the_columns_is_refused_by_name(prices, model):
    with pytest.raises(DataError, match="the input columns Volume, High, but the series has none"):
        evaluate(load_checkpoint(model), load_series("ACME", source=str(prices)))


def test_a_column_that_is_not_there_or_named_twice_is_an_error(prices, capsys):
    assert run(main, ["train", "--source", str(prices), "--input-columns", "Open"]) == 1
    assert "no feature 'Open'; choose one of: Close, High, Volume" in capsys.readouterr().err
    assert run(main, ["train", "--source", str(prices), "--input-columns", "Close"]) == 2
    assert "Close is already an input" in capsys.readouterr().err


def test_torch_and_onnx_agree_on_several_columns(prices, model):
    window = [rows_of(prices)]
    by_torch, by_onnx = Predictor(model, "cpu", "torch"), Predictor(model, "cpu", "onnx")
    assert by_onnx.predict(window) == pytest.approx(by_torch.predict(window), rel=1e-6)


def test_windows_of_the_other_shape_are_refused_with_the_columns_by_name(prices, model, tiny_checkpoint):
    with pytest.raises(
        WindowError, match=r"each bar as a row of 3 values \(Close, Volume, High\).*got plain"
    ):
        Predictor(model).predict([[1.0] * 5])
    with pytest.raises(WindowError, match=r"plain numbers \(Close\).*got rows of 2"):
        Predictor(tiny_checkpoint).predict([[[1.0, 2.0]] * 20])
    with pytest.raises(WindowError, match=r"number 2 from the end, column 2"):
        Predictor(model).predict([[*rows_of(prices)[:3], [1.0, float("nan"), 1.0], [1.0, 1.0, 1.0]]])


def test_more_than_one_step_is_refused_for_columns_nobody_forecasts(prices, model):
    with pytest.raises(WindowError, match=r"a horizon of 2 would need forecasts of Volume too"):
        Predictor(model).predict_steps([rows_of(prices)], 2)


def test_infer_prints_rows_that_predict_takes(prices, model, capsys):
    assert main(["infer", "--checkpoint", str(model), "--json", "--levels", "0.9"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["values"] == rows_of(prices, Predictor(model).rows_used)
    with serving(model) as client:
        answer = client.post("/predict", json={"values": printed["values"], "levels": [0.9]}).json()
        assert answer["prediction"] == pytest.approx(printed["prediction"], rel=1e-6)
        assert answer["intervals"][0]["lower"] == pytest.approx(printed["intervals"][0]["lower"], rel=1e-6)
        assert client.get("/model").json()["columns"] == ["Close", "Volume", "High"]
        batch = client.post("/predict/batch", json={"windows": [printed["values"]] * 2}).json()
        assert batch["predictions"] == pytest.approx([printed["prediction"]] * 2, rel=1e-6)


def test_predict_says_which_shape_it_takes_when_it_gets_the_other(prices, model, tiny_checkpoint):
    with serving(model) as client:
        plain = client.post("/predict", json={"values": [1.0] * 5})
        horizon = client.post("/predict", json={"values": rows_of(prices), "horizon": 2})
        ragged = client.post("/predict", json={"values": [[1.0, 2.0, 3.0], [1.0]] * 5})
        text = client.post("/predict", json={"values": [[1.0, "2", 3.0]] * 5})
    assert [answer.status_code for answer in (plain, horizon, ragged, text)] == [422] * 4
    assert "a row of 3 values (Close, Volume, High)" in plain.json()["detail"][0]["msg"]
    assert "would need forecasts of Volume too" in horizon.json()["detail"][0]["msg"]
    assert "all of the same length" in ragged.json()["detail"][0]["msg"]
    assert text.json()["detail"][0]["loc"] == ["body", "values", 0, 1]
    assert "each a list of numbers without quotes" in text.json()["detail"][0]["msg"]
    with serving(tiny_checkpoint) as client:
        for row in ([1.0, 2.0], [1.0]):
            for levels in ({}, {"levels": [0.9]}):
                rows = client.post("/predict", json={"values": [row] * 20, **levels})
                batch = client.post("/predict/batch", json={"windows": [[row] * 20], **levels})
                assert (rows.status_code, batch.status_code) == (422, 422)
                assert f"plain numbers (Close), oldest first; got rows of {len(row)}" in rows.text
