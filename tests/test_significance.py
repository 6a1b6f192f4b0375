"""Tests of calibration, of directions and of superiority: known values, and how often they reject by chance."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import special, stats

from forecast.backtest import significance
from forecast.backtest.significance import (
    christoffersen,
    diebold_mariano,
    kupiec,
    long_run_variance,
    pesaran_timmermann,
    superior_predictive_ability,
)

flags = arrays(np.bool_, st.integers(0, 60))
levels = st.floats(0.01, 0.99)
differences = arrays(np.float64, st.integers(2, 80), elements=st.floats(-100, 100, width=16))


def rejected(p_values):
    """Share of samples on which a test of 5 % rejects."""
    return np.mean(np.array(p_values) < 0.05)


def with_misses(misses, count):
    return np.arange(count) >= misses


def in_clusters(generator, count, level, stay):
    """Flags of which a share ``level`` is true, and of which false ones are followed by false with chance ``stay``."""
    start = (1 - stay) * (1 - level) / level
    chances, inside = generator.random(count), np.ones(count, bool)
    missed = False
    for row in range(count):
        missed = chances[row] < (stay if missed else start)
        inside[row] = not missed
    return inside


@pytest.mark.parametrize(
    ("level", "count", "fewest", "most"),
    [
        (0.99, 255, 1, 6),  # printed as N < 7, but no miss at all has a ratio of 5.1
        (0.99, 510, 2, 10),
        (0.99, 1000, 5, 16),
        (0.95, 255, 7, 20),
        (0.95, 510, 17, 35),
        (0.95, 1000, 38, 64),
    ],
)
def test_kupiec_accepts_the_numbers_of_misses_of_his_table(level, count, fewest, most):
    accepted = [n for n in range(200) if kupiec(with_misses(n, count), level)[1] >= 0.05]
    assert (accepted[0], accepted[-1]) == (fewest, most)


def test_kupiec_rejects_the_right_level_on_one_sample_in_twenty_and_the_wrong_one_on_most():
    inside = np.random.default_rng(0).random((2000, 500)) < 0.9
    assert rejected([kupiec(row, 0.9)[1] for row in inside]) == pytest.approx(0.05, abs=0.015)
    assert rejected([kupiec(row, 0.95)[1] for row in inside]) > 0.9
    assert rejected([kupiec(row, 0.85)[1] for row in inside]) > 0.9


@given(inside=flags, level=levels)
def test_coverage_tests_are_finite_and_independence_only_adds(inside, level):
    alone, both = kupiec(inside, level), christoffersen(inside, level)
    assert 0 <= alone[0] <= both[0] < math.inf
    assert 0 <= min(alone[1], both[1]) <= max(alone[1], both[1]) <= 1


@given(inside=flags, level=levels)
def test_the_part_of_independence_is_the_g_test_of_transitions(inside, level):
    table = np.zeros((2, 2))
    np.add.at(table, (inside[:-1].astype(int), inside[1:].astype(int)), 1)
    expected = 0.0
    if table.sum(axis=0).all() and table.sum(axis=1).all():
        expected = stats.chi2_contingency(table, correction=False, lambda_="log-likelihood").statistic
    statistic, p_value = christoffersen(inside, level)
    assert statistic - kupiec(inside, level)[0] == pytest.approx(expected, abs=1e-8)
    assert p_value == pytest.approx(stats.chi2.sf(statistic, 2))


def test_christoffersen_finds_misses_in_clusters_that_kupiec_accepts():
    generator = np.random.default_rng(0)
    clustered = [in_clusters(generator, 500, 0.9, 0.4) for _ in range(200)]
    even = with_misses(0, 500)
    even[:100:2] = False  # 50 misses, each followed by a hit
    block = with_misses(50, 500)
    assert rejected([christoffersen(row, 0.9)[1] for row in clustered]) > 0.95
    for row in (even, block):
        assert kupiec(row, 0.9) == (0, 1)
        assert christoffersen(row, 0.9)[1] < 0.01


def test_christoffersen_rejects_independent_hits_of_the_right_level_on_one_sample_in_twenty():
    inside = np.random.default_rng(1).random((2000, 500)) < 0.8
    assert rejected([christoffersen(row, 0.8)[1] for row in inside]) == pytest.approx(0.05, abs=0.015)


def test_coverage_without_rows_or_with_one_kind_of_row_is_defined():
    nothing = np.zeros(0, bool)
    assert kupiec(nothing, 0.9) == christoffersen(nothing, 0.9) == (0, 1)
    for row in (np.ones(50, bool), np.zeros(50, bool), np.ones(1, bool)):
        assert christoffersen(row, 0.9)[0] == kupiec(row, 0.9)[0]
    assert kupiec(np.ones(50, bool), 0.9)[0] == pytest.approx(-100 * math.log(0.9))


def textbook(actual, forecast):
    """The statistic as Pesaran & Timmermann write it."""
    n, x, y = len(actual), np.mean(actual > 0), np.mean(forecast > 0)
    right, chance = np.mean(actual * forecast > 0), x * y + (1 - x) * (1 - y)
    of_right = chance * (1 - chance) / n
    of_chance = ((2 * y - 1) ** 2 * x * (1 - x) + (2 * x - 1) ** 2 * y * (1 - y)) / n
    of_chance += 4 * x * y * (1 - x) * (1 - y) / n**2
    return (right - chance) / math.sqrt(of_right - of_chance)


def test_pesaran_timmermann_agrees_with_a_calculation_by_hand():
    # Of 10 rows, 7 are right; half the prices rise and 6 forecasts do, so 5 would be right by chance. The variances
    # are 0.5 * 0.5 / 10 = 0.025, and 0.2^2 * 0.25 / 10 + 4 * 0.5 * 0.6 * 0.5 * 0.4 / 100 = 0.0034.
    actual = np.array([1, 2, 3, 1, 2, -1, -3, -1, -2, -1.0])
    forecast = np.array([1, 1, 5, 1, -1, 1, 2, -1, -1, -1.0])
    statistic, p_value = pesaran_timmermann(actual, forecast)
    assert statistic == pytest.approx(0.2 / math.sqrt(0.025 - 0.0034))
    assert p_value == pytest.approx(stats.norm.sf(statistic))


@given(st.lists(st.tuples(st.sampled_from([-2, -1, 0, 1]), st.sampled_from([-1, 0, 3])), max_size=60))
def test_pesaran_timmermann_is_the_textbook_statistic_of_the_rows_that_moved(pairs):
    actual, forecast = np.array(pairs, float).reshape(-1, 2).T
    kept = (actual != 0) & (forecast != 0)
    found = pesaran_timmermann(actual, forecast)
    assert found == pesaran_timmermann(actual[kept], forecast[kept])
    if all(len(np.unique(moves[kept] > 0)) == 2 for moves in (actual, forecast)):
        assert found[0] == pytest.approx(textbook(actual[kept], forecast[kept]), abs=1e-9)
        assert pesaran_timmermann(actual, -forecast)[0] == pytest.approx(-found[0], abs=1e-9)
    else:
        assert found == (0, 1)


def test_pesaran_timmermann_sees_skill_and_takes_a_drift_for_none():
    generator = np.random.default_rng(0)
    actual, noise = generator.normal(0.3, 1, (1000, 200)), generator.normal(0.3, 1, (1000, 200))
    by_chance = [pesaran_timmermann(*rows)[1] for rows in zip(actual, noise, strict=True)]
    skilled = [pesaran_timmermann(*rows)[1] for rows in zip(actual, noise + actual, strict=True)]
    assert rejected(by_chance) == pytest.approx(0.05, abs=0.02)
    assert rejected(skilled) > 0.99


@given(differences)
def test_diebold_mariano_one_step_ahead_is_to_the_last_bit_what_it_was(values):
    n, deviation = len(values), math.sqrt(long_run_variance(values))
    expected = (0.0, 1.0)
    if deviation > 0:
        statistic = math.sqrt(n - 1) * float(values.mean()) / deviation
        expected = (statistic, 2 * float(special.stdtr(n - 1, -abs(statistic))))
    found = diebold_mariano(values, np.zeros(n))
    assert found == diebold_mariano(values, np.zeros(n), horizon=1) == expected


def overlap_variance(values, horizon):
    """The variance of the mean of errors of so many steps, times n, as Diebold & Mariano (1995) write it."""
    centred = values - values.mean()
    products = np.correlate(centred, centred, "full") / len(values)
    middle = len(values) - 1
    return products[middle - horizon + 1 : middle + horizon].sum()


@given(values=differences, horizon=st.integers(2, 100))
def test_diebold_mariano_is_that_of_harvey_leybourne_and_newbold(values, horizon):
    n = len(values)
    statistic, p_value = diebold_mariano(values, np.zeros(n), horizon)
    bartlett = long_run_variance(values, horizon - 1)
    if horizon >= n or bartlett == 0:
        assert (statistic, p_value) == (0, 1)
        return
    variance = overlap_variance(values, horizon)
    # A sum that is zero but for rounding may have either sign.
    assume(abs(variance) > 1e-9 * np.square(values).max())
    variance = variance if variance > 0 else bartlett
    plain = values.mean() / math.sqrt(variance / n)
    factor = math.sqrt((n + 1 - 2 * horizon + horizon * (horizon - 1) / n) / n)
    assert statistic == pytest.approx(factor * plain, rel=1e-4, abs=1e-9)
    assert p_value == pytest.approx(2 * stats.t.sf(abs(statistic), n - 1))


def test_diebold_mariano_of_errors_whose_overlap_has_no_positive_variance_takes_the_long_run_one():
    values = np.tile([1.0, -1.0, 0.1], 20)
    assert overlap_variance(values, 2) < 0 < long_run_variance(values, 1)
    statistic, p_value = diebold_mariano(values, np.zeros(60), 2)
    assert statistic > 0
    assert 0 < p_value < 1


@pytest.mark.parametrize(("rows", "most"), [(250, 0.11), (1000, 0.07)])
def test_diebold_mariano_rejects_equal_forecasters_seldom_where_it_knows_of_the_overlap(rows, most):
    shocks = np.random.default_rng(0).standard_normal((1000, rows + 19))
    sums = np.lib.stride_tricks.sliding_window_view(shocks, 20, axis=1).sum(axis=2)
    zeros = np.zeros(rows)
    unaware = rejected([diebold_mariano(row, zeros)[1] for row in sums])
    aware = rejected([diebold_mariano(row, zeros, 20)[1] for row in sums])
    assert aware < most < 0.4 * unaware
    assert rejected([diebold_mariano(row, zeros + 10, 20)[1] for row in sums]) > 0.95


@given(values=differences, least=st.integers(0, 100))
def test_the_long_run_variance_is_the_mean_square_of_sums_over_one_more_row_than_lags(values, least):
    lags = max(int(4 * (len(values) / 100) ** (2 / 9)), least)
    sums = np.convolve(values - values.mean(), np.ones(lags + 1))
    expected = np.square(sums).sum() / (lags + 1) / len(values)
    assert long_run_variance(values, least) == pytest.approx(
        expected, abs=1e-9 * (1 + np.square(values).max())
    )


def test_the_long_run_variance_keeps_its_rule_where_it_has_more_lags():
    values = np.random.default_rng(0).standard_normal(1000).cumsum()
    assert long_run_variance(values, 6) == long_run_variance(values) < long_run_variance(values, 7)


def test_a_better_model_among_twenty_is_found_and_the_same_one_as_the_benchmark_is_not():
    generator = np.random.default_rng(0)
    benchmark = generator.exponential(1, 500)
    losses = benchmark + generator.normal(0, 0.5, (20, 500))
    assert superior_predictive_ability(losses, benchmark) > 0.1
    losses[7] -= 0.15
    assert superior_predictive_ability(losses, benchmark) < 0.01
    assert superior_predictive_ability(losses, losses[7]) > 0.5
    assert superior_predictive_ability(losses, benchmark) == superior_predictive_ability(losses, benchmark)


def test_a_better_model_is_found_beside_one_whose_losses_vary_much_more():
    generator = np.random.default_rng(0)
    benchmark = np.ones(500)
    better, wild = benchmark + generator.normal(-0.15, 0.5, 500), benchmark + generator.normal(0, 100, 500)
    assert superior_predictive_ability(np.stack([better, wild]), benchmark) < 0.01


def test_models_that_are_far_worse_do_not_hide_one_that_is_better():
    generator = np.random.default_rng(0)
    benchmark, noise = generator.exponential(1, 300), generator.normal(0, 0.5, (1, 300))
    alone = benchmark + noise - noise.mean() - 0.06
    bad = benchmark + generator.normal(1, 0.5, (30, 300))
    p_value = superior_predictive_ability(alone, benchmark)
    assert 0.005 < p_value < 0.05  # two standard errors
    both = superior_predictive_ability(np.concatenate([bad, alone]), benchmark)
    assert both == pytest.approx(p_value, abs=0.02)


def test_the_best_of_models_without_skill_is_rarely_taken_for_better(monkeypatch):
    monkeypatch.setattr(significance, "RESAMPLES", 200)
    generator = np.random.default_rng(0)
    losses, benchmarks = generator.exponential(1, (150, 10, 200)), generator.exponential(1, (150, 200))
    found = [superior_predictive_ability(*sample) for sample in zip(losses, benchmarks, strict=True)]
    assert rejected(found) <= 0.1
    # The same models, one at a time and uncorrected, look better than the benchmark far more often.
    best = [
        min(diebold_mariano(row, other)[1] / 2 for row in rows if row.mean() < other.mean())
        for rows, other in zip(losses, benchmarks, strict=True)
        if (rows.mean(axis=1) < other.mean()).any()
    ]
    assert np.sum(np.array(best) < 0.05) > 2 * np.sum(np.array(found) < 0.05)


def test_superiority_without_variation_or_rows_is_defined():
    generator = np.random.default_rng(0)
    benchmark = generator.exponential(1, 200)
    same = np.stack([benchmark, benchmark * (1 + 1e-15), (benchmark + 0.1) - 0.1])
    shifted = np.stack([benchmark - 0.1, benchmark + 0.1])
    better = benchmark + generator.normal(-0.3, 0.5, 200)
    for losses in (same, shifted, np.zeros((0, 200))):
        assert superior_predictive_ability(losses, benchmark) == 1
        with_better = np.concatenate([losses, better[np.newaxis]])
        assert superior_predictive_ability(with_better, benchmark) < 0.01
    assert superior_predictive_ability(np.ones((2, 200)), np.zeros(200)) == 1
    for rows in range(3):
        assert superior_predictive_ability(np.zeros((2, rows)), np.arange(rows, dtype=float)) == 1
    assert 0 <= superior_predictive_ability(generator.random((2, 3)), generator.random(3)) <= 1
