"""Split, normalization, windows and metrics: properties that hold for any series."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from forecast import train
from forecast.backtest.rolling import backtest
from forecast.backtest.settings import BacktestSettings
from forecast.config import TrainConfig
from forecast.errors import DataError
from forecast.model.normalization import Normalization, Scaling
from forecast.model.split import MIN_TARGETS, required_rows, split_rows
from forecast.model.training import WindowTensors, forecast_part
from forecast.model.windows import BOUND, PreparedSeries, Windows, prepare
from forecast.scores.metrics import METRICS, Forecasts, Rows, evaluate_forecasts

ratios = st.floats(0.05, 0.95)
prices = arrays(np.float64, st.integers(10, 200), elements=st.floats(0.01, 1e6), unique=True)


@given(rows=st.integers(0, 10_000), train=ratios, val=ratios)
def test_split_covers_every_row_once_in_order_of_time(rows, train, val):
    split = split_rows(rows, train, val)
    assert 0 <= split.train_end <= split.validation_end <= split.rows == rows


def test_default_split_is_72_25_12_75_and_15_percent():
    split = split_rows(10_000, 0.85, 0.15)
    assert (split.train_end, split.validation_end) == (7225, 8500)


@given(rows=st.integers(400, 3000), short=st.integers(2, 60), long=st.integers(61, 120))
def test_validation_and_test_targets_do_not_depend_on_the_window_length(rows, short, long):
    split = split_rows(rows, 0.85, 0.15)
    for part in ("validation", "test"):
        assert split.targets(part, short) == split.targets(part, long)


@given(length=st.integers(2, 200), train=ratios, val=ratios)
def test_required_rows_is_the_fewest_that_give_each_part_its_targets(length, train, val):
    def enough(rows):
        split = split_rows(rows, train, val)
        return all(len(split.targets(p, length)) >= MIN_TARGETS for p in ("train", "validation", "test"))

    needed = required_rows(length, train, val)
    assert enough(needed)
    assert not enough(needed - 1)


@given(values=prices, log=st.booleans())
def test_normalization_round_trips_and_has_zero_mean_and_unit_deviation(values, log):
    try:
        normalization = Scaling.fit(values, log=log)
    except DataError:
        return  # almost equal prices are refused
    normalized = normalization.normalize(values)
    assert normalized.mean() == pytest.approx(0, abs=1e-6)
    assert normalized.std() == pytest.approx(1, rel=1e-6)
    assert normalization.denormalize(normalized) == pytest.approx(values, rel=1e-6)
    assert np.diff(normalized).std() == pytest.approx(normalization.change_std, rel=1e-6)


def test_normalization_refuses_prices_that_do_not_vary_and_names_the_value():
    with pytest.raises(DataError, match=r"do not vary \(first value 7\)"):
        Scaling.fit(np.full(50, 7.0), log=True)


def prepared(values, log=True):
    split = split_rows(len(values), 0.85, 0.15)
    matrix = values[:, np.newaxis]
    normalization = Normalization.fit(matrix[: split.train_end], ["Close"], log=log)
    return PreparedSeries(normalization.normalize(matrix), normalization, split)


def config(length, target="residual", likelihood="mse"):
    return TrainConfig(sequence_length=length, target=target, likelihood=likelihood)


def windows_of(series, part, *options, **named):
    return series.windows(part, series.encoding(config(*options, **named)))


@pytest.fixture
def walk():
    return 100 * np.exp(np.cumsum(np.random.default_rng(0).normal(0, 0.02, 400)))


def test_windows_end_one_row_before_their_target(walk):
    series = prepared(walk)
    windows, rows = windows_of(series, "validation", 10, "level"), series.rows("validation", 10)
    first = series.split.train_end
    assert windows.inputs[0] == pytest.approx(series.normalized[first - 10 : first], rel=1e-6)
    assert windows.targets[0] == pytest.approx(series.normalized[first, 0], rel=1e-6)
    assert rows.actual[0] == pytest.approx(walk[first])
    assert rows.previous[0] == pytest.approx(walk[first - 1])


@pytest.mark.parametrize("target", ["residual", "level"])
def test_an_exact_output_decodes_to_the_actual_price(walk, target):
    series = prepared(walk)
    windows = windows_of(series, "test", 30, target)
    decoded = series.encoding(config(30, target)).prices(windows.targets, windows.last)
    assert decoded == pytest.approx(series.rows("test", 30).actual, rel=1e-5)


def test_a_residual_model_sees_changes_in_training_deviations_and_never_more_than_the_bound(walk):
    series = prepared(walk)
    inputs = windows_of(series, "train", 30).inputs[0, :, 0]
    changes = np.diff(np.log(walk[:30])) / np.diff(np.log(walk[: series.split.train_end])).std()
    small = np.abs(changes) < 0.3
    assert inputs[small] == pytest.approx(changes[small], rel=0.01)
    assert np.array_equal(np.argsort(inputs), np.argsort(changes))
    crash = np.array([[[0.0], [-1e3], [1e3]]])
    bounded, _ = series.encoding(config(3)).encode(crash)
    assert bounded.tolist() == [[[-BOUND], [BOUND]]]


@pytest.mark.parametrize("target", ["residual", "level"])
@pytest.mark.parametrize(
    ("likelihood", "volatility", "rows"),
    [
        ("student_t", "ewma", 279),
        ("student_t", "gjr", 279),
        ("student_t", "window", 30),
        ("mse", "ewma", 251),
    ],
)
@pytest.mark.parametrize("part", ["train", "test"])
def test_serving_sees_a_window_as_training_does(walk, target, likelihood, volatility, rows, part):
    series = prepared(walk)
    encoding = series.encoding(
        TrainConfig(sequence_length=30, target=target, likelihood=likelihood, volatility=volatility)
    )
    assert encoding.rows == rows + (target == "level" and rows == 279)
    windows, targets = series.windows(part, encoding), series.target_rows(part, 30)
    inputs, found = encoding.encode(series.histories(encoding.rows, encoding)[targets])
    assert np.array_equal(inputs, windows.inputs)
    assert np.array_equal(found, windows.volatility)
    tensors = WindowTensors(windows, torch.device("cpu"))
    assert np.array_equal(torch.cat(list(tensors.split(77))).numpy(), inputs)
    both = Windows.join([windows, windows])
    assert np.array_equal(both.inputs, np.concatenate([inputs, inputs]))


def test_a_zero_residual_is_persistence(walk):
    series = prepared(walk)
    windows = windows_of(series, "test", 30)
    zero = np.zeros(len(windows), np.float32)
    decoded = series.encoding(config(30)).prices(zero, windows.last)
    assert decoded == pytest.approx(series.rows("test", 30).previous, rel=1e-12)


def test_statistics_and_inputs_ignore_every_row_after_training(walk):
    changed = walk.copy()
    changed[split_rows(400, 0.85, 0.15).train_end :] *= 3
    assert prepared(changed).normalization == prepared(walk).normalization
    before, after = (windows_of(prepared(v), "train", 20, likelihood="student_t") for v in (walk, changed))
    assert np.array_equal(before.inputs, after.inputs)
    assert np.array_equal(before.targets, after.targets)


def test_a_series_without_test_rows_cannot_give_test_windows(walk):
    with pytest.raises(IndexError, match="no test rows"):
        windows_of(prepared(walk).without_test(), "test", 20)


def test_point_metrics_match_their_definitions_on_a_worked_example():
    actual, predicted, previous = np.array([100.0, 200.0]), np.array([110.0, 190.0]), np.array([90.0, 220.0])
    result = evaluate_forecasts(Rows(actual, previous, naive_mae=5.0), Forecasts(predicted))
    assert result.model == pytest.approx({"MAE": 10, "RMSE": 10, "MAPE": 7.5, "MASE": 2})
    assert result.persistence == pytest.approx({"MAE": 15, "RMSE": np.sqrt(250), "MAPE": 10, "MASE": 3})
    third = 1 / 3
    assert result.skill == pytest.approx(
        {"MAE": third, "RMSE": 1 - 10 / np.sqrt(250), "MAPE": 0.25, "MASE": third}
    )


def test_mape_clamps_actual_prices_at_a_millionth_of_the_mean_training_price():
    rows = prepared(np.concatenate([np.tile([1e3, 3e3], 150), np.zeros(100)]), log=False).rows("test", 2)
    assert rows.actual == pytest.approx(0, abs=1e-9)
    forecasts = Forecasts(rows.actual + 1e-3)
    # The training prices have a mean of about 2000, so that errors at lower prices are divided by 0.002.
    assert rows.losses("MAPE", forecasts) == pytest.approx(50, rel=0.01)
    assert evaluate_forecasts(rows, forecasts).model["MAPE"] == pytest.approx(50, rel=0.01)


def test_mape_of_forecasts_without_training_prices_clamps_nothing():
    tiny = np.array([1e-12])
    assert METRICS["MAPE"](tiny, Forecasts(2 * tiny)) == pytest.approx(100)


@given(seed=st.integers(0, 99), exponent=st.floats(-12, 12), log=st.booleans())
def test_mape_does_not_depend_on_the_unit_of_the_prices(seed, exponent, log):
    values = 100 * np.exp(np.cumsum(np.random.default_rng(seed).normal(0, 0.02, 200)))
    found = []
    for factor in (1.0, 10.0**exponent):
        rows = prepared(factor * values, log).rows("test", 20)
        found.append(evaluate_forecasts(rows, Forecasts(rows.previous * 1.01)))
    assert found[1].model["MAPE"] == pytest.approx(found[0].model["MAPE"], rel=1e-6)
    assert found[1].persistence["MAPE"] == pytest.approx(found[0].persistence["MAPE"], rel=1e-6)


@pytest.fixture
def cheap_coin(snapshot):
    """A coin whose prices lie around 1e-5."""
    return replace(snapshot, matrix=snapshot.matrix * 1e-9)


CHEAP = TrainConfig(sequence_length=20, hidden_size=4, num_layers=1, max_epochs=1, batch_size=128)


def test_training_scores_a_coin_of_tiny_prices_with_its_true_mape(cheap_coin):
    result = train(cheap_coin, CHEAP)
    prices = cheap_coin.values[-result.test.rows - 1 :]
    changes = 100 * np.abs(np.diff(prices)) / prices[1:]
    assert result.test.persistence["MAPE"] == pytest.approx(changes.mean())
    forecasts = forecast_part(result.checkpoint, prepare(cheap_coin, CHEAP), "test").points
    errors = 100 * np.abs(forecasts - prices[1:]) / prices[1:]
    assert result.test.model["MAPE"] == pytest.approx(errors.mean())
    assert result.validation.persistence["MAPE"] > 1


def test_a_backtest_scores_a_coin_of_tiny_prices_with_its_true_mape(cheap_coin):
    done = backtest(cheap_coin, CHEAP, BacktestSettings(folds=2, fold_rows=60, seeds=1, baselines=("drift",)))
    scores, prices = done.scores(), cheap_coin.values[-120:]
    errors = 100 * np.abs(done.model(0).points - prices) / prices
    assert scores.mean["MAPE"] == pytest.approx(errors.mean())
    assert scores.persistence["MAPE"] == pytest.approx(
        np.mean([done.scores(fold).persistence["MAPE"] for fold in range(2)])
    )
    assert scores.persistence["MAPE"] > 1


@given(actual=prices, noise=st.floats(0.001, 0.5))
def test_skill_is_zero_for_persistence_itself_and_one_for_an_exact_forecast(actual, noise):
    rows = Rows(actual, actual * (1 + noise))
    assert set(evaluate_forecasts(rows, rows.baseline).skill.values()) == {0}
    assert set(evaluate_forecasts(rows, Forecasts(actual)).skill.values()) == {1}


def test_a_config_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="hiden_size"):
        TrainConfig(hiden_size=3)
