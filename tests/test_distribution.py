"""Distributions: their quantiles, their calibration and their scores."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from scipy import stats
from scipy.special import stdtrit

from forecast import TrainConfig
from forecast.backtest.significance import clark_west, diebold_mariano, long_run_variance
from forecast.model.likelihood import calibration_scores, distribution, stretch
from forecast.model.loss import loss
from forecast.model.normalization import Normalization, Scaling
from forecast.model.split import split_rows
from forecast.model.training import Seen, cross_calibrated
from forecast.model.volatility import RISKMETRICS_DECAY, ewma
from forecast.model.windows import LOG_SCALE, Encoding, PreparedSeries, window_recursion
from forecast.scores.distribution import (
    NODES,
    PROBABILITIES,
    Conformal,
    StudentT,
    interval_probabilities,
    t_quantiles,
)
from forecast.scores.metrics import (
    LEVELS,
    METRICS,
    Evaluation,
    Forecasts,
    Rows,
    binomial_interval,
    evaluate_forecasts,
    probability_integral_transform,
)

positive = st.floats(0.01, 100)


@given(st.integers(0, 2**32 - 1), positive, st.floats(2.5, 50))
def test_the_student_t_loss_is_the_mean_negative_log_density(seed, volatility, df):
    generator = np.random.default_rng(seed)
    location, targets = generator.normal(size=20), generator.normal(size=20)
    outputs = np.stack([location, generator.normal(0, 0.5, 20), np.full(20, np.log((df - 2) / 3))], axis=1)
    volatilities = np.full(20, volatility)
    learned = distribution("student_t", outputs[:, np.newaxis], volatilities[:, np.newaxis], None)
    parameters = (values[:, 0] for values in (learned.df, learned.location, learned.scale))
    expected = -stats.t.logpdf(targets, *parameters).mean()
    found = loss("student_t", *(torch.from_numpy(values) for values in (outputs, volatilities, targets)))
    assert float(found) == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert learned.df[:, 0] == pytest.approx(df, rel=1e-5)


def test_an_output_of_zero_is_persistence_with_the_volatility_as_standard_deviation():
    learned = distribution(
        "student_t", np.zeros((2, 1, 3), np.float32), np.array([[1], [4]], np.float32), None
    )
    assert learned.center.tolist() == [0, 0]
    assert learned.spread == pytest.approx([1, 4])


@given(level=st.floats(0.01, 0.99), df=st.floats(2.1, 100))
def test_student_t_quantiles_are_those_of_scipy_and_bounds_are_symmetric(level, df):
    forecast = StudentT(np.array([[3.0]]), np.array([[2.0]]), np.array([[df]]))
    lower, upper = forecast.quantiles(interval_probabilities([level]))[0]
    assert upper == pytest.approx(stats.t.ppf((1 + level) / 2, df, 3, 2), rel=1e-6)
    assert lower + upper == pytest.approx(6, rel=1e-6)


@given(st.integers(0, 2**32 - 1), st.integers(20, 300), st.sampled_from([0.5, 0.8, 0.9]))
def test_a_conformal_interval_leaves_out_no_more_of_the_rows_it_was_made_from_than_it_may(seed, count, level):
    errors = np.sort(np.random.default_rng(seed).standard_t(3, count))
    lower, upper = Conformal(np.zeros(1), np.ones(1), errors).quantiles(interval_probabilities([level]))[0]
    # Of these rows and one more that is exchangeable with them, at least a share of `level` must be inside.
    assert ((lower <= errors) & (errors <= upper)).sum() + 1 >= level * (count + 1)
    assert 0 < level <= Conformal(np.zeros(1), np.ones(1), errors).widest_level


def test_conformal_intervals_hold_their_share_of_new_rows():
    generator = np.random.default_rng(0)
    inside = []
    for _ in range(400):
        known, new = generator.standard_t(4, 99), generator.standard_t(4, 50)
        lower, upper = Conformal(np.zeros(1), np.ones(1), np.sort(known)).quantiles(
            interval_probabilities([0.8])
        )[0]
        inside.append(((lower <= new) & (new <= upper)).mean())
    assert np.mean(inside) == pytest.approx(0.8, abs=0.02)


@given(st.integers(0, 2**32 - 1), st.floats(0.2, 5))
def test_a_learned_interval_is_widened_to_hold_nine_tenths_of_the_validation_rows_and_never_narrowed(
    seed, true
):
    generator = np.random.default_rng(seed)
    outputs, volatility = np.zeros((200, 1, 3), np.float32), np.ones((200, 1), np.float32)
    targets = generator.normal(0, true, 200).astype(np.float32)
    scores = calibration_scores("student_t", outputs, volatility, targets)
    lower, upper = (
        distribution("student_t", outputs, volatility, scores).quantiles(interval_probabilities([0.9])).T
    )
    assert ((lower - 1e-9 <= targets) & (targets <= upper + 1e-9)).mean() >= 0.9
    assert stretch(scores) >= 1
    if true < 0.5:
        assert stretch(scores) == 1


def encoding_of(normalization, recursions=None, **options):
    config = TrainConfig(**options)
    return Encoding(normalization, config, recursions or (window_recursion(config),))


@given(st.integers(0, 2**32 - 1), st.integers(2, 60))
def test_the_volatility_of_a_window_is_the_exponentially_weighted_variance_begun_with_the_trainings(
    seed, length
):
    normalization = Normalization((Scaling(mean=0.0, std=1.0, change_std=0.02, log=True),))
    values = np.cumsum(np.random.default_rng(seed).standard_t(3, length) * 0.02)
    variance = 1.0
    for change in np.diff(values) / 0.02:
        variance = RISKMETRICS_DECAY * variance + (1 - RISKMETRICS_DECAY) * change**2
    window = values[np.newaxis, :, np.newaxis]
    options = {"sequence_length": length, "volatility": "window"}
    _, found = encoding_of(normalization, likelihood="student_t", **options).encode(window)
    assert found == pytest.approx([np.sqrt(variance)], rel=1e-5)
    _, levels = encoding_of(normalization, target="level", likelihood="mse", **options).encode(window)
    assert levels == pytest.approx(found * 0.02, rel=1e-5)


def test_a_student_t_model_sees_each_change_its_size_and_the_volatility_after_it():
    normalization = Normalization((Scaling(mean=0.0, std=1.0, change_std=1.0, log=False),))
    window = np.array([[[0.0], [0.04], [-0.05]]])
    encoding = encoding_of(normalization, (ewma(),), likelihood="student_t", sequence_length=3)
    inputs, volatility = encoding.encode(window)
    assert inputs[0, :, :2] == pytest.approx(np.array([[0.04, 0.2], [-0.09, 0.3]]), rel=1e-3)
    start = (1 + 0.04**2 + 0.09**2) / 3
    after = 0.94 * (0.94 * start + 0.06 * 0.04**2) + 0.06 * 0.09**2
    assert inputs[0, 1, 2] == pytest.approx(LOG_SCALE * np.log(after) / 2)
    assert volatility == pytest.approx([np.sqrt(after)])


def test_crps_of_quantiles_is_that_of_the_distribution():
    generator = np.random.default_rng(0)
    actual = generator.normal(1, 2, 500)
    quantiles = np.tile(stats.norm.ppf(PROBABILITIES, 0.5, 1.5), (500, 1))
    standard = (actual - 0.5) / 1.5
    # Gneiting & Raftery 2007, eq. 21.
    exact = 1.5 * (
        standard * (2 * stats.norm.cdf(standard) - 1) + 2 * stats.norm.pdf(standard) - 1 / np.sqrt(np.pi)
    )
    found = METRICS["CRPS"].losses(actual, Forecasts(actual, quantiles))
    assert found == pytest.approx(exact, rel=0.02, abs=0.005)


@given(st.lists(positive, min_size=1, max_size=20), positive)
def test_crps_of_a_point_forecast_is_its_absolute_error(actual, point):
    actual = np.array(actual)
    certain = Forecasts(np.full(len(actual), point), np.full((len(actual), len(PROBABILITIES)), point))
    assert METRICS["CRPS"](actual, certain) == pytest.approx(METRICS["MAE"](actual, certain))


def scored(generator, scale, rows=4000):
    actual = 100 + generator.normal(0, 1, rows)
    previous = np.full(rows, 100.0)
    quantiles = np.tile(100 + scale * stats.norm.ppf(PROBABILITIES), (rows, 1))
    return Rows(actual, previous, quantiles, naive_mae=2.0), Forecasts(previous, quantiles)


def test_coverage_and_width_are_those_of_a_calibrated_forecast_where_it_is_one():
    rows, right = scored(np.random.default_rng(1), 1.0)
    for interval in evaluate_forecasts(rows, right).intervals:
        assert interval.coverage == pytest.approx(interval.level, abs=0.02)
        assert interval.width == pytest.approx(2 * stats.norm.ppf((1 + interval.level) / 2), rel=1e-6)
    _, narrow = scored(np.random.default_rng(1), 0.5)
    assert evaluate_forecasts(rows, narrow).intervals[2].coverage < 0.65
    assert [interval.level for interval in evaluate_forecasts(rows, narrow).intervals] == list(LEVELS)


def test_the_integral_transform_is_uniform_for_a_calibrated_forecast_only():
    rows, right = scored(np.random.default_rng(2), 1.0)
    uniform = probability_integral_transform(rows.actual, right.quantiles)
    assert stats.kstest(uniform, "uniform").statistic < 0.03
    _, wide = scored(np.random.default_rng(2), 2.0)
    assert (
        stats.kstest(probability_integral_transform(rows.actual, wide.quantiles), "uniform").statistic > 0.1
    )


def test_an_evaluation_survives_being_plain_values():
    rows, forecasts = scored(np.random.default_rng(3), 1.0, rows=30)
    evaluation = evaluate_forecasts(rows, forecasts)
    assert TypeAdapter(Evaluation).validate_python(asdict(evaluation)) == evaluation
    assert evaluation.model["MASE"] == pytest.approx(evaluation.model["MAE"] / 2)


def test_direction_counts_only_rows_on_which_both_moved():
    previous, actual = np.full(5, 10.0), np.array([11.0, 9.0, 10.0, 12.0, 8.0])
    direction = evaluate_forecasts(
        Rows(actual, previous), Forecasts(np.array([12.0, 11, 11, 10, 9]))
    ).direction
    assert (direction.accuracy, direction.rows) == (2 / 3, 3)
    assert (direction.low, direction.high) == binomial_interval(2, 3)
    nothing = evaluate_forecasts(Rows(actual, previous), Forecasts(previous)).direction
    assert (nothing.accuracy, nothing.rows) == (None, 0)


@given(st.integers(1, 200), st.data())
def test_the_binomial_interval_is_scipys_exact_one(trials, data):
    successes = data.draw(st.integers(0, trials))
    expected = stats.binomtest(successes, trials).proportion_ci(0.95, method="exact")
    assert binomial_interval(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_clark_west_finds_skill_that_is_there_and_none_in_noise():
    generator = np.random.default_rng(0)
    signal, noise = generator.normal(0, 0.3, 2000), generator.normal(0, 1, 2000)
    actual, nothing = signal + noise, np.zeros(2000)
    assert clark_west(actual, nothing, signal)[1] < 0.001
    assert clark_west(actual, nothing, np.stack([signal, signal])) == clark_west(actual, nothing, signal)
    assert clark_west(noise, nothing, generator.normal(0, 0.3, 2000))[1] > 0.05
    assert clark_west(actual, nothing, nothing) == (0.0, 1.0)


def test_diebold_mariano_is_the_t_test_of_the_loss_difference_where_losses_are_independent():
    generator = np.random.default_rng(0)
    losses, others = generator.exponential(1.0, 3000), generator.exponential(1.05, 3000)
    expected = stats.ttest_rel(losses, others)
    assert diebold_mariano(losses, others)[0] == pytest.approx(expected.statistic, rel=0.1)
    assert diebold_mariano(losses, losses) == (0.0, 1.0)


def test_the_long_run_variance_is_that_of_a_mean_of_values_that_depend_on_each_other():
    generator = np.random.default_rng(0)
    found = []
    for _ in range(200):
        shocks = generator.normal(0, 1, 2001)
        found.append(long_run_variance(shocks[1:] + 0.5 * shocks[:-1]))
    # For a moving average: the square of the sum of its weights (1 + 0.5), not the sum of their squares (1.25).
    assert np.mean(found) == pytest.approx(2.25, rel=0.1)


def test_draws_have_no_mean_a_variance_of_one_and_with_the_spread_the_interval_without_the_stretch():
    generator = np.random.default_rng(0)
    ones = np.ones((1, 1))
    for forecast, stretch_ in (
        (StudentT(0 * ones, ones, 8 * ones, stretch=2.0), 2),
        (Conformal(np.zeros(1), np.ones(1), np.sort(0.3 + 2 * generator.normal(size=999))), 1),
    ):
        draws = forecast.draws(generator, (1, 100_000))
        assert draws.mean() == pytest.approx(0, abs=0.01)
        assert draws.std() == pytest.approx(1, abs=0.02)
        lower, upper = forecast.quantiles(np.array([0.05, 0.95]))[0]
        drawn = np.quantile(forecast.spread[0] * draws, 0.95) - np.quantile(forecast.spread[0] * draws, 0.05)
        assert (upper - lower) / drawn == pytest.approx(stretch_, rel=0.05)


@given(st.integers(0, 2**32 - 1), st.integers(2, 6))
def test_the_quantiles_of_several_members_are_the_means_of_theirs(seed, members):
    generator = np.random.default_rng(seed)
    location, scale, df = generator.normal(size=(3, 5, members))
    pooled = StudentT(location, np.exp(scale), 2 + np.exp(df), stretch=1.5)
    each = [
        StudentT(location[:, [i]], np.exp(scale[:, [i]]), 2 + np.exp(df[:, [i]]), stretch=1.5)
        for i in range(members)
    ]
    expected = np.mean([one.quantiles(PROBABILITIES) for one in each], axis=0)
    assert pooled.quantiles(PROBABILITIES) == pytest.approx(expected)


def test_validation_intervals_are_not_made_from_the_errors_they_are_scored_on():
    values = np.random.default_rng(0).normal(0, 0.01, (400, 1)).cumsum(axis=0)
    split = split_rows(400, 0.85, 0.15)
    prepared = PreparedSeries(values, Normalization((Scaling(0.0, 1.0, 0.01, True),)), split)
    encoding = prepared.encoding(TrainConfig(sequence_length=10, likelihood="mse"))
    windows = prepared.windows("validation", encoding)
    outputs = np.zeros((len(windows), 1), np.float32)
    (before,) = cross_calibrated(Seen.by_one(outputs, [windows], [encoding]))
    windows.targets[0] = 1e3
    (after,) = cross_calibrated(Seen.by_one(outputs, [windows], [encoding]))
    middle = len(windows) // 2
    assert np.array_equal(before.quantiles[:middle], after.quantiles[:middle])
    assert not np.array_equal(before.quantiles[middle:], after.quantiles[middle:])


@given(
    st.lists(st.floats(2.0, 1e9), min_size=NODES + 1, max_size=60),
    st.lists(st.floats(5e-5, 1 - 5e-5), min_size=1, max_size=9),
)
def test_interpolated_quantiles_of_student_t_are_the_exact_ones(df, probabilities):
    exact = stdtrit(np.array(df)[:, np.newaxis], probabilities)
    found = t_quantiles(np.array(df), np.array(probabilities))
    assert found == pytest.approx(exact, rel=1e-9, abs=1e-9)
