"""Tests of whether one forecaster is better than another on the same rows."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


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


def diebold_mariano(losses: Array, others: Array) -> tuple[float, float]:
    """Test whether two forecasters' one-step losses (n,) differ (Diebold & Mariano 1995).

    The small-sample correction is that of Harvey, Leybourne & Newbold (1997) for one step ahead. Losses of a forecaster
    that misses changes of volatility come in clusters, so the variance is the long-run one.

    Returns:
        The statistic, below zero where ``losses`` are smaller, and the two-sided p-value; (0, 1) where they are equal.
    """
    from scipy.special import stdtr

    difference = losses - others
    count, deviation = len(difference), math.sqrt(long_run_variance(difference))
    if not deviation > 0:
        return 0.0, 1.0
    statistic = math.sqrt(count - 1) * float(difference.mean()) / deviation
    return statistic, 2 * float(stdtr(count - 1, -abs(statistic)))


def long_run_variance(values: Array) -> float:
    """Long-run variance of autocorrelated values (n,): the variance of their mean times n.

    The estimator is that of Newey & West 1987, with their rule of 1994 for the number of lags.
    """
    count, deviations = len(values), values - values.mean()
    variance = float(deviations @ deviations) / count
    lags = int(4 * (count / 100) ** (2 / 9))
    for lag in range(1, min(lags, count - 1) + 1):
        variance += 2 * (1 - lag / (lags + 1)) * float(deviations[lag:] @ deviations[:-lag]) / count
    return variance
