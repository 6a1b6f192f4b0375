"""Scaling of prices, fitted on training rows alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forecast.errors import DataError


@dataclass(frozen=True)
class Normalization:
    """``z = (f(price) - mean) / std`` with ``f`` the natural logarithm when ``log``, else the identity.

    Attributes:
        mean: of ``f(price)`` over the training rows.
        std: population standard deviation of ``f(price)`` over the training rows.
        change_std: population standard deviation of one-step changes of ``z`` over the training rows.
        log: whether prices are taken as logarithms.
    """

    mean: float
    std: float
    change_std: float
    log: bool

    @classmethod
    def fit(cls, train_values: NDArray[np.float64], *, log: bool, name: str = "prices") -> Normalization:
        """Fit on training prices, shape (n,), n >= 3; ``name`` is what a message calls them.

        Raises:
            DataError: when the prices, or their changes, are all equal, or not positive for ``log``.
        """
        if log and not np.all(train_values > 0):
            raise DataError(f"log prices need positive {name}; add --no-log-prices")
        scaled = np.log(train_values) if log else train_values
        mean, std = float(scaled.mean()), float(scaled.std())
        change_std = float(np.diff(scaled).std())
        # A constant series has a spread of rounding errors, not of zero.
        tiny = 1e-12 * max(1.0, abs(mean))
        if not (std > tiny and change_std > tiny):
            raise DataError(
                f"the {len(train_values)} training {name} do not vary (first value {train_values[0]:g}); "
                "check the column and the date range"
            )
        return cls(mean=mean, std=std, change_std=change_std / std, log=log)

    def normalize(self, prices: ArrayLike) -> NDArray[np.float64]:
        """Prices of any shape to normalized values of the same shape."""
        values = np.asarray(prices, dtype=np.float64)
        return ((np.log(values) if self.log else values) - self.mean) / self.std

    def denormalize(self, normalized: ArrayLike) -> NDArray[np.float64]:
        """The inverse of ``normalize``, in price units."""
        values = np.asarray(normalized, dtype=np.float64) * self.std + self.mean
        return np.exp(values) if self.log else values

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values."""
        return asdict(self)
