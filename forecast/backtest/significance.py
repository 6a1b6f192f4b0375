"""Tests of whether a forecaster is calibrated, has skill, or is better than another on the same rows."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

RESAMPLES = 1000
"""Bootstrap samples of the test of superior predictive ability, so its p-value comes in steps of 0.001."""
AUTOCORRELATED = 20
"""Fewest rows whose autocorrelations say anything."""
ROUNDING = 1e-12
"""Deviation of a loss difference, as a share of the largest loss, that is taken for rounding, and so for none."""


def clark_west(actual: Array, small: Array, large: Array) -> tuple[float, float]:
    """Test whether a model forecasts better than one that it nests (Clark & West 2007, eq. 3.1).

    The larger model's squared error is corrected for the noise of its estimated parameters; several seeds are averaged.

    Args:
        actual: shape (n,).
        small: forecasts of the nested model, shape (n,).
        large: forecasts of the larger one, shape (n,) or (seeds, n).

    Returns:
        The statistic, and the p-value against "not better", one-sided; (0, 1) where both forecast the same.
    """
    from scipy.special import ndtr

    gains = np.square(actual - small) - (np.square(actual - large) - np.square(small - large))
    gains = np.atleast_2d(gains).mean(axis=0)
    deviation = math.sqrt(long_run_variance(gains))
    if not deviation > 0:
        return 0.0, 1.0
    statistic = math.sqrt(len(gains)) * float(gains.mean()) / deviation
    return statistic, float(ndtr(-statistic))


def diebold_mariano(losses: Array, others: Array, horizon: int = 1) -> tuple[float, float]:
    """Test whether two forecasters' losses (n,) differ (Diebold & Mariano 1995).

    The small-sample correction is that of Harvey, Leybourne & Newbold (1997). Losses of a forecaster that misses
    changes of volatility come in clusters, so one step ahead the variance is the long-run one. Errors of more steps
    overlap, and the variance is theirs: all autocovariances that the overlap gives count in full. Where their sum is
    not positive, it is the long-run one.

    Args:
        losses: shape (n,), in the order of time.
        others: the other forecaster's losses of the same rows, shape (n,).
        horizon: number of steps ahead of the forecasts, at least 1; losses less than that many rows apart overlap.

    Returns:
        The statistic, below zero where ``losses`` are smaller, and the two-sided p-value; (0, 1) where they are equal,
        or there are no more rows than steps.
    """
    from scipy.special import stdtr

    difference, count = losses - others, len(losses)
    if horizon >= count:
        return 0.0, 1.0
    variance = _with_autocovariances(difference, np.ones(horizon - 1)) if horizon > 1 else 0.0
    if not variance > 0:
        variance = long_run_variance(difference, least_lags=horizon - 1)
    if not variance > 0:
        return 0.0, 1.0
    corrected = count + 1 - 2 * horizon + horizon * (horizon - 1) / count
    statistic = math.sqrt(corrected) * float(difference.mean()) / math.sqrt(variance)
    return statistic, 2 * float(stdtr(count - 1, -abs(statistic)))


def superior_predictive_ability(losses: Array, benchmark: Array) -> float:
    """Test whether the best of several models is better than the benchmark (Hansen 2005), given that it is the best.

    The loss differences are resampled in blocks of random length (Politis & Romano 1994), whose mean is the one that
    their autocorrelations call for (Politis & White 2004), in the mean over the models. With longer blocks there are
    too few of them, and the test finds skill where there is none. A model whose difference does not vary says nothing
    about chance and is left out.

    Args:
        losses: losses of each model, shape (models, n), in the order of time.
        benchmark: the benchmark's losses of the same rows, shape (n,).

    Returns:
        Hansen's consistent p-value against "none is better", the same in each run; 1 where no model is left or there
        are fewer than three rows.
    """
    count = len(benchmark)
    if count < 3:  # Hansen's bound for models that are too bad to matter has the logarithm of log(n).
        return 1.0
    gains = benchmark - losses
    deviations = np.array([math.sqrt(max(0.0, long_run_variance(gain))) for gain in gains])
    varies = deviations > ROUNDING * np.maximum(np.abs(losses).max(axis=1), np.abs(benchmark).max())
    if not varies.any():
        return 1.0
    # Imported here because it takes more than a second, which forecasts need not wait for.
    from arch.bootstrap import SPA, optimal_block_length

    # Each is divided by its deviation here because arch compares means without doing so, whatever its ``studentize``.
    scaled = gains[varies] / deviations[varies, np.newaxis]
    block = 1
    if count >= AUTOCORRELATED:
        lengths = [optimal_block_length(gain)["stationary"].iloc[0] for gain in scaled]
        block = max(1, round(float(np.mean(lengths))))
    test = SPA(np.zeros(count), -scaled.T, block_size=block, reps=RESAMPLES, bootstrap="stationary", seed=0)
    test.compute()
    return float(test.pvalues["consistent"])


def long_run_variance(values: Array, least_lags: int = 0) -> float:
    """Long-run variance of autocorrelated values (n,): the variance of their mean times n.

    The estimator is that of Newey & West 1987, with their rule of 1994 for the number of lags, or ``least_lags`` where
    these are more.
    """
    lags = max(int(4 * (len(values) / 100) ** (2 / 9)), least_lags)
    return _with_autocovariances(values, 1 - np.arange(1, lags + 1) / (lags + 1))


def _with_autocovariances(values: Array, weights: Array) -> float:
    """The variance of values (n,), and twice their autocovariances at lags from 1 on, with weights (lags,)."""
    count, deviations = len(values), values - values.mean()
    variance = float(deviations @ deviations) / count
    for lag, weight in enumerate(weights[: count - 1], 1):
        variance += 2 * float(weight) * float(deviations[lag:] @ deviations[:-lag]) / count
    return variance


def kupiec(inside: Flags, level: float) -> tuple[float, float]:
    """Test whether intervals hold the share of rows that they should: unconditional coverage (Kupiec 1995).

    Args:
        inside: whether each row is in its interval, shape (n,).
        level: share of rows that the intervals should hold, above 0 and below 1.

    Returns:
        The likelihood-ratio statistic, and the p-value against "the right share" (chi-square, 1 degree of freedom);
        (0, 1) without rows.
    """
    from scipy.special import chdtrc

    statistic = _coverage_ratio(inside, level)
    return statistic, float(chdtrc(1, statistic))


def christoffersen(inside: Flags, level: float) -> tuple[float, float]:
    """Test whether intervals hold the right share of rows, whatever the row before: conditional coverage.

    The statistic of Christoffersen 1998 is Kupiec's plus that of a miss being as likely after a miss as after none, so
    it also finds misses that come in clusters. Intervals need more than a few misses for the p-value to be right.

    Args:
        inside: whether each row is in its interval, shape (n,), in the order of time.
        level: share of rows that the intervals should hold, above 0 and below 1.

    Returns:
        The likelihood-ratio statistic, and the p-value against "the right share, independently" (chi-square, 2 degrees
        of freedom); (0, 1) without rows. The part of independence is 0 where there is one row, or no misses.
    """
    from scipy.special import chdtrc

    before, missed = inside[:-1], ~inside[1:]
    apart = _log_likelihood(missed[before]) + _log_likelihood(missed[~before])
    # Never below zero but by rounding.
    independence = max(0.0, 2 * (apart - _log_likelihood(missed)))
    statistic = _coverage_ratio(inside, level) + independence
    return statistic, float(chdtrc(2, statistic))


def pesaran_timmermann(actual_moves: Array, forecast_moves: Array) -> tuple[float, float]:
    """Test whether forecasts tell rises from falls better than chance (Pesaran & Timmermann 1992).

    Right directions are compared with as many as forecasts without skill would get that rise as often: where most
    prices rise, always forecasting a rise is right on most rows, and no skill. Rows on which either does not move are
    left out.

    Args:
        actual_moves: actual changes of the price, shape (n,).
        forecast_moves: forecast changes, shape (n,).

    Returns:
        The statistic, and the p-value against "no skill", one-sided; (0, 1) where no row is left, or the forecasts or
        the prices always move the same way.
    """
    from scipy.special import ndtr

    moved = (actual_moves != 0) & (forecast_moves != 0)
    rises, forecast_rises = actual_moves[moved] > 0, forecast_moves[moved] > 0
    count, up, forecast_up = len(rises), int(rises.sum()), int(forecast_rises.sum())
    if up in (0, count) or forecast_up in (0, count):
        return 0.0, 1.0
    share, forecast_share = up / count, forecast_up / count
    right = float((rises == forecast_rises).mean())
    by_chance = share * forecast_share + (1 - share) * (1 - forecast_share)
    # The paper's V(P) - V(P*), which comes to one product that is always above zero.
    variance = 4 * share * (1 - share) * forecast_share * (1 - forecast_share) * (count - 1) / count**2
    statistic = (right - by_chance) / math.sqrt(variance)
    return statistic, float(ndtr(-statistic))


def _coverage_ratio(inside: Flags, level: float) -> float:
    from scipy.special import xlogy

    held = int(inside.sum())
    expected = float(xlogy(held, level) + xlogy(len(inside) - held, 1 - level))
    # Never below zero but by rounding.
    return max(0.0, 2 * (_log_likelihood(inside) - expected))


def _log_likelihood(flags: Flags) -> float:
    """Log-likelihood of independent flags (n,) at their own share; 0 without flags."""
    from scipy.special import xlogy

    count, true = len(flags), int(flags.sum())
    if not count:
        return 0.0
    return float(xlogy(true, true / count) + xlogy(count - true, 1 - true / count))
