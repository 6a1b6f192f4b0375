"""Windows: a model's inputs, its targets, and the conversion of its outputs to prices.

Training, evaluation and serving encode and decode through the same functions of ``Encoding``, so a forecast means
the same everywhere. The last axis of arrays of values is the columns: the feature first, then the input columns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forecast.config import DataConfig, ExperimentConfig, Likelihood, Target, TrainConfig
from forecast.model.normalization import Normalization
from forecast.model.split import Part, Split, split_rows
from forecast.prices.series import Series
from forecast.scores.distribution import PROBABILITIES
from forecast.scores.metrics import PRICE_FLOOR, Rows

Array = NDArray[np.float64]

CHANGE_BOUND = 3.0
"""Largest change a residual model sees, in standard deviations of the training changes; approached smoothly."""
VOLATILITY_DECAY = 0.94
"""Weight of yesterday's variance in today's: RiskMetrics' value for daily data (J.P. Morgan/Reuters 1996, sec. 5.3)."""
EXACT_DIGITS = 12
"""Significant digits of a price that survive normalization and its inverse, unless it is far below the others."""


def channels(config: ExperimentConfig) -> int:
    """Count the numbers that a network sees per step: one per column, and for ``student_t`` the size of the change."""
    return 1 + len(config.input_columns) + (config.likelihood == "student_t")


@dataclass(frozen=True)
class Encoding:
    """Converts prices to model inputs and model outputs to prices, for one target and likelihood.

    ``residual``: the inputs are the window's one-step changes, softly bounded, and the output is the next change, all
    in units of the training changes' standard deviation; an output of zero is persistence. ``level``: inputs and output
    are normalized prices (the original design). A ``student_t`` model also sees the size of the changes.
    """

    normalization: Normalization
    target: Target
    likelihood: Likelihood = "mse"

    def inputs(self, normalized: Array) -> NDArray[np.float32]:
        """Normalized windows (n, sequence_length, columns) to model inputs (n, length, channels).

        For ``residual``, length is one less than ``sequence_length``.
        """
        changes = self._changes(normalized)
        if self.target == "level":
            seen = [normalized]
            changes = np.concatenate([np.zeros_like(changes[:, :1]), changes], axis=1)
        else:
            # Without the bound, a few violent days would dominate training, and forecasts would scale with the changes
            # of a calmer or wilder market than that of the training rows.
            seen = [CHANGE_BOUND * np.tanh(changes / CHANGE_BOUND)]
        if self.likelihood == "student_t":
            seen.append(np.sqrt(np.abs(changes[..., :1])))
        return np.concatenate(seen, axis=-1, dtype=np.float32, casting="same_kind")

    def volatility(self, normalized: Array) -> NDArray[np.float32]:
        """Expected standard deviation of the next output, (n,), from normalized windows.

        Its square is an exponentially weighted mean of the window's squared changes; the mean starts from the training
        variance, so it is never zero.
        """
        squares = np.square(self._changes(normalized)[..., 0])
        ages = np.arange(squares.shape[1] - 1, -1, -1)
        weights = (1 - VOLATILITY_DECAY) * VOLATILITY_DECAY**ages
        variance = squares @ weights + VOLATILITY_DECAY ** squares.shape[1]
        volatility: NDArray[np.float32] = (np.sqrt(variance) * self._output_scale).astype(np.float32)
        return volatility

    def _changes(self, normalized: Array) -> Array:
        """One-step changes in units of each column's standard deviation in training."""
        changes: Array = np.diff(normalized, axis=1) / self.normalization.change_stds
        return changes

    @property
    def _output_scale(self) -> float:
        """The training changes' standard deviation in units of the output."""
        return self.normalization.feature.change_std if self.target == "level" else 1.0

    def targets(self, normalized_last: Array, normalized_next: Array) -> NDArray[np.float32]:
        """Exact outputs (n,) from the feature's normalized values before and at the target rows."""
        if self.target == "level":
            return normalized_next.astype(np.float32)
        change = (normalized_next - normalized_last) / self.normalization.feature.change_std
        return change.astype(np.float32)

    def prices(self, outputs: ArrayLike, normalized_last: Array) -> Array:
        """Outputs (n,) or (n, k) to prices of that shape, given each window's normalized last value (n,)."""
        values = np.asarray(outputs, dtype=np.float64)
        if self.target == "residual":
            last = normalized_last if values.ndim == 1 else normalized_last[:, np.newaxis]
            values = last + values * self.normalization.feature.change_std
        return self.normalization.feature.denormalize(values)


@dataclass(frozen=True)
class Windows:
    """The windows of one part of a series, one per target row.

    Attributes:
        inputs: model inputs, shape (n, length, channels), float32.
        volatility: expected standard deviation of each output, shape (n,), float32.
        targets: exact outputs, shape (n,), float32.
        last: the feature's normalized value before each target row, shape (n,).
    """

    inputs: NDArray[np.float32]
    volatility: NDArray[np.float32]
    targets: NDArray[np.float32]
    last: Array

    def __len__(self) -> int:
        return len(self.targets)

    def part(self, rows: slice) -> Windows:
        """The windows of ``rows`` alone."""
        return Windows(self.inputs[rows], self.volatility[rows], self.targets[rows], self.last[rows])


@dataclass(frozen=True)
class PreparedSeries:
    """A normalized series with its split: the one array that all models of an experiment share.

    Attributes:
        normalized: shape (n, columns), the feature first; fewer rows after ``without_test``.
        normalization: the scaling of each column.
        split: the row boundaries of the parts.
        trained_until: date or time of the last training row, ISO 8601; None when it is not known.
    """

    normalized: Array
    normalization: Normalization
    split: Split
    trained_until: str | None = None

    def without_test(self) -> PreparedSeries:
        """The same series without its test rows, for a search, which must not see them."""
        return replace(self, normalized=self.normalized[: self.split.validation_end].copy())

    def encoding(self, config: ExperimentConfig) -> Encoding:
        """The encoding of this series for the models of an experiment."""
        return Encoding(self.normalization, config.target, config.likelihood)

    @cached_property
    def train_prices(self) -> Array:
        """The feature's training prices, shape (n,)."""
        return self.normalization.feature.denormalize(self.normalized[: self.split.train_end, 0])

    @property
    def train_range(self) -> tuple[float, float]:
        """Least and largest training price."""
        return float(self.train_prices.min()), float(self.train_prices.max())

    def latest_window(self, length: int) -> list[Any]:
        """The last ``length`` rows in price units, oldest first, as ``plain_window`` gives them."""
        window = self.normalization.denormalize(self.normalized[-length:])
        # Normalization and its inverse change the last digits.
        exact = [float(f"{value:.{EXACT_DIGITS}g}") for value in window.ravel()]
        return plain_window(np.array(exact).reshape(window.shape))

    def windows(self, part: Part, config: TrainConfig) -> Windows:
        """Windows of every target row of ``part``, as a model with this ``config`` sees them.

        Raises:
            IndexError: for test windows of a series ``without_test``.
        """
        length = config.sequence_length
        rows = self.target_rows(part, length)
        encoding = self.encoding(config)
        # The last axis of the view is the window's steps.
        history = np.lib.stride_tricks.sliding_window_view(self.normalized, length, axis=0)
        seen = history[rows - length].swapaxes(1, 2)
        last, following = self.normalized[rows - 1, 0], self.normalized[rows, 0]
        return Windows(
            inputs=encoding.inputs(seen),
            volatility=encoding.volatility(seen),
            targets=encoding.targets(last, following),
            last=last,
        )

    def rows(self, part: Part, sequence_length: int) -> Rows:
        """The actual prices of the target rows of ``part``, with persistence's forecasts of them.

        Persistence's distribution is that of all changes before the part; for ``train``, of the changes within it.

        Raises:
            IndexError: for test rows of a series ``without_test``.
        """
        targets = self.target_rows(part, sequence_length)
        last = self.normalized[targets - 1, 0]
        before = self.split.validation_end if part == "test" else self.split.train_end
        changes = np.quantile(np.diff(self.normalized[:before, 0]), PROBABILITIES)
        feature = self.normalization.feature
        return Rows(
            actual=feature.denormalize(self.normalized[targets, 0]),
            previous=feature.denormalize(last),
            persistence=feature.denormalize(last[:, np.newaxis] + changes),
            naive_mae=float(np.abs(np.diff(self.train_prices)).mean()),
            price_floor=PRICE_FLOOR * float(np.abs(self.train_prices).mean()),
        )

    def target_rows(self, part: Part, sequence_length: int) -> NDArray[np.intp]:
        """Row numbers of ``part`` that can be forecast from ``sequence_length`` rows before them.

        Raises:
            IndexError: for test rows of a series ``without_test``.
        """
        targets = self.split.targets(part, sequence_length)
        if len(targets) and targets[-1] >= len(self.normalized):
            raise IndexError(f"this series holds no {part} rows")
        return np.arange(targets.start, targets.stop)


def plain_window(rows: Array) -> list[Any]:
    """Write a window (length, columns) as requests and answers do: numbers, or a list per row for several columns."""
    window: list[Any] = (rows[:, 0] if rows.shape[1] == 1 else rows).tolist()
    return window


def prepare(series: Series, config: DataConfig, split: Split | None = None) -> PreparedSeries:
    """Split ``series`` and normalize it with statistics of its training rows alone.

    Args:
        series: clean prices.
        config: ratios of the split, and whether to take the logarithm of prices.
        split: row boundaries to use instead of those from the ratios.

    Raises:
        DataError: when the series is too short to split, or a column's training values do not vary.
    """
    split = split or split_rows(len(series), config.train_ratio, config.val_ratio_within_train)
    matrix = series.matrix[: split.rows]
    normalization = Normalization.fit(matrix[: split.train_end], series.columns, log=config.log_prices)
    (trained_until,) = series.timeline.text(series.dates[split.train_end - 1 : split.train_end])
    return PreparedSeries(normalization.normalize(matrix), normalization, split, trained_until)
