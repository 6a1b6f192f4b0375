"""Tests of a live record: bets that are fair, bounds that hold, false alarms that are rare, changes that are found."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from forecast.scores.distribution import PROBABILITIES
from forecast.scores.metrics import (
    Forecasts,
    binomial_interval,
    probability_integral_transform,
    ranked_probability_scores,
)
from forecast.scores.sequential import (
    BINS,
    LARGEST,
    SESSIONS_A_YEAR,
    SKILL_BETS,
    calibration_alarm,
    challenger_evidence,
    coverage_bounds,
    difference_bound,
    pit,
    proof,
    skill_alarm,
    threshold,
)

COUNT = len(PROBABILITIES)
T5 = stats.t.ppf(PROBABILITIES, 5)
seeds = st.integers(0, 2**32 - 1)
prices = st.floats(-1e6, 1e6)


@st.composite
def quantile_rows(draw):
    """One row of quantiles, (1, 199): smooth, with jumps, or without any spread."""
    if draw(st.booleans()):
        values = np.random.default_rng(draw(seeds)).standard_t(2, COUNT) + draw(st.floats(-3, 3))
    else:
        values = draw(st.lists(prices, min_size=1, max_size=6))
    return np.sort(np.resize(values, COUNT))[np.newaxis] * draw(st.sampled_from([1e-9, 1.0, 1e6]))


def crps(price, quantiles):
    """The CRPS of one row of quantiles at each price."""
    price = np.atleast_1d(price)
    rows = np.broadcast_to(quantiles, (len(price), COUNT))
    return ranked_probability_scores(price, Forecasts(price, rows))


def one_row_a_session(count):
    return np.arange(count)


def shared_shocks(generator, sessions, symbols):
    """Student-t changes (sessions, symbols) whose signs and sizes depend on each other."""
    common = generator.standard_normal((sessions, 1))
    normal = math.sqrt(0.6) * common + math.sqrt(0.4) * generator.standard_normal((sessions, symbols))
    return normal / np.sqrt(generator.chisquare(5, (sessions, 1)) / 5)


def in_rows(changes):
    """Session numbers and changes of a record (sessions, symbols), in flat arrays."""
    return np.repeat(np.arange(len(changes)), changes.shape[1]), changes.ravel()


def widened(width, changes):
    """PITs of Student-t changes, (n,), in intervals of that width over the right one."""
    return pit(np.broadcast_to(width * T5, (len(changes), COUNT)), changes)


# Places


@given(quantile_rows(), prices)
def test_a_place_is_between_those_of_the_quantiles_next_to_the_price(quantiles, price):
    (place,) = pit(quantiles, np.array([price]))
    below, up_to = (quantiles < price).sum(), (quantiles <= price).sum()
    if below == up_to:
        assert below / BINS <= place <= (below + 1) / BINS
    else:
        assert place == pytest.approx((PROBABILITIES[below] + PROBABILITIES[up_to - 1]) / 2)
    assert 1 / 400 <= place <= 399 / 400


@given(seeds)
def test_a_place_is_linear_between_quantiles(seed):
    generator = np.random.default_rng(seed)
    quantiles = np.cumsum(generator.uniform(0.1, 1, (50, COUNT)), axis=1)
    probabilities = generator.uniform(PROBABILITIES[0], PROBABILITIES[-1], 50)
    actual = np.array(
        [np.interp(p, PROBABILITIES, row) for p, row in zip(probabilities, quantiles, strict=True)]
    )
    assert pit(quantiles, actual) == pytest.approx(probabilities, abs=1e-9)
    steps = probability_integral_transform(actual, quantiles)
    assert np.abs(pit(quantiles, actual) - steps).max() <= 0.5 / BINS + 1e-9


def test_a_price_beyond_all_quantiles_or_of_a_forecast_without_spread_has_a_place():
    quantiles = np.stack([np.arange(COUNT), np.arange(COUNT), np.full(COUNT, 7), np.full(COUNT, 7)]).astype(
        float
    )
    assert pit(quantiles, np.array([-1.0, COUNT, 7, 8])) == pytest.approx(
        [1 / 400, 399 / 400, 0.5, 399 / 400]
    )
    assert pit(np.empty((0, COUNT)), np.empty(0)).shape == (0,)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_place_or_a_bound_is_not_made_from_a_number_that_is_not_finite(wrong):
    quantiles = np.zeros((1, COUNT))
    broken = np.where(np.arange(COUNT) == 5, wrong, quantiles)
    with pytest.raises(ValueError, match="finite"):
        pit(quantiles, np.array([wrong]))
    with pytest.raises(ValueError, match="finite"):
        pit(broken, np.zeros(1))
    with pytest.raises(ValueError, match="finite"):
        difference_bound(quantiles, broken)


# Bets


def test_the_bet_on_calibration_pays_one_on_average_over_the_bins():
    middles = (np.arange(BINS) + 0.5) / BINS
    payoffs = [calibration_alarm(np.zeros(1, int), np.array([middle])).values[0] for middle in middles]
    assert min(payoffs) > 0
    assert np.mean(payoffs) == pytest.approx(1, abs=1e-12)


@given(st.integers(1, BINS - 1))
def test_a_place_at_a_quantile_is_in_the_bin_above_it(number):
    at, above = (
        calibration_alarm(np.zeros(1, int), np.array([place])).values[0]
        for place in (number / BINS, (number + 0.5) / BINS)
    )
    assert at == above


@given(quantile_rows(), quantile_rows())
def test_a_bet_on_skill_pays_at_most_one_on_average_if_the_forecast_is_right(quantiles, others):
    # Each quantile as often as the probabilities that are nearest to it: a distribution with these very quantiles.
    actual = np.repeat(quantiles[0], [3, *[2] * (COUNT - 2), 3])
    bounds = np.full(len(actual), difference_bound(quantiles, others)[0])
    differences = crps(actual, quantiles) - crps(actual, others)
    # The e-value of a session is the mean over its rows.
    (average,) = challenger_evidence(np.zeros(len(actual), int), differences, bounds).values
    assert 0 < average <= 1 + 1e-9


@given(quantile_rows(), quantile_rows(), st.lists(st.floats(-10, 10), min_size=1, max_size=50))
def test_no_price_makes_forecasts_better_by_more_than_the_bound_and_some_price_makes_them_so_by_as_much(
    quantiles, others, places
):
    known = np.concatenate([quantiles[0], others[0]])
    largest = np.abs(known).max()
    elsewhere = largest * np.array(places)
    (bound,) = difference_bound(quantiles, others)
    gains = crps(known, others) - crps(known, quantiles)
    assert gains.max() <= bound
    assert gains.max() == pytest.approx(bound, rel=1e-9, abs=1e-11 * largest)
    assert (crps(elsewhere, others) - crps(elsewhere, quantiles) <= bound).all()
    assert 0 <= bound <= 1.5 * np.abs(quantiles - others).max() + 1e-11 * largest


@given(quantile_rows())
def test_equal_forecasts_bet_nothing(quantiles):
    bound = difference_bound(quantiles, quantiles)
    assert bound[0] <= 1e-11 * np.abs(quantiles).max()
    assert challenger_evidence(np.zeros(1, int), np.zeros(1), bound).values.tolist() == [1]


def test_a_shift_has_itself_as_its_bound_and_a_narrower_forecast_gains_less_in_the_middle_than_it_can_lose():
    normal = stats.norm.ppf(PROBABILITIES)[np.newaxis]
    assert difference_bound(normal, normal + 0.3) == pytest.approx(0.3, rel=1e-6)
    narrower, wider = difference_bound(0.6 * normal, normal), difference_bound(normal, 0.6 * normal)
    # CRPS of a normal forecast with deviation s: at its mean s (sqrt(2) - 1) / sqrt(pi), far away |y| - s / sqrt(pi).
    assert narrower == pytest.approx(0.4 * (math.sqrt(2) - 1) / math.sqrt(math.pi), rel=0.02)
    assert wider == pytest.approx(0.4 / math.sqrt(math.pi), rel=0.02)


# Evidence


@st.composite
def records(draw):
    """Flat arrays of a record: sessions with gaps, and ratios of differences to their bounds."""
    steps = draw(st.lists(st.integers(0, 3), min_size=1, max_size=40))
    ratios = draw(arrays(np.float64, len(steps), elements=st.floats(-1, 4, width=32)))
    return np.cumsum(steps), ratios


@given(records(), st.floats(0.01, 100))
def test_evidence_is_that_of_the_recursions(record, bound):
    sessions, ratios = record
    numbers = np.unique(sessions)
    means = [ratios[sessions == number].mean() for number in numbers]
    restarted, product = np.zeros(len(SKILL_BETS)), np.ones(len(SKILL_BETS))
    alarms, proofs = [], []
    for mean in means:
        restarted, product = (1 + restarted) * (1 + SKILL_BETS * mean), product * (1 + SKILL_BETS * mean)
        alarms.append(restarted.mean())
        proofs.append(product.mean())
    bounds = np.full(len(ratios), bound)
    alarm = skill_alarm(sessions, bound * ratios, bounds)
    assert alarm.sessions.tolist() == numbers.tolist()
    assert alarm.values == pytest.approx(alarms, rel=1e-9)
    assert challenger_evidence(sessions, bound * ratios, bounds).values == pytest.approx(proofs, rel=1e-9)


@given(seeds, st.integers(1, 50))
def test_evidence_of_a_session_does_not_depend_on_later_rows(seed, symbols):
    sessions, changes = in_rows(shared_shocks(np.random.default_rng(seed), 12, symbols))
    places = widened(0.8, changes)
    whole = calibration_alarm(sessions, places)
    part = calibration_alarm(sessions[: 5 * symbols], places[: 5 * symbols])
    assert whole.values[:5] == pytest.approx(part.values, rel=1e-12)


def test_evidence_says_when_it_first_reached_a_value():
    evidence = skill_alarm(np.array([3, 5, 9]), np.array([0.0, 0, 1]), np.ones(3))
    assert evidence.values == pytest.approx([1, 2, 3 * (1 + SKILL_BETS.mean())])
    assert (evidence.first(0.5), evidence.first(2), evidence.first(2.5), evidence.first(99)) == (
        3,
        5,
        9,
        None,
    )


def test_evidence_stays_finite_in_a_long_record_that_is_wrong_or_right_every_day():
    count = 20_000
    wrong = calibration_alarm(one_row_a_session(count), np.full(count, 1 / 400))
    assert np.isfinite(wrong.values).all()
    assert wrong.values[-1] == pytest.approx(LARGEST)
    sessions, bounds = one_row_a_session(count), np.ones(count)
    assert challenger_evidence(sessions, -bounds, bounds).values[-1] == 0
    late = np.where(sessions < count - 60, -1.0, 1.0)
    assert skill_alarm(sessions, late, bounds).values[-1] > threshold(0.05)
    assert skill_alarm(sessions, -bounds, bounds).values[-1] > 0


def test_an_empty_record_has_no_evidence():
    none = np.empty(0)
    sessions = np.empty(0, dtype=np.int64)
    for evidence in (
        calibration_alarm(sessions, none),
        skill_alarm(sessions, none, none),
        challenger_evidence(sessions, none, none),
    ):
        assert evidence.sessions.shape == evidence.values.shape == (0,)
        assert evidence.first(0) is None


@pytest.mark.parametrize(
    ("sessions", "differences", "bounds", "message"),
    [
        ([1, 0], [0, 0], [1, 1], "fall"),
        ([0], [0, 0], [1, 1], "session"),
        ([0, 1], [0, 0], [1], "bound"),
        ([0, 1], [0, -1.1], [1, 1], "beyond"),
        ([0, 1], [0, -1], [1, 0], "beyond"),
        ([0, 1], [0, np.nan], [1, 1], "finite"),
        ([0, 1], [0, 0], [1, np.inf], "finite"),
    ],
)
def test_a_record_that_cannot_be_one_is_refused(sessions, differences, bounds, message):
    rows = np.array(sessions), np.array(differences, float), np.array(bounds, float)
    for test in (skill_alarm, challenger_evidence):
        with pytest.raises(ValueError, match=message):
            test(*rows)


@pytest.mark.parametrize("place", [-0.1, 1.1, np.nan])
def test_a_place_outside_of_its_range_is_refused(place):
    with pytest.raises(ValueError, match="PIT"):
        calibration_alarm(np.zeros(1, int), np.array([place]))


def test_thresholds_divide_the_share_between_alarms_and_refuse_what_is_no_share():
    assert threshold(0.05) == SESSIONS_A_YEAR / 0.05
    assert threshold(0.05, alarms=4) == 4 * threshold(0.05)
    assert proof(0.05) == pytest.approx(20)
    for wrong in (0, 1, -0.1, math.nan):
        with pytest.raises(ValueError, match="above 0 and below 1"):
            threshold(wrong)
        with pytest.raises(ValueError, match="above 0 and below 1"):
            proof(wrong)
    with pytest.raises(ValueError, match="alarm"):
        threshold(0.05, alarms=0)


# Records


@pytest.mark.parametrize("symbols", [1, 20])
def test_few_healthy_years_have_an_alarm_of_calibration_though_symbols_depend_on_each_other(symbols):
    generator, years, least = np.random.default_rng(0), 400, threshold(0.05)
    alarms = 0
    for _ in range(years):
        sessions, changes = in_rows(shared_shocks(generator, SESSIONS_A_YEAR, symbols))
        alarms += calibration_alarm(sessions, widened(1, changes)).first(least) is not None
    assert alarms <= 0.05 * years


@pytest.mark.parametrize(("width", "limit"), [(0.6, 60), (1.7, 80)])
def test_most_changes_of_the_width_of_intervals_are_found_after_a_long_healthy_time(width, limit):
    generator, healthy, delays = np.random.default_rng(0), 1000, []
    for _ in range(100):
        changes = generator.standard_t(5, healthy + 250)
        places = np.concatenate([widened(1, changes[:healthy]), widened(width, changes[healthy:])])
        first = calibration_alarm(one_row_a_session(len(places)), places).first(threshold(0.05))
        if first is None or first >= healthy:
            delays.append(math.inf if first is None else first - healthy + 1)
    assert len(delays) >= 80
    assert np.mean(np.array(delays) <= limit) >= 0.8


def test_a_forecast_that_is_as_good_as_its_baseline_has_few_alarms_and_a_worse_one_is_found():
    generator, years, least = np.random.default_rng(0), 200, threshold(0.05)
    right = T5[np.newaxis]
    # Two shifts of the right forecast in opposite directions are equally good in expectation.
    model, equal, better = right - 0.5, right + 0.5, right
    alarms, found = 0, 0
    sessions = one_row_a_session(SESSIONS_A_YEAR)
    for _ in range(years):
        actual = generator.standard_t(5, SESSIONS_A_YEAR)
        for baseline in (equal, better):
            bounds = np.full(SESSIONS_A_YEAR, difference_bound(model, baseline)[0])
            differences = crps(actual, model) - crps(actual, baseline)
            first = skill_alarm(sessions, differences, bounds).first(least)
            if baseline is equal:
                alarms += first is not None
            elif first is not None:
                found += 1
    assert alarms <= 0.05 * years
    assert found >= 0.5 * years


def test_few_challengers_that_are_no_better_are_proved_to_be_and_a_better_one_of_many_symbols_is():
    generator, sessions, symbols = np.random.default_rng(0), 50, 10
    right = T5[np.newaxis]
    champion, equal, better = right - 1, right + 1, right
    proved = {"equal": 0, "better": 0}
    for _ in range(100):
        numbers, actual = in_rows(shared_shocks(generator, sessions, symbols))
        for name, challenger in (("equal", equal), ("better", better)):
            bounds = np.full(len(actual), difference_bound(champion, challenger)[0])
            differences = crps(actual, champion) - crps(actual, challenger)
            proved[name] += challenger_evidence(numbers, differences, bounds).first(proof(0.05)) is not None
    assert proved["equal"] <= 0.05 * 100
    assert proved["better"] >= 0.5 * 100


# Coverage


@pytest.mark.parametrize("probability", [0.02, 0.5, 0.9, 0.95])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_bounds_of_coverage_hold_at_all_sessions_together(probability, level):
    """The exact probability that any bounds of 300 sessions leave the true one out, summed over all paths."""
    left, alive = 0.0, np.ones(1)
    for count in range(1, 301):
        alive = np.append(alive * (1 - probability), 0) + np.append(0, alive * probability)
        lower, upper = coverage_bounds(np.arange(count + 1), np.full(count + 1, count), level)
        outside = (probability < lower) | (probability > upper)
        left, alive = left + alive[outside].sum(), np.where(outside, 0, alive)
    assert left + alive.sum() == pytest.approx(1)
    assert left <= 1 - level


def test_bounds_of_coverage_hold_for_shares_of_symbols():
    shares = np.random.default_rng(0).beta(0.9, 0.1, (1000, 250))
    lower, upper = coverage_bounds(shares.cumsum(axis=1), np.broadcast_to(np.arange(1, 251), shares.shape))
    assert ((lower > 0.9) | (upper < 0.9)).any(axis=1).mean() <= 0.05


@given(st.integers(1, 2000).flatmap(lambda count: st.tuples(st.floats(0, count), st.just(count))))
def test_bounds_of_coverage_are_around_the_share_and_mirrored(record):
    held, count = record
    lower, upper = coverage_bounds(held, count)
    assert 0 <= lower <= held / count <= upper <= 1
    low, high = coverage_bounds(count - held, count)
    assert [1 - high, 1 - low] == pytest.approx([float(lower), float(upper)], abs=1e-9)
    wider = coverage_bounds(held, count, level=0.99)
    assert wider[0] <= lower <= upper <= wider[1]


def test_bounds_of_coverage_are_wider_than_the_interval_of_one_look_but_not_twice():
    lower, upper = coverage_bounds(225, 250)
    low, high = binomial_interval(225, 250)
    assert lower < low < high < upper
    assert upper - lower < 2 * (high - low)


def test_bounds_of_coverage_know_nothing_without_sessions_and_keep_the_shape():
    lower, upper = coverage_bounds([[0, 0, 5]], [[0, 5, 5]])
    assert lower.shape == upper.shape == (1, 3)
    assert (lower[0, 0], upper[0, 0]) == (0, 1)
    assert lower[0, 1] == 0 < upper[0, 1] < 1
    assert 0 < lower[0, 2] < 1 == upper[0, 2]


@pytest.mark.parametrize(
    ("hits", "count", "level"), [(2, 1, 0.9), (-1, 1, 0.9), (1, 1, 1.0), (math.nan, 1, 0.9)]
)
def test_coverage_that_cannot_be_is_refused(hits, count, level):
    with pytest.raises(ValueError, match="hits"):
        coverage_bounds(hits, count, level)
