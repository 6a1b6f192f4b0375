"""Tests of a live record of forecasts that hold however often one looks at them.

A p-value holds for one look after a number of sessions that was fixed in advance. One may look at the evidence here
after every session. It is a product of bets against the hypothesis that all is well. Each bet is placed before the
session's prices arrive, never loses more than its stake and, if the hypothesis is true, pays at most one per unit
staked in expectation given the past: an e-value (Ramdas, Grünwald, Vovk & Shafer 2023, "Game-theoretic statistics and
safe anytime-valid inference"). Large evidence is then unlikely unless the hypothesis is false.

A record consists of flat arrays, one item per scored forecast, with the number of its session: an integer that never
falls from row to row. A session holds the prices that arrive together, of one symbol or of many, and every forecast of
these prices must be older than all of them. The e-value of a session is the mean over its rows, which is an e-value
whatever the dependence between symbols (Vovk & Wang 2021, "E-values: calibration, combination and applications").
Forecasts of several steps overlap, so only those of one step, or of h steps in every h-th session, make a record.

Alarms must find a change after a long healthy time, in which a single product of bets would have lost nearly
everything. They sum products of bets that begin at every session (the Shiryaev-Roberts e-detector; Shin, Ramdas &
Rinaldo 2023, "E-detectors: a nonparametric framework for sequential change detection"): R_n = (1 + R_{n-1}) e_n.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forecast.scores.distribution import PROBABILITIES
from forecast.scores.metrics import Forecasts, ranked_probability_scores

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

SESSIONS_A_YEAR = 250
"""Sessions for which the share of false alarms is stated."""
LARGEST = 1e300
"""Largest evidence: larger values are cut to this one, which fits a database and JSON."""
ROUNDING = 1e-12
"""Error of a CRPS, as a share of the largest quantile, that counts as rounding."""
BEYOND = 1e-6
"""Share of its bound by which rounding may make a difference exceed the bound."""

BINS = len(PROBABILITIES) + 1
"""Bins of a PIT: between neighbouring quantiles, and beyond the outer ones."""
BET_DF = 5.0
"""Degrees of freedom of the Student-t forecasts for which the bets on calibration are made.

Bets made for normal forecasts find intervals that are too narrow later where changes have heavy tails, and hardly
sooner where they have none."""
CALIBRATION_BETS = (
    (0.3, 0.0, 0.1),
    (0.6, 0.0, 0.4),
    (0.8, 0.0, 0.15),
    (1.5, 0.0, 0.15),
    (3.0, 0.0, 0.05),
    (1.0, 0.5, 0.075),
    (1.0, -0.5, 0.075),
)
"""The bets on calibration: the width of intervals divided by the right width, the shift of prices in standard
deviations, and the share of the evidence.

Intervals that are too narrow do the most harm, so most bets are on them. The extreme widths are for many symbols: their
mean e-value varies so little that bets on the bins with the largest gains find faults up to a third sooner."""
SKILL_BETS: Array = np.array([0.1, 0.3, 0.6, 0.9])
"""Stakes on differences of CRPS. Each stake makes a separate process, and all have the same share of the evidence.

The difference of one symbol varies so much that small stakes gain most; the mean of many symbols needs large stakes."""
BISECTIONS = 50
"""Halvings of the range of a coverage bound; after these, floats hardly distinguish its ends."""


@dataclass(frozen=True)
class Evidence:
    """Evidence after each session.

    Attributes:
        sessions: number of each session of the record, shape (m,), increasing.
        values: evidence from all rows up to the session's last, shape (m,), between 0 and ``LARGEST``.
    """

    sessions: Integers
    values: Array

    def first(self, least: float) -> int | None:
        """Number of the first session with evidence of at least ``least``; None if there is none."""
        reached = np.flatnonzero(self.values >= least)
        return int(self.sessions[reached[0]]) if len(reached) else None


def threshold(share_of_years: float, alarms: int = 1) -> float:
    """Evidence at which an alarm begins, for ``calibration_alarm`` and ``skill_alarm``.

    While all is well, the evidence after n sessions is at most n in expectation. By Doob's inequality, at most a share
    n / c of records reaches c within n sessions, and the shares of several alarms at most add up. A record that runs
    for N years therefore has a false alarm with a probability of at most N times the share.

    Args:
        share_of_years: largest share of healthy years with any false alarm, above 0 and below 1.
        alarms: number of alarms that divide this share, at least 1.

    Raises:
        ValueError: when an argument is out of its range.
    """
    if not 0 < share_of_years < 1 or alarms < 1:
        raise ValueError("the share must be above 0 and below 1, and there must be an alarm")
    return SESSIONS_A_YEAR * alarms / share_of_years


def proof(error: float) -> float:
    """Evidence that proves a challenger better, for ``challenger_evidence``.

    At most a share ``error`` of the challengers that are not better ever reach it, however long they are watched (Ville
    1939). A limit on the number of sessions does not change it.

    Raises:
        ValueError: when ``error`` is not above 0 and below 1.
    """
    if not 0 < error < 1:
        raise ValueError("the error must be above 0 and below 1")
    return 1 / error


def pit(quantiles: Array, actual: Array) -> Array:
    """Place of each price in its forecast distribution (probability integral transform), in [1/400, 399/400].

    The distribution is linear between quantiles. A price below or above all quantiles has the place in the middle of
    the remaining range. At equal quantiles, the place is the middle of the jump: 0.5 for a correct forecast without
    spread.

    Args:
        quantiles: quantiles at ``PROBABILITIES``, shape (n, 199), finite, increasing along the second axis.
        actual: prices, shape (n,), finite, in the unit of the quantiles.

    Returns:
        Shape (n,).

    Raises:
        ValueError: when a number is not finite.
    """
    _require_finite(quantiles, actual)
    price = actual[:, np.newaxis]
    below, up_to = (quantiles < price).sum(axis=1), (quantiles <= price).sum(axis=1)
    last = len(PROBABILITIES) - 1
    rows = np.arange(len(actual))
    lower, upper = quantiles[rows, np.maximum(below - 1, 0)], quantiles[rows, np.minimum(below, last)]
    between = (below == up_to) & (below > 0) & (below <= last)
    share = np.divide(actual - lower, upper - lower, out=np.full(len(actual), 0.5), where=between)
    places: Array = np.where(below == up_to, below + share, (below + 1 + up_to) / 2) / BINS
    return places


def bins_of(places: Array) -> Integers:
    """Bin of each PIT (n,) between the quantiles, from 0 to ``BINS`` - 1."""
    # Rounded, because a PIT such as 0.145 is not exact and its product could fall into the bin below.
    return np.minimum(np.floor(np.round(places * BINS, 9)).astype(np.int64), BINS - 1)


def calibration_alarm(sessions: Integers, places: Array) -> Evidence:
    """Evidence that forecasts are not, or no longer, calibrated; an alarm begins at its ``threshold``.

    The hypothesis is that, given the past, each price is between two neighbouring quantiles with the probability that
    the forecast states. The bets are densities of a PIT under intervals that are too narrow or too wide, and under
    shifted prices (Arnold, Henzi & Ziegel 2023, "Sequentially valid tests for forecast calibration"), integrated over
    the bins between quantiles, so the e-values are exact whatever the distribution within a bin. The test does
    not apply to forecasts with many equal quantiles that prices often hit, because their PIT is not uniform.

    Args:
        sessions: session of each row, shape (n,), never falling.
        places: PIT of each row, from ``pit``, shape (n,).

    Raises:
        ValueError: when the shapes differ, sessions fall, or a PIT is not in [0, 1].
    """
    if not ((places >= 0) & (places <= 1)).all():
        raise ValueError("a PIT must be in [0, 1]")
    payoffs, shares = _calibration_payoffs()
    numbers, means = _by_session(sessions, payoffs[:, bins_of(places)])
    return _alarm(numbers, np.log(means), shares)


_KINKS: Array = (
    # With only quantile k below the price, by one, the score is the loss of this quantile.
    ranked_probability_scores(
        np.ones(len(PROBABILITIES)), Forecasts(np.ones(len(PROBABILITIES)), 1 - np.eye(len(PROBABILITIES)))
    )
    / PROBABILITIES
)
"""Change of the CRPS's slope where the price passes each quantile, shape (199,)."""


def difference_bound(quantiles: Array, others: Array) -> Array:
    """Largest advantage in CRPS that forecasts can have over other forecasts of the same rows, whatever the price.

    It is the maximum over all prices y of CRPS(others, y) - CRPS(quantiles, y), rounded up. As a weighted sum of
    quantile losses, the CRPS is linear in y between quantiles and its slope rises at each of them, so the difference is
    constant beyond all quantiles and has its maximum at one of them. The larger of ``difference_bound(a, b)`` and
    ``difference_bound(b, a)`` bounds the absolute difference.

    Args:
        quantiles: quantiles at ``PROBABILITIES``, shape (n, 199), finite, increasing along the second axis.
        others: the other forecasts' quantiles, in the same unit.

    Returns:
        Shape (n,), never negative, in the unit of the quantiles.

    Raises:
        ValueError: when a number is not finite.
    """
    _require_finite(quantiles, others)
    places = np.concatenate([others, quantiles], axis=1)
    order = np.argsort(places, axis=1)
    places = np.take_along_axis(places, order, axis=1)
    slopes = np.cumsum(np.concatenate([_KINKS, -_KINKS])[order], axis=1)
    # Below all quantiles the difference is constant.
    start = (others - quantiles) @ (_KINKS * (1 - PROBABILITIES))
    rises = np.cumsum(slopes[:, :-1] * np.diff(places, axis=1), axis=1)
    largest = start + np.maximum(rises.max(axis=1), 0)
    bound: Array = np.maximum(largest, 0) + ROUNDING * np.abs(places[:, [0, -1]]).max(axis=1)
    return bound


def skill_alarm(sessions: Integers, differences: Array, bounds: Array) -> Evidence:
    """Evidence that a model is, or has become, worse than a baseline; an alarm begins at its ``threshold``.

    The hypothesis is that, given the past, the model's expected CRPS is at most the baseline's on every row. The bets
    are 1 + stake * difference / bound, which is never negative (Henzi & Ziegel 2022, "Valid sequential inference on
    probability forecast performance"; Choe & Ramdas 2024, "Comparing sequential forecasters").

    Args:
        sessions: session of each row, shape (n,), never falling.
        differences: CRPS of the model minus that of the baseline, shape (n,).
        bounds: largest possible advantage of the model, ``difference_bound(model's, baseline's)``, shape (n,); a larger
            bound is valid too.

    Raises:
        ValueError: when the shapes differ, sessions fall, a number is not finite, or a difference is beyond its bound.
    """
    numbers, gains = _log_skill_gains(sessions, differences, bounds)
    return _alarm(numbers, gains, np.full(len(SKILL_BETS), 1 / len(SKILL_BETS)))


def challenger_evidence(sessions: Integers, differences: Array, bounds: Array) -> Evidence:
    """Evidence that a challenger is better than the champion; at ``proof``, it is a proof.

    The bets are those of ``skill_alarm``, with the champion in the place of the model. Their product begins once, with
    the record's first row, so there is nothing to correct for the number of looks or sessions.

    Args:
        sessions: session of each row, shape (n,), never falling.
        differences: CRPS of the champion minus that of the challenger, shape (n,).
        bounds: largest possible advantage of the champion, ``difference_bound(champion's, challenger's)``, shape (n,);
            a larger bound is valid too.

    Raises:
        ValueError: when the shapes differ, sessions fall, a number is not finite, or a difference is beyond its bound.
    """
    numbers, gains = _log_skill_gains(sessions, differences, bounds)
    return _mixture(numbers, np.cumsum(gains, axis=1), np.full(len(SKILL_BETS), 1 / len(SKILL_BETS)))


def coverage_bounds(hits: ArrayLike, count: ArrayLike, level: float = 0.95) -> tuple[Array, Array]:
    """Bounds of the probability that intervals contain the price, valid at all sessions together.

    The bounds are a confidence sequence: if the probability is the same in each session given the past, it is within
    the bounds after every session of a record in at least a share ``level`` of records. Between the bounds are the
    probabilities whose likelihood is not exceeded 1 / (1 - level) times by that of a mixture over Jeffreys' beta
    distribution (Robbins 1970, "Statistical methods related to the law of the iterated logarithm").

    Args:
        hits: number of sessions whose price was in its interval. With several symbols, the sum over sessions of the
            share of symbols with the price inside: symbols depend on each other, so a session is one observation.
        count: number of sessions, in the shape of ``hits``.
        level: confidence, above 0 and below 1.

    Returns:
        Lower and upper bounds, each in the shape of ``hits``; 0 and 1 without sessions.

    Raises:
        ValueError: when ``hits`` is not between 0 and ``count``, or the level is out of its range.
    """
    from scipy.special import betaln, xlog1py, xlogy

    held, total = np.broadcast_arrays(np.asarray(hits, dtype=np.float64), np.asarray(count, dtype=np.float64))
    if not ((held >= 0) & (held <= total)).all() or not 0 < level < 1:
        raise ValueError("hits must be between 0 and the count, and the level above 0 and below 1")
    missed = total - held
    mixture = betaln(held + 0.5, missed + 0.5) - betaln(0.5, 0.5)
    least = mixture + np.log1p(-level)

    # The ratio of the likelihoods is convex in a session's hit, so a share between 0 and 1 gains at most as much in
    # expectation as hits and misses.
    def inside(probability: Array) -> NDArray[np.bool_]:
        likely: NDArray[np.bool_] = xlogy(held, probability) + xlog1py(missed, -probability) >= least
        return likely

    middle = np.divide(held, total, out=np.full(total.shape, 0.5), where=total > 0)
    # The likelihood rises up to the middle and falls after it, so each bound is between the middle and an end.
    ends = []
    for end in (np.zeros(total.shape), np.ones(total.shape)):
        within, outside = np.where(inside(end), end, middle), end
        for _ in range(BISECTIONS):
            between = (within + outside) / 2
            held_by = inside(between)
            within, outside = np.where(held_by, between, within), np.where(held_by, outside, between)
        ends.append(outside)
    return ends[0], ends[1]


@lru_cache(maxsize=1)
def _calibration_payoffs() -> tuple[Array, Array]:
    """E-values of the calibration bets in each bin, (bets, bins), and their shares of the stake, (bets,)."""
    from scipy.special import stdtr, stdtrit

    edges, deviation = stdtrit(BET_DF, PROBABILITIES), np.sqrt(BET_DF / (BET_DF - 2))
    widths, shifts, shares = np.array(CALIBRATION_BETS).T[..., np.newaxis]
    below = stdtr(BET_DF, widths * (edges - shifts * deviation))
    payoffs: Array = BINS * np.diff(below, prepend=0, append=1, axis=1)
    return payoffs, shares[:, 0]


def _log_skill_gains(sessions: Integers, differences: Array, bounds: Array) -> tuple[Integers, Array]:
    """Numbers of the sessions, (m,), and the logarithm of each stake's e-value, (stakes, m)."""
    _require_finite(differences, bounds)
    if differences.shape != bounds.shape:
        raise ValueError("every difference needs a bound")
    if (differences < -(1 + BEYOND) * bounds).any():
        raise ValueError("a difference is beyond its bound")
    ratios = np.divide(differences, bounds, out=np.zeros(differences.shape), where=bounds > 0)
    numbers, (means,) = _by_session(sessions, ratios[np.newaxis])
    return numbers, np.log1p(SKILL_BETS[:, np.newaxis] * means)


def _by_session(sessions: Integers, values: Array) -> tuple[Integers, Array]:
    """Numbers of the sessions, (m,), and means (k, m) over the rows of each, of values (k, n)."""
    if sessions.shape != values.shape[1:]:
        raise ValueError("every row needs a session")
    steps = np.diff(sessions)
    if (steps < 0).any():
        raise ValueError("sessions must not fall from row to row")
    if not len(sessions):
        return sessions.astype(np.int64), values
    starts = np.concatenate([[0], np.flatnonzero(steps) + 1])
    counts = np.diff(np.append(starts, len(sessions)))
    means: Array = np.add.reduceat(values, starts, axis=1) / counts
    return sessions[starts].astype(np.int64), means


def _alarm(numbers: Integers, gains: Array, shares: Array) -> Evidence:
    """Evidence of an alarm from logarithms of e-values (bets, m): sums of the products that begin at every session."""
    products = np.cumsum(gains, axis=1)
    # R_n is the product up to n times the sum of the inverse products before each session up to n.
    sums = np.logaddexp.accumulate(gains - products, axis=1)
    return _mixture(numbers, products + sums, shares)


def _mixture(numbers: Integers, logs: Array, shares: Array) -> Evidence:
    """Evidence of all bets, from the logarithm of each bet's, (bets, m), and their shares of the stake, (bets,)."""
    mixed = np.logaddexp.reduce(logs + np.log(shares)[:, np.newaxis], axis=0)
    return Evidence(numbers, np.exp(np.minimum(mixed, np.log(LARGEST))))


def _require_finite(*arrays: Array) -> None:
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError("all numbers must be finite")
