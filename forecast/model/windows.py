"""Windows: a model's inputs, its targets, and the conversion of its outputs to prices.

Training, evaluation and serving encode and decode through the same functions of ``Encoding``, so a forecast means
the same everywhere. The last axis of arrays of values is the columns: the feature first, then the input columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forecast.config import DataConfig, TrainConfig, VolatilityName
from forecast.errors import DataError
from forecast.model.market import CHANNELS as MARKET_CHANNELS
from forecast.model.market import COLUMNS as MARKET_COLUMNS
from forecast.model.market import market_channels
from forecast.model.normalization import Normalization, as_numbers
from forecast.model.split import Part, Split, split_rows
from forecast.model.volatility import Recursion, ewma, fit_recursion
from forecast.prices.series import Series
from forecast.scores.distribution import PROBABILITIES
from forecast.scores.metrics import PRICE_FLOOR, Rows

Array = NDArray[np.float64]

BOUND = 3.0
"""Largest value of an input of a residual model, in standard deviations of the training rows; approached smoothly."""
LOG_SCALE = 0.3
"""Factor on logarithms of volatilities as inputs: they matter less than changes, and vary about as much."""
EXACT_DIGITS = 12
"""Significant digits of a price that survive normalization and its inverse, unless it is far below the others."""
ENCODED_AT_A_TIME = 128
"""Rows encoded at a time: with more, most weights of the histories that they share would be zero."""
RECURSIONS: dict[VolatilityName, tuple[VolatilityName, ...]] = {
    "ewma": ("ewma", "gjr"),
    "gjr": ("gjr", "ewma"),
    "range": ("range", "gjr", "ewma"),
    "window": ("window",),
}
"""The recursions of each volatility: the network corrects the first, and sees all."""


def sees_volatility(config: TrainConfig) -> bool:
    """Whether volatilities are inputs of the network; those of version 0.1, with ``window``, saw none."""
    return config.likelihood == "student_t" and config.volatility != "window"


def channels(config: TrainConfig) -> int:
    """Count the numbers that a network sees per step.

    They are one per column; for ``student_t`` also the size of the change, and the logarithm of each volatility; and
    those of the market.
    """
    further = 1 + len(RECURSIONS[config.volatility]) * sees_volatility(config)
    own = 1 + len(config.input_columns) + further * (config.likelihood == "student_t")
    return own + MARKET_CHANNELS * config.market


@dataclass(frozen=True)
class Encoding:
    """Converts prices to model inputs and model outputs to prices, for one configuration.

    ``residual``: the inputs are the window's one-step changes, softly bounded, and the output is the next change, all
    in units of the training changes' standard deviation; an output of zero is persistence. ``level``: inputs and output
    are normalized prices (the original design). Parts of the bar are seen as they are normalized, not as changes.

    Rows (n, rows, columns) are normalized values, the feature first; for models that see the market, its columns come
    last.

    Attributes:
        normalization: the scaling of each column.
        config: the model's options.
        recursions: the volatility's, the one that the network corrects first.
    """

    normalization: Normalization
    config: TrainConfig
    recursions: tuple[Recursion, ...]

    @property
    def length(self) -> int:
        """Number of steps that the network sees."""
        return self.config.sequence_length - (self.config.target == "residual")

    @property
    def history(self) -> int:
        """Number of changes that the volatility of a step comes from."""
        return max(recursion.history for recursion in self.recursions)

    @property
    def values_of_volatility(self) -> int:
        """Number of rows, the latest, that the volatility of the next output comes from, and at least the window's."""
        return max(self.config.sequence_length, self.history + 1)

    @property
    def rows(self) -> int:
        """Number of rows that a forecast uses: those of the window, and of the history of each volatility."""
        seen = self.length if sees_volatility(self.config) else 1
        return max(self.config.sequence_length, self.history + seen)

    def encode(self, normalized: Array) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Model inputs, and the expected standard deviation of the next output, of normalized rows.

        Args:
            normalized: shape (n, rows, columns), oldest first: at least those of the window, which are its last
                ``sequence_length``; NaN in rows before the window that are not known.

        Returns:
            Inputs (n, length, channels), and volatilities (n,).
        """
        steps, volatility = self.steps(normalized, self.length, last_volatility=True)
        if self.unknown_first is not None:
            known = np.ones(steps.shape[1:], np.bool_)
            known[0, self.unknown_first] = False
            steps = np.where(known, steps, np.float32(0))
        return steps, volatility[:, -1]

    @property
    def unknown_first(self) -> int | None:
        """The channel that is zero at a window's first step, since it needs the row before it; None without one."""
        level = self.config.target == "level" and self.config.likelihood == "student_t"
        return 1 + len(self.config.input_columns) if level else None

    def steps(
        self, normalized: Array, count: int, *, last_volatility: bool = False
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What networks see at each of the last ``count`` rows, and the expected standard deviation after each.

        Args:
            normalized: shape (n, rows, columns), oldest first; NaN in rows that are not known.
            count: number of rows.
            last_volatility: whether only the last volatility is needed, unless networks see all of them.

        Returns:
            Steps (n, count, channels), and volatilities (n, count), or (n, 1).
        """
        needed = count + self.history
        if normalized.shape[1] < needed:
            unknown = np.full((len(normalized), needed - normalized.shape[1], normalized.shape[2]), np.nan)
            normalized = np.concatenate([unknown, normalized], axis=1)
        rows, market = self._without_market(normalized[:, -needed:])
        changes, recent = self._changes(rows), rows[:, -count:]
        seen = [recent]
        if self.config.target == "residual":
            # Without the bound, a few violent days would dominate training, and forecasts would scale with the changes
            # of a calmer or wilder market than that of the training rows.
            seen = [BOUND * np.tanh(self._moves(changes[:, -count:], recent) / BOUND)]
        needed_alone = last_volatility and not sees_volatility(self.config)
        logs = self._log_volatilities(rows, changes[..., 0], 1 if needed_alone else count)
        if self.config.likelihood == "student_t":
            seen.append(np.sqrt(np.abs(np.nan_to_num(changes[:, -count:, :1]))))
        if sees_volatility(self.config):
            seen.append(LOG_SCALE * logs)
        if market is not None:
            seen.append(market_channels(market, count, BOUND, LOG_SCALE))
        steps = np.concatenate(seen, axis=-1, dtype=np.float32, casting="same_kind")
        return steps, (np.exp(logs[..., 0]) * self.output_scale).astype(np.float32)

    def _without_market(self, rows: Array) -> tuple[Array, Array | None]:
        """Rows without the market's columns, and these; None for models that do not see it."""
        if not self.config.market:
            return rows, None
        return rows[..., :-MARKET_COLUMNS], rows[..., -MARKET_COLUMNS:]

    def with_market(self, rows: Array, market: Array | None = None) -> Array:
        """Rows (n, k, columns) with the market's columns, which are not known unless given, shape (n, k, 2).

        The same rows for models that do not see the market.
        """
        if not self.config.market:
            return rows
        if market is None:
            market = np.full((*rows.shape[:-1], MARKET_COLUMNS), np.nan)
        return np.concatenate([rows, market], axis=-1)

    def hide_market(self, rows: Array) -> Array:
        """The same rows without the market, as where it is not known."""
        return self.with_market(self._without_market(rows)[0])

    def _log_volatilities(self, rows: Array, changes: Array, count: int) -> Array:
        """Logarithms of the volatilities after each of the last ``count`` changes, shape (n, count, recursions)."""
        ranges = range_variances(rows, self.normalization)
        variances = [recursion.variances(changes, ranges, count) for recursion in self.recursions]
        logs: Array = np.log(np.stack(variances, axis=-1)) / 2
        return logs

    def _changes(self, normalized: Array) -> Array:
        """One-step changes in units of each column's standard deviation in training."""
        changes: Array = np.diff(normalized, axis=1) / self.normalization.change_stds
        return changes

    def _moves(self, changes: Array, rows: Array) -> Array:
        """The inputs of each column at each step: its change, or for a part of the bar its value."""
        if not (parts := self.normalization.parts):
            return changes
        is_part = np.isin(np.arange(rows.shape[-1]), list(parts.values()))
        moves: Array = np.where(is_part, rows, changes)
        return moves

    @property
    def sees_changes_alone(self) -> bool:
        """Whether inputs and volatilities come from nothing but changes in units of those in training."""
        return self.config.target == "residual" and not self.normalization.parts

    @property
    def output_scale(self) -> float:
        """The training changes' standard deviation in units of the output."""
        return self.normalization.feature.change_std if self.config.target == "level" else 1.0

    def targets(self, normalized_last: Array, normalized_next: Array) -> NDArray[np.float32]:
        """Exact outputs (n,) from the feature's normalized values before and at the target rows."""
        if self.config.target == "level":
            return normalized_next.astype(np.float32)
        change = (normalized_next - normalized_last) / self.normalization.feature.change_std
        return change.astype(np.float32)

    def prices(self, outputs: ArrayLike, normalized_last: Array) -> Array:
        """Outputs (n,) or (n, k) to prices of that shape, given each window's normalized last value (n,)."""
        values = as_numbers(outputs)
        if self.config.target == "residual":
            last = normalized_last if values.ndim == 1 else normalized_last[:, np.newaxis]
            values = last + values * self.normalization.feature.change_std
        return self.normalization.feature.denormalize(values)


def views(encodings: Sequence[Encoding]) -> tuple[list[Encoding], list[int]]:
    """The encodings that differ in what a member sees, and for each member the number of its own."""

    def seen(encoding: Encoding) -> tuple[int, tuple[Recursion, ...]]:
        return encoding.config.sequence_length, encoding.recursions

    distinct = {seen(encoding): encoding for encoding in reversed(encodings)}
    order = list(dict.fromkeys(map(seen, encodings)))
    return [distinct[each] for each in order], [order.index(seen(encoding)) for encoding in encodings]


@dataclass(frozen=True)
class Windows:
    """The windows of one part of a series, one per target row.

    Attributes:
        steps: what networks see at each row, shape (rows, channels), float32.
        ends: for each window, the number of the row after its last one, shape (n,).
        length: number of steps of a window.
        unknown_first: as ``Encoding.unknown_first``.
        volatility: expected standard deviation of each output, shape (n,), float32.
        targets: exact outputs, shape (n,), float32.
        last: the feature's normalized value before each target row, shape (n,).
    """

    steps: NDArray[np.float32]
    ends: NDArray[np.intp]
    length: int
    unknown_first: int | None
    volatility: NDArray[np.float32]
    targets: NDArray[np.float32]
    last: Array

    def __len__(self) -> int:
        return len(self.targets)

    @classmethod
    def join(cls, windows: Sequence[Windows]) -> Windows:
        """The windows of several series, one after the other; all have the same length."""
        first, *further = windows
        if not further:
            return first
        before = np.cumsum([0, *(len(each.steps) for each in windows[:-1])])
        return replace(
            first,
            steps=np.concatenate([each.steps for each in windows]),
            ends=np.concatenate([each.ends + rows for each, rows in zip(windows, before, strict=True)]),
            volatility=np.concatenate([each.volatility for each in windows]),
            targets=np.concatenate([each.targets for each in windows]),
            last=np.concatenate([each.last for each in windows]),
        )

    @property
    def inputs(self) -> NDArray[np.float32]:
        """Model inputs, shape (n, length, channels), all copied out."""
        inputs: NDArray[np.float32] = self.steps[self.ends[:, np.newaxis] + np.arange(-self.length, 0)]
        if self.unknown_first is not None:
            inputs[:, 0, self.unknown_first] = 0.0
        return inputs


@dataclass(frozen=True)
class PreparedSeries:
    """A normalized series with its split: the one array that all models of an experiment share.

    Attributes:
        normalized: shape (n, columns), the feature first; fewer rows after ``without_test``.
        normalization: the scaling of each column.
        split: the row boundaries of the parts.
        trained_until: date or time of the last training row, ISO 8601; None when it is not known.
        validated_until: date or time of the last validation row, ISO 8601; None when it is not known.
        shared_recursion: the recursion of the variance, which all series of a panel share; None for one that is fitted
            when it is needed.
        shared_range_recursion: the same with a range term; None also where the columns do not hold the bar's range.
        market: the market's columns at each row, shape (n, 2); None where it is not known.
    """

    normalized: Array
    normalization: Normalization
    split: Split
    trained_until: str | None = None
    validated_until: str | None = None
    shared_recursion: Recursion | None = None
    shared_range_recursion: Recursion | None = None
    market: Array | None = None

    @property
    def parts(self) -> tuple[PreparedSeries, ...]:
        """This series alone, as a panel's parts."""
        return (self,)

    def without_test(self) -> PreparedSeries:
        """The same series without its test rows, for a search, which must not see them."""
        end = self.split.validation_end
        market = None if self.market is None else self.market[:end].copy()
        return replace(self, normalized=self.normalized[:end].copy(), market=market)

    def fitted(self) -> PreparedSeries:
        """The same series with its recursions, so that other processes need not fit them again."""
        ranged = self.range_recursion if self.train_ranges is not None else None
        return replace(self, shared_recursion=self.recursion, shared_range_recursion=ranged)

    def encoding(self, config: TrainConfig) -> Encoding:
        """The encoding for the models of a configuration, with recursions fitted on the training rows."""
        recursions = tuple(self._recursion(name, config) for name in RECURSIONS[config.volatility])
        return Encoding(self.normalization, config, recursions)

    def _recursion(self, name: VolatilityName, config: TrainConfig) -> Recursion:
        match name:
            case "ewma":
                return ewma()
            case "gjr":
                return self.recursion
            case "range":
                return self.range_recursion
            case "window":
                return window_recursion(config)

    @cached_property
    def recursion(self) -> Recursion:
        """The recursion of the variance that is fitted on the training rows: the shared one, or one of its own."""
        return self.shared_recursion or fit_recursion(self.train_changes)

    @cached_property
    def range_recursion(self) -> Recursion:
        """The same with a range term.

        Raises:
            DataError: when the columns do not hold the bar's range.
        """
        if self.shared_range_recursion is not None:
            return self.shared_range_recursion
        ranges = self.train_ranges
        if ranges is None:
            raise DataError(
                "`volatility=range` needs the bar's range; add High and Low (and Open) to `input_columns` beside the "
                "feature Close, or use another `volatility`"
            )
        return fit_recursion(self.train_changes, ranges)

    @property
    def changes(self) -> Array:
        """The feature's changes, in units of the training changes' standard deviation, shape (n - 1,)."""
        changes: Array = np.diff(self.normalized[:, 0])
        return changes / self.normalization.feature.change_std

    @property
    def train_changes(self) -> Array:
        """The feature's training changes, in units of their standard deviation, shape (n,)."""
        return self.changes[: self.split.train_end - 1]

    @property
    def train_ranges(self) -> Array | None:
        """The range variances of the same training bars, shape (n,); None where the columns do not hold the range."""
        ranges = range_variances(self.normalized[np.newaxis, : self.split.train_end], self.normalization)
        return None if ranges is None else ranges[0]

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

    def windows(self, part: Part, encoding: Encoding) -> Windows:
        """Windows of every target row of ``part``, as a model with this encoding sees them.

        Raises:
            IndexError: for test windows of a series ``without_test``.
        """
        rows = self.target_rows(part, encoding.config.sequence_length)
        first = rows[0] - encoding.length
        seen, pieces = self._seen_by(encoding), []
        for start in range(first, rows[-1], ENCODED_AT_A_TIME):
            stop = min(start + ENCODED_AT_A_TIME, rows[-1])
            # As many in every piece, also the last: weights are kept by this number.
            known = seen[np.newaxis, max(0, stop - ENCODED_AT_A_TIME - encoding.history) : stop]
            found = encoding.steps(known, ENCODED_AT_A_TIME)
            pieces.append([array[0, start - stop :] for array in found])
        steps, volatility = (np.concatenate(arrays) for arrays in zip(*pieces, strict=True))
        last = self.normalized[rows - 1, 0]
        return Windows(
            steps=steps,
            ends=rows - first,
            length=encoding.length,
            unknown_first=encoding.unknown_first,
            volatility=volatility[rows - first - 1],
            targets=encoding.targets(last, self.normalized[rows, 0]),
            last=last,
        )

    def _seen_by(self, encoding: Encoding) -> Array:
        """The rows as ``encoding`` takes them, shape (n, columns)."""
        return encoding.with_market(self.normalized, self.market)

    def without_market(self) -> PreparedSeries:
        """The same series without the market, as where it is not known."""
        return replace(self, market=None)

    def histories(self, rows: int, encoding: Encoding) -> Array:
        """The ``rows`` rows before each row, as ``encoding`` takes them, and NaN before the first row.

        Returns:
            A view of shape (n + 1, rows, columns).
        """
        seen = self._seen_by(encoding)
        unknown = np.full((rows, seen.shape[1]), np.nan)
        known = np.concatenate([unknown, seen])
        # The last axis of the view is the steps.
        return np.lib.stride_tricks.sliding_window_view(known, rows, axis=0).swapaxes(1, 2)

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


def window_recursion(config: TrainConfig) -> Recursion:
    """The recursion of the window alone."""
    return ewma(config.sequence_length - 1, starts_at_training=True)


def range_variances(normalized: Array, normalization: Normalization) -> Array | None:
    """The variance that each bar's own range shows, in units of the training changes'.

    With the open, it is that of Garman & Klass (1980) for the session, and the squared change from the close before to
    the open; else that of Parkinson (1980).

    Args:
        normalized: shape (n, rows, columns).
        normalization: the scaling of each column.

    Returns:
        Shape (n, rows - 1), for each row after the first; None without the high and the low.
    """
    parts, feature = normalization.parts, normalization.feature
    if not {"high", "low"} <= parts.keys():
        return None
    unit = feature.std * feature.change_std
    places = {}
    for part, column in parts.items():
        scaling = normalization.scalings[column]
        places[part] = (normalized[:, 1:, column] * scaling.std + scaling.mean) / unit
    squares = np.square(places["high"] - places["low"])
    if "open" not in places:
        parkinson: Array = squares / (4 * math.log(2))
        return parkinson
    session = squares / 2 - (2 * math.log(2) - 1) * np.square(places["open"])
    overnight = np.diff(normalized[..., 0], axis=1) / feature.change_std + places["open"]
    variances: Array = np.maximum(session, 0.0) + np.square(overnight)
    return variances


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
    trained_until, validated_until = series.timeline.text(
        series.dates[[split.train_end - 1, split.validation_end - 1]]
    )
    return PreparedSeries(
        normalization.normalize(matrix), normalization, split, trained_until, validated_until
    )
