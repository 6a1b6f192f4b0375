"""Normalization of prices: one scaling per column, fitted on training rows alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forecast.errors import DataError
from forecast.names import plain_name

Array = NDArray[np.float64]
BarPart = Literal["open", "high", "low"]
BARS_OF = "close"
"""The feature beside which the columns of a bar are parts of the same bar: an adjusted close is on another scale."""


def as_numbers(values: ArrayLike) -> Array:
    """Numbers of any shape as an array; a traced array (``forecast.model.tracing``) stays one."""
    array: Any = values if hasattr(values, "__array_function__") else np.asarray(values)
    numbers: Array = array.astype(np.float64, copy=False)
    return numbers


def rounding_of(mean: Any) -> Any:
    """The largest standard deviation that rounding errors could give to values that are all equal to ``mean``."""
    return 1e-12 * np.maximum(1.0, np.absolute(mean))


@dataclass(frozen=True)
class Scaling:
    """The scaling ``z = (f(price) - mean) / std``, with ``f`` the natural logarithm if ``log``, else the identity.

    Attributes:
        mean: mean of ``f(price)`` over the training rows.
        std: population standard deviation of ``f(price)`` over the training rows.
        change_std: population standard deviation of one-step changes of ``z`` over the training rows.
        log: whether ``f`` is the logarithm.
        part: the part of the bar that a column is, whose ``f(price)`` is taken relative to the feature's; None for
            every other column.
    """

    mean: float
    std: float
    change_std: float
    log: bool
    part: BarPart | None = None

    @classmethod
    def fit(
        cls,
        train_values: Array,
        *,
        log: bool,
        name: str = "prices",
        part: BarPart | None = None,
        feature: Array | None = None,
    ) -> Scaling:
        """Fit on training values, shape (n,), n >= 3; messages call them ``name``.

        Args:
            train_values: the column's training values.
            log: whether to take logarithms.
            name: what messages call the values.
            part: the part of the bar that the column is.
            feature: the feature's training values, shape (n,), for a part of the bar.

        Raises:
            DataError: when the values, or their changes, are all equal, or not positive for ``log``.
        """
        if log and not np.all(train_values > 0):
            raise DataError(f"log prices need positive {name}; set `log_prices=False`")
        scaled = np.log(train_values) if log else train_values
        if part and feature is not None:
            scaled = scaled - (np.log(feature) if log else feature)
        mean, std = float(scaled.mean()), float(scaled.std())
        change_std = float(np.diff(scaled).std())
        if not (std > rounding_of(mean) and change_std > rounding_of(mean)):
            shown = scaled if part else train_values
            raise DataError(
                f"the {len(shown)} training {name} do not vary (first value {shown[0]:g}); "
                "check the column and the date range"
            )
        return cls(mean=mean, std=std, change_std=change_std / std, log=log, part=part)

    def normalize(self, prices: ArrayLike) -> Array:
        """Prices of any shape to normalized values of the same shape."""
        values = as_numbers(prices)
        return ((np.log(values) if self.log else values) - self.mean) / self.std

    def denormalize(self, normalized: ArrayLike) -> Array:
        """The inverse of ``normalize``, in price units."""
        values = as_numbers(normalized) * self.std + self.mean
        return np.exp(values) if self.log else values


@dataclass(frozen=True)
class Normalization:
    """The scaling of each column, the feature's first.

    A part of the bar (see ``Scaling.part``) is normalized as its distance from the feature of the same row.
    """

    scalings: tuple[Scaling, ...]

    @classmethod
    def fit(cls, train_matrix: Array, columns: Sequence[str], *, log: bool) -> Normalization:
        """Fit on training rows, shape (n, columns).

        Raises:
            DataError: when the values of a column, or their changes, are all equal, or not positive for ``log``.
        """
        feature = train_matrix[:, 0]
        scalings = [Scaling.fit(feature, log=log)]
        for i, name in enumerate(columns[1:], 1):
            part = bar_part(name, columns[0])
            described = f"distances of {name} from {columns[0]}" if part else f"values of {name}"
            scalings.append(
                Scaling.fit(train_matrix[:, i], log=log, name=described, part=part, feature=feature)
            )
        return cls(tuple(scalings))

    @property
    def feature(self) -> Scaling:
        """The scaling of the feature."""
        return self.scalings[0]

    @cached_property
    def change_stds(self) -> Array:
        """``change_std`` of each column, shape (columns,)."""
        return np.array([scaling.change_std for scaling in self.scalings])

    @cached_property
    def parts(self) -> dict[str, int]:
        """The column number of each part of the bar."""
        return {scaling.part: i for i, scaling in enumerate(self.scalings) if scaling.part}

    def normalize(self, prices: Array) -> Array:
        """Prices (..., columns) to normalized values of the same shape."""
        if len(self.scalings) == 1:
            return self.feature.normalize(prices)
        return np.stack([self.column(prices, i) for i in range(len(self.scalings))], axis=-1)

    def column(self, prices: Array, i: int) -> Array:
        """Normalized values (...) of one column of prices (..., columns)."""
        scaling = self.scalings[i]
        values = scaling.normalize(prices[..., i])
        return values - self._unscaled_feature(prices[..., 0]) / scaling.std if scaling.part else values

    def denormalize(self, normalized: Array) -> Array:
        """The inverse of ``normalize``, in price units."""
        if len(self.scalings) == 1:
            return self.feature.denormalize(normalized)
        prices = [self.feature.denormalize(normalized[..., 0])]
        for i, scaling in enumerate(self.scalings[1:], 1):
            values = normalized[..., i]
            if scaling.part:
                values = values + self._unscaled_feature(prices[0]) / scaling.std
            prices.append(scaling.denormalize(values))
        return np.stack(prices, axis=-1)

    def following_bars(self, prices: Array) -> Array:
        """Normalized rows (n, columns) of forecast prices (n,); the parts of these bars are at their training mean."""
        rows = np.zeros((len(prices), len(self.scalings)))
        rows[:, 0] = self.feature.normalize(prices)
        return rows

    def _unscaled_feature(self, prices: Array) -> Array:
        return np.log(prices) if self.feature.log else prices


def sees_range(columns: Sequence[str], feature: str) -> bool:
    """Whether columns hold the range of the feature's bars: the high and the low."""
    return {"high", "low"} <= {bar_part(column, feature) for column in columns}


def bar_part(column: str, feature: str) -> BarPart | None:
    """The part of the feature's bars that a column is, by their names; None for none."""
    name = plain_name(column)
    parts: tuple[BarPart, ...] = get_args(BarPart)
    return next((part for part in parts if part == name), None) if plain_name(feature) == BARS_OF else None
