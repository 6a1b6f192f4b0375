"""The loss that training minimizes, of each likelihood."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from forecast.config import Likelihood
from forecast.model.likelihood import student_t_parameters


def loss(likelihood: Likelihood, outputs: Tensor, volatility: Tensor, targets: Tensor) -> Tensor:
    """Mean loss over n windows: squared error, or the Student-t distribution's negative log-likelihood.

    Args:
        likelihood: selects the loss.
        outputs: shape (n, outputs).
        volatility: volatility of the windows, shape (n,).
        targets: exact outputs, shape (n,).
    """
    if likelihood == "mse":
        return nn.functional.mse_loss(outputs[:, 0], targets)
    location, scale, df = outputs.unbind(-1)
    location, scale, df = student_t_parameters(location, scale, df, volatility, torch.exp)
    standard = (targets - location) / scale
    half = (df + 1) / 2
    log_density = (
        torch.lgamma(half)
        - torch.lgamma(df / 2)
        - 0.5 * torch.log(math.pi * df)
        - torch.log(scale)
        - half * torch.log1p(standard.square() / df)
    )
    mean: Tensor = -log_density.mean()
    return mean
