"""A model's predictions for windows: prices and the distribution around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forecast.errors import LevelError, WindowError
from forecast.model.windows import Encoding
from forecast.scores.distribution import Distribution, interval_probabilities

Array = NDArray[np.float64]

NO_INTERVALS = (
    "this checkpoint has no intervals: it was made before checkpoints had any; train or tune the model again"
)


@dataclass(frozen=True)
class Prediction:
    """A model's forecasts of the next price of each of n windows.

    Attributes:
        prices: point forecasts, shape (n,).
        distribution: in units of the model's output; None where the model has none.
        last: each window's normalized last value, shape (n,).
        encoding: the model's encoding.
    """

    prices: Array
    distribution: Distribution | None
    last: Array
    encoding: Encoding

    def intervals(self, levels: Sequence[float]) -> Array:
        """Lower and upper bounds of central intervals, shape (n, levels, 2), in price units.

        Raises:
            LevelError: when the model has no intervals, or none that wide.
            WindowError: when a bound is not a finite number.
        """
        require_levels(self.distribution.widest_level if self.distribution else 0.0, levels)
        return bounds_of(self.quantiles(interval_probabilities(levels)))

    def quantiles(self, probabilities: Array) -> Array:
        """Quantiles (n, k) at probabilities (k,), in price units.

        Raises:
            LevelError: when the model has no distribution.
            WindowError: when a quantile is not a finite number.
        """
        outputs = self.required_distribution.quantiles(probabilities)
        return require_finite(self.encoding.prices(outputs, self.last))

    @property
    def required_distribution(self) -> Distribution:
        """The distribution.

        Raises:
            LevelError: when the model has none.
        """
        if self.distribution is None:
            raise LevelError(NO_INTERVALS)
        return self.distribution

    def split(self) -> list[Prediction]:
        """One prediction for each window."""
        each = self.distribution.split() if self.distribution else [None] * len(self.prices)
        return [
            Prediction(self.prices[i : i + 1], one, self.last[i : i + 1], self.encoding)
            for i, one in enumerate(each)
        ]


def bounds_of(quantiles: Array) -> Array:
    """Lower and upper bounds (..., levels, 2) from quantiles (..., 2 levels) at the ``interval_probabilities``."""
    return np.stack(np.split(quantiles, 2, axis=-1), axis=-1)


def require_levels(widest: float, levels: Sequence[float], where: str = "") -> None:
    """Check that a model with intervals up to the level ``widest`` (0 for none) has those of ``levels``.

    ``where`` says which intervals have that limit, if not all.

    Raises:
        LevelError: when it does not, or a level is not between zero and one.
    """
    if not widest:
        raise LevelError(NO_INTERVALS)
    for level in levels:
        if not 0 < level < 1:
            raise LevelError(f"level {level:g} is not between 0 and 1; give 0.9 for an interval of 90 %")
        if level > widest:
            raise LevelError(
                f"level {level} is too high: this model has intervals up to level {widest:.4g}{where and ' '}{where}; "
                "choose a lower level"
            )


def require_finite(prices: Array) -> Array:
    """Return the prices unchanged if all are finite.

    Raises:
        WindowError: when a price is not a finite number.
    """
    if not np.isfinite(prices).all():
        raise WindowError(
            "the forecast for these values is not a finite number: the values lie too far outside the "
            "training range; check the scale of the values"
        )
    return prices


def describe_intervals(bounds: Array, levels: Sequence[float], *, steps: bool) -> list[dict[str, Any]]:
    """Intervals (horizon, levels, 2) of one window as plain values: ``level``, ``lower`` and ``upper``.

    With ``steps``, each bound is a list with one number per step; otherwise it is the first step's number.
    """
    return [
        {"level": level, "lower": lower if steps else lower[0], "upper": upper if steps else upper[0]}
        for level, (lower, upper) in zip(levels, bounds.transpose(1, 2, 0).tolist(), strict=True)
    ]
