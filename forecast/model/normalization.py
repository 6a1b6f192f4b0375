"""Normalization of prices: one scaling per column, fitted on training rows alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forecast.errors import DataError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Scaling:
    """The scaling ``z = (f(price) - mean) / std``, with ``f`` the natural logarithm if ``log``, else the identity.

    Attributes:
        mean: mean of ``f(price)`` over the training rows.
        std: population standard deviation of ``f(price)`` over the training rows.
        change_std: population standard deviation of one-step changes of ``z`` over the training rows.
        log: whether ``f`` is the logarithm.
    """

    mean: float
    std: float
    change_std: float
    log: bool

    @classmethod
    def fit(cls, train_values: Array, *, log: bool, name: str = "prices") -> Scaling:
        """Fit on training values, shape (n,), n >= 3; messages call them ``name``.

        Raises:
            DataError: when the values, or their changes, are all equal, or not positive for ``log``.
        """
        if log and not np.all(train_values > 0):
            raise DataError(f"log prices need positive {name}; set `log_prices=False`")
        scaled = np.log(train_values) if log else train_values
        mean, std = float(scaled.mean()), float(scaled.std())
        change_std = float(np.diff(scaled).std())
        # Rounding errors give even a constant series a standard deviation above zero.
        tiny = 1e-12 * max(1.0, abs(mean))
        if not (std > tiny and change_std > tiny):
            raise DataError(
                f"the {len(train_values)} training {name} do not vary (first value {train_values[0]:g}); "
                "check the column and the date range"
            )
        return cls(mean=mean, std=std, change_std=change_std / std, log=log)

    def normalize(self, prices: ArrayLike) -> Array:
        """Prices of any shape to normalized values of the same shape."""
        values = np.asarray(prices, dtype=np.float64)
        return ((np.log(values) if self.log else values) - self.mean) / self.std

    def denormalize(self, normalized: ArrayLike) -> Array:
        """The inverse of ``normalize``, in price units."""
        values = np.asarray(normalized, dtype=np.float64) * self.std + self.mean
        return np.exp(values) if self.log else values


@dataclass(frozen=True)
class Normalization:
    """The scaling of each column, the feature's first."""

    scalings: tuple[Scaling, ...]

    @classmethod
    def fit(cls, train_matrix: Array, columns: Sequence[str], *, log: bool) -> Normalization:
        """Fit on training rows, shape (n, columns).

        Raises:
            DataError: when the values of a column, or their changes, are all equal, or not positive for ``log``.
        """
        names = ["prices", *(f"values of {name}" for name in columns[1:])]
        return cls(tuple(Scaling.fit(train_matrix[:, i], log=log, name=name) for i, name in enumerate(names)))

    @property
    def feature(self) -> Scaling:
        """The scaling of the feature."""
        return self.scalings[0]

    @cached_property
    def change_stds(self) -> Array:
        """``change_std`` of each column, shape (columns,)."""
        return np.array([scaling.change_std for scaling in self.scalings])

    def normalize(self, prices: Array) -> Array:
        """Prices (..., columns) to normalized values of the same shape."""
        return self._by_column(Scaling.normalize, prices)

    def denormalize(self, normalized: Array) -> Array:
        """The inverse of ``normalize``, in price units."""
        return self._by_column(Scaling.denormalize, normalized)

    def _by_column(self, scale: Callable[[Scaling, Array], Array], values: Array) -> Array:
        if len(self.scalings) == 1:
            return scale(self.feature, values)
        return np.stack([scale(one, values[..., i]) for i, one in enumerate(self.scalings)], axis=-1)
