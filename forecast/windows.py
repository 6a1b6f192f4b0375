"""Windows: what a model sees, what it is asked for, and how its output becomes a price.

Training, evaluation and serving encode and decode through the same two functions of ``Encoding``, so a
forecast means the same everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from forecast.config import DataConfig, Target
from forecast.normalization import Normalization
from forecast.series import Series
from forecast.split import Part, Split, split_rows

Array = NDArray[np.float64]

CHANGE_BOUND = 3.0
"""Largest change a residual model sees, in standard deviations of the training changes; approached smoothly."""


@dataclass(frozen=True)
class Encoding:
    """Prices to model inputs and model outputs to prices, for one kind of target.

    ``residual``: the inputs are the window's one-step changes, softly bounded, and the output is the next
    one, all in units of the training changes' standard deviation; an output of zero is persistence.
    ``level``: inputs and output are normalized prices (the original design).
    """

    normalization: Normalization
    target: Target

    def inputs(self, normalized: Array) -> NDArray[np.float32]:
        """Normalized windows (n, sequence_length) to model inputs, (n, sequence_length - 1) for residual."""
        if self.target == "level":
            return normalized.astype(np.float32)
        changes = np.diff(normalized, axis=-1) / self.normalization.change_std
        # A few violent days would otherwise decide what is learned, and a calmer or wilder market than the
        # training's would be answered with changes of its own size.
        return (CHANGE_BOUND * np.tanh(changes / CHANGE_BOUND)).astype(np.float32)

    def wanted(self, normalized_last: Array, normalized_next: Array) -> NDArray[np.float32]:
        """The output that would be exact, (n,), from the values before and at the target rows."""
        if self.target == "level":
            return normalized_next.astype(np.float32)
        change = (normalized_next - normalized_last) / self.normalization.change_std
        return change.astype(np.float32)

    def prices(self, outputs: NDArray[np.float32], normalized_last: Array) -> Array:
        """Model outputs (n,) to prices (n,), given each window's normalized last value (n,)."""
        values = outputs.astype(np.float64)
        if self.target == "residual":
            values = normalized_last + values * self.normalization.change_std
        return self.normalization.denormalize(values)


@dataclass(frozen=True)
class Windows:
    """The windows of one part of a series, one per target row.

    Attributes:
        inputs: model inputs, shape (n, length), float32.
        wanted: exact outputs, shape (n,), float32.
        last: normalized value before each target row, shape (n,).
        actual: price of each target row, shape (n,).
        previous: price before each target row (the persistence forecast), shape (n,).
    """

    inputs: NDArray[np.float32]
    wanted: NDArray[np.float32]
    last: Array
    actual: Array
    previous: Array

    def __len__(self) -> int:
        return len(self.wanted)


@dataclass(frozen=True)
class PreparedSeries:
    """A normalized series with its split: the one array that all models of an experiment share.

    Attributes:
        normalized: shape (n,), or shorter after ``without_test``.
    """

    normalized: Array
    normalization: Normalization
    split: Split

    def without_test(self) -> PreparedSeries:
        """The same series with its test rows cut off: what a search may see."""
        return replace(self, normalized=self.normalized[: self.split.validation_end].copy())

    @property
    def train_range(self) -> tuple[float, float]:
        """Least and largest training price."""
        train = self.normalization.denormalize(self.normalized[: self.split.train_end])
        return float(train.min()), float(train.max())

    def windows(self, part: Part, sequence_length: int, target: Target) -> Windows:
        """Windows of every target row of ``part``.

        Raises:
            IndexError: for test windows of a series ``without_test``.
        """
        rows = np.arange(*_bounds(self.split.targets(part, sequence_length)))
        if len(rows) and rows[-1] >= len(self.normalized):
            raise IndexError(f"this series holds no {part} rows")
        encoding = Encoding(self.normalization, target)
        history = np.lib.stride_tricks.sliding_window_view(self.normalized, sequence_length)
        last, following = self.normalized[rows - 1], self.normalized[rows]
        return Windows(
            inputs=encoding.inputs(history[rows - sequence_length]),
            wanted=encoding.wanted(last, following),
            last=last,
            actual=self.normalization.denormalize(following),
            previous=self.normalization.denormalize(last),
        )


def _bounds(rows: range) -> tuple[int, int]:
    return rows.start, rows.stop


def prepare(series: Series, config: DataConfig) -> PreparedSeries:
    """Split ``series`` and normalize it with statistics of its training rows alone.

    Raises:
        DataError: when the series is too short to be split or its training prices do not vary.
    """
    split = split_rows(len(series), config.train_ratio, config.val_ratio_within_train)
    normalization = Normalization.fit(series.values[: split.train_end], log=config.log_prices)
    return PreparedSeries(normalization.normalize(series.values), normalization, split)
