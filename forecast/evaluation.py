"""Point metrics in price units, always beside persistence on the same rows.

Persistence forecasts the next price as the last one. A metric without it is not an answer: a daily price
is close to a random walk, on which persistence is hard to beat.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

MAPE_FLOOR = 1e-3
"""Smallest |actual| that MAPE divides by, in price units."""


def mae(actual: Array, predicted: Array) -> float:
    """Mean absolute error, in price units."""
    return float(np.mean(np.abs(actual - predicted)))


def rmse(actual: Array, predicted: Array) -> float:
    """Root of the mean squared error, in price units."""
    return float(np.sqrt(np.mean(np.square(actual - predicted))))


def mape(actual: Array, predicted: Array) -> float:
    """Mean absolute percentage error, in percent, with |actual| clamped from below at ``MAPE_FLOOR``."""
    return float(100 * np.mean(np.abs(actual - predicted) / np.maximum(np.abs(actual), MAPE_FLOOR)))


METRICS: dict[str, Callable[[Array, Array], float]] = {"MAE": mae, "RMSE": rmse, "MAPE": mape}
"""Every metric by name, all to be minimized; the tuner's objectives are these names in this order."""


@dataclass(frozen=True)
class Evaluation:
    """Metrics by name of a model and of persistence on the same rows, and the skill between them.

    ``skill`` is ``1 - model / persistence``: above zero the model is better; None where persistence is
    exact.
    """

    model: dict[str, float]
    persistence: dict[str, float]
    skill: dict[str, float | None]
    rows: int

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values."""
        return asdict(self)


def evaluate_forecasts(actual: Array, predicted: Array, previous: Array) -> Evaluation:
    """Score forecasts against the actual prices and against persistence.

    Args:
        actual: prices of the target rows, shape (n,), n >= 1.
        predicted: forecasts for those rows, shape (n,), price units.
        previous: prices one row before each, shape (n,).
    """
    model = {name: metric(actual, predicted) for name, metric in METRICS.items()}
    persistence = {name: metric(actual, previous) for name, metric in METRICS.items()}
    skill = {name: 1 - model[name] / persistence[name] if persistence[name] > 0 else None for name in METRICS}
    return Evaluation(model=model, persistence=persistence, skill=skill, rows=len(actual))
