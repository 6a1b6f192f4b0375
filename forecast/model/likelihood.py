"""Likelihoods: the distribution that a network's outputs define; ``forecast.model.loss`` trains by them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forecast.config import Likelihood
from forecast.scores.distribution import (
    MAIN_LEVEL,
    Conformal,
    Distribution,
    StudentT,
    interval_probabilities,
)

Outputs = NDArray[np.float32]
Scores = NDArray[np.float64]

OUTPUTS: dict[Likelihood, int] = {"mse": 1, "student_t": 3}
"""Number of outputs per window."""

LEAST_DF = 2.0
"""Lower bound of the degrees of freedom, below which a Student-t distribution has no variance."""
FIRST_DF = 5.0
"""Degrees of freedom at an output of zero: daily price changes have about three to six."""
LARGEST_DF_OUTPUT = 5.0
"""Output at which the degrees of freedom stop growing, at some 450."""
FIRST_SCALE = math.sqrt((FIRST_DF - 2) / FIRST_DF)
"""Scale at an output of zero, in units of the volatility: the standard deviation is then the volatility."""


def student_t_parameters(
    location: Any, scale: Any, df: Any, volatility: Any, exp: Callable[[Any], Any]
) -> tuple[Any, Any, Any]:
    """Location, scale and degrees of freedom of a network's three outputs, and the volatility, all of one shape.

    An output of zero gives a location of zero and a standard deviation equal to the volatility.

    Args:
        location: the first output: an array of NumPy, a tensor of torch, or values of an ONNX graph.
        scale: the second.
        df: the third.
        volatility: the expected standard deviation.
        exp: the exponential function of such numbers.
    """
    # Far beyond the bound, the distribution is practically normal, and the loss is a difference of large numbers.
    bounded = df.clip(max=LARGEST_DF_OUTPUT)
    return location, FIRST_SCALE * volatility * exp(scale), LEAST_DF + (FIRST_DF - LEAST_DF) * exp(bounded)


def point_forecasts(outputs: Outputs) -> NDArray[np.float32]:
    """Point forecasts (n,) from outputs (n, members, outputs), the mean of the members'.

    A member's is the mean for ``mse``, the median for ``student_t``.
    """
    points: NDArray[np.float32] = outputs[..., 0].mean(axis=1)
    return points


def distribution(
    likelihood: Likelihood, outputs: Outputs, volatility: NDArray[np.float32], scores: Scores | None
) -> Distribution | None:
    """The forecast distributions of n windows.

    Args:
        likelihood: the model's likelihood.
        outputs: shape (n, members, outputs).
        volatility: volatility of the windows, shape (n, members).
        scores: the model's ``calibration_scores`` on validation rows; without them ``student_t`` stays as learned.

    Returns:
        The distributions; None for ``mse`` without calibration scores.
    """
    if likelihood == "student_t":
        learned = _student_t(outputs, volatility)
        return learned if scores is None else replace(learned, stretch=stretch(scores))
    if scores is None:
        return None
    return Conformal(point_forecasts(outputs).astype(np.float64), _mean(volatility), scores)


def widest_level(likelihood: Likelihood, scores: Scores | None) -> float:
    """Highest level at which a model has intervals; 0 if it has none."""
    nothing = np.zeros((0, 1, OUTPUTS[likelihood]), np.float32)
    empty = distribution(likelihood, nothing, nothing[..., 0], scores)
    return empty.widest_level if empty else 0.0


def calibration_scores(
    likelihood: Likelihood,
    outputs: Outputs,
    volatility: NDArray[np.float32],
    targets: NDArray[np.float32],
) -> Scores:
    """Scores that calibrate intervals: errors on rows that the model was not trained on; shape (n,), ascending.

    For ``mse``: actual minus forecast, in units of the volatility. For ``student_t``: the absolute error in units of
    half the width of the interval of ``MAIN_LEVEL``; above one, the row lies outside the interval.

    Args:
        likelihood: the model's likelihood.
        outputs: shape (n, members, outputs).
        volatility: volatility of the windows, shape (n, members).
        targets: exact outputs, shape (n,).
    """
    if likelihood == "mse":
        return np.sort((targets - point_forecasts(outputs)).astype(np.float64) / _mean(volatility))
    learned = _student_t(outputs, volatility)
    half_width = learned.quantiles(interval_probabilities([MAIN_LEVEL]))[:, 1] - learned.center
    return np.sort(np.abs(targets - learned.center) / half_width)


def stretch(scores: Scores) -> float:
    """The factor, never below one, by which a learned distribution is too narrow: the ``conformal_quantile``.

    A distribution that is too wide is left alone: a model fits its training rows too well, not too badly.
    """
    return max(1.0, conformal_quantile(scores))


def conformal_quantile(scores: Scores) -> float:
    """The split conformal quantile of errors in units of half the interval's width, (n,), ascending.

    Stretched by it, the interval of ``MAIN_LEVEL`` holds at least that share of rows exchangeable with those of the
    scores (Vovk et al. 2005; with the half width as the local scale, Lei et al. 2018).
    """
    rank = math.ceil(round((len(scores) + 1) * MAIN_LEVEL, 9))
    return float(scores[min(rank, len(scores)) - 1])


def _student_t(outputs: Outputs, volatility: NDArray[np.float32]) -> StudentT:
    numbers = outputs.astype(np.float64)
    return StudentT(
        *student_t_parameters(
            numbers[..., 0], numbers[..., 1], numbers[..., 2], volatility.astype(np.float64), np.exp
        )
    )


def _mean(volatility: NDArray[np.float32]) -> NDArray[np.float64]:
    mean: NDArray[np.float64] = volatility.mean(axis=1, dtype=np.float64)
    return mean
