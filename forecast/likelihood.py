"""What a network's outputs mean, and what training minimizes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from forecast.config import Likelihood
from forecast.distribution import MAIN_LEVEL, Conformal, Distribution, StudentT, interval_probabilities

OUTPUTS: dict[Likelihood, int] = {"mse": 1, "student_t": 3}
"""Numbers a network gives for each window."""

LEAST_DF = 2.0
"""Below it a Student-t distribution has no variance."""
FIRST_DF = 5.0
"""Degrees of freedom of an output of zero: daily changes of prices have about three to six."""
LARGEST_DF_OUTPUT = 5.0
"""Output from which on degrees of freedom are no more: some 450."""
FIRST_SCALE = math.sqrt((FIRST_DF - 2) / FIRST_DF)
"""Scale of an output of zero, in units of the spread: its standard deviation is then the spread."""


def student_t_parameters(outputs: Tensor, spread: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Location, scale and degrees of freedom, each (n,), from outputs (n, 3) and the spread (n,).

    An output of zero is a location of zero and a standard deviation of just the spread.
    """
    location, scale, df = outputs.unbind(-1)
    # Far beyond, a Student-t distribution is a normal one, and the loss a difference of large numbers.
    df = df.clamp(max=LARGEST_DF_OUTPUT)
    return location, FIRST_SCALE * spread * scale.exp(), LEAST_DF + (FIRST_DF - LEAST_DF) * df.exp()


def loss(likelihood: Likelihood, outputs: Tensor, spread: Tensor, wanted: Tensor) -> Tensor:
    """Mean loss over n windows: squared error, or the Student-t distribution's negative log-likelihood.

    Args:
        likelihood: which of them.
        outputs: shape (n, outputs).
        spread: of the windows, shape (n,).
        wanted: what would have been exact, shape (n,).
    """
    if likelihood == "mse":
        return nn.functional.mse_loss(outputs[:, 0], wanted)
    location, scale, df = student_t_parameters(outputs, spread)
    standard = (wanted - location) / scale
    half = (df + 1) / 2
    log_density = (
        torch.lgamma(half)
        - torch.lgamma(df / 2)
        - 0.5 * torch.log(math.pi * df)
        - torch.log(scale)
        - half * torch.log1p(standard.square() / df)
    )
    return -log_density.mean()


def point_forecasts(outputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Point forecasts (n,) from outputs (n, outputs): the mean for ``mse``, the median for ``student_t``."""
    return outputs[:, 0]


def distribution(
    likelihood: Likelihood,
    outputs: NDArray[np.float32],
    spread: NDArray[np.float32],
    errors: NDArray[np.float64] | None,
) -> Distribution | None:
    """The distribution that n windows' outputs stand for.

    Args:
        likelihood: of the model.
        outputs: shape (n, outputs).
        spread: of the windows, shape (n,).
        errors: its ``standard_errors`` on validation rows; without them ``student_t`` is as it was learned.

    Returns:
        None for ``mse`` without errors.
    """
    if likelihood == "student_t":
        learned = _student_t(outputs, spread)
        return learned if errors is None else replace(learned, stretch=stretch(errors))
    if errors is None:
        return None
    return Conformal(outputs[:, 0].astype(np.float64), spread.astype(np.float64), errors)


def widest_level(likelihood: Likelihood, errors: NDArray[np.float64] | None) -> float:
    """Level up to which a model has intervals; 0 where it has none."""
    nothing = np.zeros((0, OUTPUTS[likelihood]), np.float32)
    spread = distribution(likelihood, nothing, nothing[:, 0], errors)
    return spread.widest_level if spread else 0.0


def standard_errors(
    likelihood: Likelihood,
    outputs: NDArray[np.float32],
    spread: NDArray[np.float32],
    wanted: NDArray[np.float32],
) -> NDArray[np.float64]:
    """Errors on rows that were not trained on, from which intervals are calibrated; shape (n,), ascending.

    For ``mse``: actual minus forecast, in units of the spread. For ``student_t``: the absolute error in units of half
    the width of the interval of ``MAIN_LEVEL``: above one, the row was outside of it.
    """
    if likelihood == "mse":
        return np.sort((wanted - outputs[:, 0]).astype(np.float64) / spread)
    learned = _student_t(outputs, spread)
    half_width = learned.quantiles(interval_probabilities([MAIN_LEVEL]))[:, 1] - learned.location
    return np.sort(np.abs(wanted - learned.location) / half_width)


def stretch(errors: NDArray[np.float64]) -> float:
    """The factor, never below one, by which a learned Student-t distribution is too narrow.

    The split conformal quantile of the ``standard_errors`` (Vovk et al. 2005; with the learned interval's half width as
    the local scale, Lei et al. 2018): stretched by it, the interval of ``MAIN_LEVEL`` holds at least that share of rows
    exchangeable with those of the errors. What was learned too wide stays: training fits its own rows too well, not
    too badly.
    """
    rank = math.ceil(round((len(errors) + 1) * MAIN_LEVEL, 9))
    return max(1.0, float(errors[min(rank, len(errors)) - 1]))


def _student_t(outputs: NDArray[np.float32], spread: NDArray[np.float32]) -> StudentT:
    parameters = student_t_parameters(
        torch.from_numpy(outputs.astype(np.float64)), torch.from_numpy(spread.astype(np.float64))
    )
    location, scale, df = (value.numpy() for value in parameters)
    return StudentT(location, scale, df)
