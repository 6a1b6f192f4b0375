"""Volatility: its recursions, their fit, and the intervals of many steps that they carry."""

import dataclasses

import numpy as np
import pytest
from hourly import crypto
from hypothesis import given
from hypothesis import strategies as st

from forecast import Predictor, TrainConfig, evaluate, load_series, save_checkpoint, train
from forecast.errors import DataError, LevelError
from forecast.model.forecaster import HORIZONS, Forecaster, look_ahead, paths
from forecast.model.network import networks
from forecast.model.split import split_rows
from forecast.model.volatility import CONSTANT, HISTORY, Recursion, ewma, fit_recursion
from forecast.model.windows import prepare, range_variances
from forecast.scores.distribution import interval_probabilities

GJR = Recursion(omega=0.03, alpha=0.04, gamma=0.08, beta=0.89, history=HISTORY)


def simulate(recursion, rows, seed, df=6):
    """Changes with the recursion's variance."""
    generator, variance = np.random.default_rng(seed), 1.0
    changes = np.empty(rows)
    for row in range(rows):
        changes[row] = np.sqrt(variance * (df - 2) / df) * generator.standard_t(df)
        variance = (
            recursion.omega
            + (recursion.alpha + recursion.gamma * (changes[row] < 0)) * changes[row] ** 2
            + recursion.beta * variance
        )
    return changes


def series_of(snapshot, changes, **columns):
    from dataclasses import replace

    closes = 100 * np.exp(np.cumsum(0.01 * changes))
    dates = snapshot.dates[0] + np.arange(len(closes))
    matrix = np.stack([closes, *columns.values()], axis=1)
    return replace(snapshot, matrix=matrix, dates=dates, columns=("Close", *columns))


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(0, 10), st.floats(0, 1), st.integers(1, 50))
def test_variances_are_those_of_the_recursion_step_by_step(seed, count, unknown, share, history_length):
    changes = np.random.default_rng(seed).standard_t(4, count)
    steps = max(1, int(share * count))
    expected = []
    for end in range(1, count + 1):
        history = changes[max(0, end - history_length) : end]
        variance = (1 + np.sum(history**2)) / (1 + len(history))
        for change in history:
            variance = GJR.omega + (GJR.alpha + GJR.gamma * (change < 0)) * change**2 + GJR.beta * variance
        expected.append(variance)
    padded = np.concatenate([np.full(unknown, np.nan), changes])[np.newaxis]
    recursion = dataclasses.replace(GJR, history=history_length)
    assert recursion.variances(padded, None, steps)[0] == pytest.approx(expected[count - steps :])


def test_the_volatility_does_not_depend_on_the_length_of_the_window(snapshot):
    found = []
    for length in (20, 60, 120):
        config = TrainConfig(source="snapshot", sequence_length=length, likelihood="student_t")
        prepared = prepare(snapshot, config)
        windows = prepared.windows("validation", prepared.encoding(config))
        found.append((windows.volatility, windows.inputs[:, -10:, 2:]))
    for volatility, seen in found[1:]:
        assert np.array_equal(volatility, found[0][0])
        assert seen == pytest.approx(found[0][1], rel=1e-6)


def test_the_fit_is_as_likely_as_that_of_arch():
    from arch.univariate import GARCH, StudentsT, ZeroMean
    from scipy.special import gammaln

    changes = simulate(GJR, 4000, 1)
    model = ZeroMean(changes, volatility=GARCH(p=1, o=1, q=1), distribution=StudentsT(), rescale=False)
    theirs = model.fit(disp="off", show_warning=False)
    ours = fit_recursion(changes)
    recursion = dataclasses.replace(ours, history=len(changes))
    variances = np.append(1.0, recursion.variances(changes[np.newaxis], None, len(changes))[0, :-1])

    def likelihood(variances, df):
        squares = changes**2 / variances / (df - 2)
        constant = gammaln((df + 1) / 2) - gammaln(df / 2) - np.log(np.pi * (df - 2)) / 2
        return np.mean(constant - np.log(variances) / 2 - (df + 1) / 2 * np.log1p(squares))

    best = likelihood(np.asarray(theirs.conditional_volatility) ** 2, theirs.params["nu"])
    assert likelihood(variances, theirs.params["nu"]) > best - 5e-4
    assert ours.persistence == pytest.approx(GJR.persistence, abs=0.03)
    assert ours.gamma > 0.03
    assert ours.persistence < 1


def test_simulated_paths_have_the_variance_that_the_recursion_expects_and_no_drift():
    generator = np.random.default_rng(0)

    def draws(generator, shape):
        return generator.normal(size=shape)

    for recursion, first in ((GJR, 2.0), (CONSTANT, 2.0)):
        *_, sums = zip(
            range(50), paths(np.array([first**0.5]), draws, recursion, generator, 100_000), strict=False
        )
        sums = sums[1]
        expected, total = first, 0.0
        for _ in range(50):
            total += expected
            expected = recursion.omega + recursion.persistence * expected
        assert sums.var() == pytest.approx(total, rel=0.05)
        assert sums.mean() == pytest.approx(0, abs=0.1)


def test_range_variances_are_those_of_garman_and_klass_and_parkinson(snapshot):
    generator = np.random.default_rng(0)
    changes = generator.normal(size=300)
    closes = 100 * np.exp(np.cumsum(0.01 * changes))
    opens = closes * np.exp(0.004 * generator.normal(size=300))
    highs = np.maximum(opens, closes) * np.exp(0.005 * generator.random(300))
    lows = np.minimum(opens, closes) * np.exp(-0.005 * generator.random(300))
    series = series_of(snapshot, changes, Open=opens, High=highs, Low=lows)
    config = TrainConfig(source="x", input_columns=("Open", "High", "Low"), volatility="range")
    prepared = prepare(series, config)
    unit = np.std(np.diff(np.log(closes[: prepared.split.train_end])))
    found = range_variances(prepared.normalized[np.newaxis], prepared.normalization)[0]
    session = 0.5 * np.log(highs / lows) ** 2 - (2 * np.log(2) - 1) * np.log(closes / opens) ** 2
    overnight = np.log(opens[1:] / closes[:-1]) ** 2
    assert found == pytest.approx((np.maximum(session[1:], 0) + overnight) / unit**2)

    without = series_of(snapshot, changes, High=highs, Low=lows)
    prepared = prepare(without, config.model_copy(update={"input_columns": ("High", "Low")}))
    found = range_variances(prepared.normalized[np.newaxis], prepared.normalization)[0]
    assert found == pytest.approx(np.log(highs / lows)[1:] ** 2 / (4 * np.log(2)) / unit**2)
    assert prepared.normalization.denormalize(prepared.normalized) == pytest.approx(without.matrix)


def test_a_model_that_sees_the_range_forecasts_many_steps_and_needs_high_and_low(snapshot, tmp_path):
    changes = simulate(GJR, 600, 0)
    closes = 100 * np.exp(np.cumsum(0.01 * changes))
    series = series_of(snapshot, changes, High=closes * 1.01, Low=closes * (0.99 - 0.001 * np.abs(changes)))
    # A range that never varies says nothing.
    series.matrix[:, 1] *= 1 + 0.001 * np.abs(changes)
    options = {
        "source": "x",
        "likelihood": "student_t",
        "sequence_length": 20,
        "hidden_size": 8,
        "num_layers": 1,
    }
    config = TrainConfig(**options, input_columns=("High", "Low"), volatility="range", max_epochs=2)
    checkpoint = train(series, config).checkpoint
    assert checkpoint.recursions[0].delta > 0
    save_checkpoint(checkpoint, tmp_path / "range.pt")
    predictor = Predictor(tmp_path / "range.pt")
    bounds = predictor.predict_intervals([checkpoint.latest_window], [0.9], 20)
    assert bounds.shape == (1, 20, 1, 2)
    widths = np.diff(bounds[0, :, 0])[:, 0]
    assert 3 < widths[-1] / widths[0] < 7
    with pytest.raises(DataError, match=r"`volatility=range` needs .* High and Low"):
        train(series_of(snapshot, changes), TrainConfig(**options, volatility="range"))


@pytest.mark.parametrize("likelihood", ["mse", "student_t"])
def test_intervals_of_many_steps_stay_centred_and_grow_about_with_the_root_of_the_steps(
    snapshot, tmp_path, likelihood
):
    # A learning rate of 2e-3 once gave 27 times the width of square-root scaling.
    config = TrainConfig(
        source="snapshot",
        likelihood=likelihood,
        learning_rate=2e-3,
        hidden_size=16,
        num_layers=1,
        max_epochs=8,
    )
    checkpoint = train(snapshot, config).checkpoint
    save_checkpoint(checkpoint, tmp_path / "model.pt")
    predictor = Predictor(tmp_path / "model.pt")
    for end in (-1, -200, -400):
        window = snapshot.values[end - 300 : end]
        prices = predictor.predict_steps([window], 250)[0]
        bounds = predictor.predict_intervals([window], [0.9], 250)[0, :, 0]
        lower, upper = np.log(bounds).T
        growth = (upper - lower) / (upper[0] - lower[0]) / np.sqrt(np.arange(1, 251))
        assert growth.min() > 0.5
        assert growth.max() < 3
        centre = (lower + upper) / 2 - np.log(prices)
        assert abs(centre[-1]) < 0.1 * (upper[-1] - lower[-1])


def test_levels_that_the_paths_cannot_hold_are_refused_beyond_one_step(snapshot, tmp_path):
    config = TrainConfig(source="snapshot", hidden_size=8, max_epochs=1)
    save_checkpoint(train(snapshot, config).checkpoint, tmp_path / "model.pt")
    predictor = Predictor(tmp_path / "model.pt")
    window = snapshot.values[-100:]
    assert predictor.predict_intervals([window], [0.9999]).shape == (1, 1, 1, 2)
    with pytest.raises(LevelError, match=r"up to level 0.995 beyond one step; choose a lower level"):
        predictor.predict_intervals([window], [0.9999], 2)
    wide, wider = np.ptp(predictor.predict_intervals([window], [0.99], 2)[0, :, 0], axis=1)
    assert wider > wide


def test_intervals_of_many_steps_hold_their_share_of_new_rows(snapshot):
    series = series_of(snapshot, simulate(GJR, 4000, 2))
    config = TrainConfig(
        source="x", likelihood="student_t", sequence_length=20, hidden_size=8, num_layers=1, max_epochs=2
    )
    checkpoint = train(series, config).checkpoint
    prepared = prepare(series, config)
    bounds = interval_probabilities([0.9])
    ahead = look_ahead(Forecaster.of(checkpoint, networks(checkpoint)), prepared, "test", HORIZONS, bounds)
    lower, upper = np.moveaxis(ahead.quantiles, 2, 0)
    for column, horizon in enumerate(HORIZONS):
        known = ~np.isnan(ahead.targets[:, column])
        assert known.sum() == len(known) - horizon + 1
        inside = (lower <= ahead.targets) & (ahead.targets <= upper)
        # At 20 steps, the 600 rows are 30 stretches that do not overlap: two standard errors are 11 points.
        assert 0.79 <= inside[known, column].mean() < 1


def changes_of_season(seed, rows=900):
    generator = np.random.default_rng(seed)
    return np.sin(2 * np.pi * np.arange(rows) / 12) + 0.1 * generator.normal(size=rows)


def changes_that_follow_each_other(seed, rows=900):
    changes = 0.3 * np.random.default_rng(seed).standard_t(5, rows)
    for row in range(1, rows):
        changes[row] += 0.9 * changes[row - 1]
    return changes


@pytest.mark.parametrize(
    ("changes", "least"), [(changes_of_season(3), 0.75), (changes_that_follow_each_other(1), 0.6)]
)
def test_intervals_of_many_steps_fit_changes_that_the_model_forecasts(snapshot, changes, least):
    series = series_of(snapshot, changes)
    config = TrainConfig(
        source="x", sequence_length=20, hidden_size=16, max_epochs=40, learning_rate=5e-3, members=1
    )
    checkpoint = train(series, config).checkpoint
    ahead = look_ahead(
        Forecaster.of(checkpoint, networks(checkpoint)),
        prepare(series, config),
        "test",
        HORIZONS,
        interval_probabilities([0.9]),
    )
    lower, upper = np.moveaxis(ahead.quantiles, 2, 0)
    inside = ((lower <= ahead.targets) & (ahead.targets <= upper)).sum(axis=0)
    assert (inside / (~np.isnan(ahead.targets)).sum(axis=0) > least).all()
    growth = (upper - lower).mean(axis=0) / np.sqrt(HORIZONS)
    assert growth[-1] / growth[0] < 10


def test_a_price_that_stood_still_will_move_again(snapshot):
    changes = np.zeros((1, HISTORY))
    assert GJR.variances(changes, None, 1)[0, 0] >= 0.01
    assert ewma().variances(changes, None, 1)[0, 0] == 0.01
    mostly_zero = np.where(np.random.default_rng(0).random(900) < 0.08, simulate(GJR, 900, 0), 0.0)
    fitted = fit_recursion(mostly_zero / mostly_zero.std())
    assert fitted.alpha + fitted.gamma / 2 <= 0.4
    assert fitted.omega / (1 - fitted.persistence) == pytest.approx(1, rel=0.01)


def test_rows_that_a_model_was_trained_on_are_not_scored_as_new_ones(snapshot, tiny_result):
    from dataclasses import replace

    rows = slice(None, len(snapshot) - 300)
    earlier = replace(snapshot, matrix=snapshot.matrix[rows], dates=snapshot.dates[rows])
    with pytest.raises(
        DataError, match=r"the test rows of this series begin at .*; use a series that ends later"
    ):
        evaluate(tiny_result.checkpoint, earlier)
    split = split_rows(len(earlier), 0.85, 0.15)
    assert str(earlier.dates[split.validation_end]) < tiny_result.checkpoint.validated_until


def test_an_hourly_model_is_scored_on_the_rows_that_begin_within_the_day_of_its_last_validation_row(tmp_path):
    source = tmp_path / "hours.csv"
    crypto(rows=900).to_csv(source, index=False)
    series = load_series("BTC-USD", source=str(source), interval="1h")
    config = TrainConfig(source=str(source), interval="1h", sequence_length=20, hidden_size=4, max_epochs=1)
    result = train(series, config)
    split = split_rows(len(series), 0.85, 0.15)
    last, first = series.timeline.text(series.dates[split.validation_end - 1 :][:2])
    assert last[:10] == first[:10]
    assert evaluate(result.checkpoint, series) == result.test


def test_prices_that_stand_still_in_the_validation_rows_do_not_break_the_calibration(snapshot):
    changes = simulate(GJR, 500, 3)
    changes[300:] = 0
    series = series_of(snapshot, changes)
    for likelihood in ("mse", "student_t"):
        config = TrainConfig(
            source="x", likelihood=likelihood, sequence_length=20, hidden_size=4, max_epochs=1, members=1
        )
        stretches = train(series, config).checkpoint.horizon_stretches
        assert all(np.isfinite(factor) and factor > 0 for factor in stretches.values())


def test_the_window_alone_is_the_volatility_of_earlier_versions():
    changes = np.random.default_rng(0).normal(size=(3, 19))
    weights = 0.06 * 0.94 ** np.arange(18, -1, -1)
    expected = changes**2 @ weights + 0.94**19
    assert ewma(19, starts_at_training=True).variances(changes, None, 1)[:, 0] == pytest.approx(expected)
