"""Forecasts from a checkpoint: loaded once, any number of windows at a time."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forecast.checkpoint import load_checkpoint
from forecast.distribution import Distribution, interval_probabilities
from forecast.errors import LevelError, WindowError
from forecast.likelihood import distribution, point_forecasts, widest_level
from forecast.model import choose_device
from forecast.networks import Engine, build_network
from forecast.windows import Encoding

Array = NDArray[np.float64]


PATHS = 500
"""Futures that intervals of more than one step ahead are read from."""
FARTHEST_DRAWN = 1e300
"""A draw beyond it, or nearer to zero than its inverse for log prices, would be infinite on its next day."""
PATH_SEED = 0
"""The same window gets the same intervals."""


@dataclass(frozen=True)
class Prediction:
    """What a model says of the next price of each of n windows.

    Attributes:
        prices: point forecasts, shape (n,).
        distribution: in units of the model's output; None for a checkpoint that knows nothing of its errors.
        last: each window's normalized last value, shape (n,).
        encoding: of the model.
    """

    prices: Array
    distribution: Distribution | None
    last: Array
    encoding: Encoding

    def intervals(self, levels: Sequence[float]) -> Array:
        """Lower and upper bounds of central intervals, shape (n, levels, 2), price units.

        Raises:
            LevelError: when the model has none, or none as wide.
            WindowError: when a bound is not a finite number.
        """
        spread = self._spread(levels)
        quantiles = self.encoding.prices(spread.quantiles(interval_probabilities(levels)), self.last)
        return _finite(np.stack(np.split(quantiles, 2, axis=1), axis=-1))

    def _spread(self, levels: Sequence[float]) -> Distribution:
        spread = self.distribution
        require_levels(spread.widest_level if spread else 0.0, levels)
        return cast(Distribution, spread)

    @property
    def stretch(self) -> float:
        """The distribution's; see ``Distribution``."""
        return self._spread(()).stretch

    def split(self) -> list[Prediction]:
        """One for each window."""
        spreads = self.distribution.split() if self.distribution else [None] * len(self.prices)
        return [
            Prediction(self.prices[i : i + 1], spread, self.last[i : i + 1], self.encoding)
            for i, spread in enumerate(spreads)
        ]

    def sample(self, generator: np.random.Generator) -> Array:
        """One draw of each window's next price, (n,), without the distribution's stretch."""
        return self.encoding.prices(self._spread(()).sample(generator), self.last)


def require_levels(widest: float, levels: Sequence[float]) -> None:
    """Make sure that a model with intervals up to the level ``widest``, 0 for none, has those of ``levels``.

    Raises:
        LevelError: when it has not, or a level is not between zero and one.
    """
    if not widest:
        raise LevelError(
            "this checkpoint has no intervals: it was made before there were any; train or tune it again"
        )
    for level in levels:
        if not 0 < level < 1:
            raise LevelError(f"level {level:g} is not between 0 and 1; give 0.9 for an interval of 90 %")
        if level > widest:
            raise LevelError(
                f"level {level} is too wide: this model has intervals up to {widest:.4g}; ask for less"
            )


class Predictor:
    """A checkpoint ready to forecast.

    Windows are (n, length) for a model of one column; for one with further ``input_columns``, (n, length, columns), the
    feature first.

    Attributes:
        path: the checkpoint's path, as given.
        checkpoint: what it holds.
        network: what runs its network; ``network.engine`` and ``network.device`` say how and where.
    """

    def __init__(self, path: str | os.PathLike[str], device: str = "auto", engine: Engine = "torch") -> None:
        """Load ``path`` and put its network on a device.

        Args:
            path: the checkpoint's file.
            device: ``auto``, ``cpu`` or ``cuda``.
            engine: ``torch``, ``onnx``, or ``auto`` for the faster one of those that can be used.

        Raises:
            CheckpointError: when the file is missing or not a usable checkpoint.
            UsageError: when the device or the engine cannot be used.
        """
        self.path = os.fspath(path)
        self.checkpoint = load_checkpoint(path)
        self.network = build_network(self.checkpoint, choose_device(device), engine)
        self._encoding = self.checkpoint.encoding

    @property
    def sequence_length(self) -> int:
        """Past values a forecast needs."""
        return self.checkpoint.config.sequence_length

    @property
    def columns(self) -> tuple[str, ...]:
        """What the model sees of each day, the feature it forecasts first."""
        return (self.checkpoint.config.feature, *self.checkpoint.config.input_columns)

    def require_levels(self, levels: Sequence[float]) -> None:
        """Make sure that the model has intervals of these levels.

        Raises:
            LevelError: when it does not.
        """
        require_levels(self.widest_level, levels)

    @property
    def widest_level(self) -> float:
        """Level up to which it has intervals; 0 where it has none."""
        return widest_level(self.checkpoint.config.likelihood, self.checkpoint.errors)

    def typical_window(self) -> list[Any]:
        """A window of values from the middle of those of its training."""
        middle = self._encoding.middle
        return [middle if len(middle) > 1 else middle[0]] * self.sequence_length

    def predict(self, windows: ArrayLike) -> Array:
        """Next prices (n,) for windows, oldest value first, length >= ``sequence_length``.

        Only the last ``sequence_length`` values of each window are used.

        Raises:
            WindowError: when a window is too short or of another shape, or a value is not a finite number or, for a
                model of log prices, not positive; names the first such value.
        """
        return self._predict(self.check(windows))

    def _predict(self, values: Array) -> Array:
        # What overflows on the way is refused by its result.
        with np.errstate(all="ignore"):
            normalized = self._encoding.normalize(values)
            outputs = self.network(self._encoding.inputs(normalized))
            return _finite(self._encoding.prices(point_forecasts(outputs), normalized[:, -1, 0]))

    def forecast(self, windows: ArrayLike) -> Prediction:
        """Next prices and how sure the model is of them; windows and errors as ``predict``."""
        return self._forecast(self.check(windows))

    def _forecast(self, values: Array) -> Prediction:
        with np.errstate(all="ignore"):
            normalized = self._encoding.normalize(values)
            outputs = self.network(self._encoding.inputs(normalized))
            last = normalized[:, -1, 0]
            return Prediction(
                prices=_finite(self._encoding.prices(point_forecasts(outputs), last)),
                distribution=distribution(
                    self._encoding.likelihood,
                    outputs,
                    self._encoding.spread(normalized),
                    self.checkpoint.errors,
                ),
                last=last,
                encoding=self._encoding,
            )

    def predict_steps(self, windows: ArrayLike, horizon: int) -> Array:
        """The next ``horizon`` prices, shape (n, horizon).

        Each step's forecast is taken for the price that the next step looks back on (the recursive strategy; Ben
        Taieb et al. 2012), so what one step gets wrong the next ones build on.

        Raises:
            WindowError: as ``predict``; also when a step's forecast leaves what the model can take, or a model with
                further columns, which it does not forecast, is asked for more than one step.
        """
        self.require_horizon(horizon)
        values = self.check(windows)
        steps = np.empty((len(values), horizon))
        for step in range(horizon):
            if step:
                values = np.concatenate([values[:, 1:], steps[:, step - 1, np.newaxis, np.newaxis]], axis=1)
            steps[:, step] = self._predict(values)
        return steps

    def predict_intervals(self, windows: ArrayLike, levels: Sequence[float], horizon: int = 1) -> Array:
        """Central intervals of the next ``horizon`` prices, shape (n, horizon, levels, 2), lower bound first.

        For one step they are the model's own; for more they are read from ``PATHS`` futures.

        Raises:
            WindowError: as ``predict_steps``.
            LevelError: when the model has no intervals of these levels.
        """
        if horizon == 1:
            return self.forecast(windows).intervals(levels)[:, np.newaxis]
        bounds = []
        for window in np.asarray(windows, dtype=np.float64):
            futures = Futures(self, window, levels)
            bounds.append(np.stack([futures.step() for _ in range(horizon)]))
        return np.stack(bounds)

    def require_horizon(self, horizon: int) -> None:
        """Make sure that the model can forecast so many steps.

        Raises:
            WindowError: when it would need forecasts of its further columns.
        """
        if horizon > 1 and len(self.columns) > 1:
            raise WindowError(
                f"a horizon of {horizon} would need forecasts of {', '.join(self.columns[1:])} too, which this model "
                "does not make; ask for one step"
            )

    def outside_training_range(self, values: Sequence[float] | Sequence[Sequence[float]]) -> bool:
        """Whether any price that the model looks at, of one window, is beyond those of its training.

        False for checkpoints that do not know their training range, those of the original system.
        """
        window: Any = values[-self.sequence_length :]
        if len(self.columns) > 1:
            window = [row[0] for row in window]
        low, high = self.checkpoint.train_range or (-math.inf, math.inf)
        return bool(min(window) < low or max(window) > high)

    def predict_next(self, values: Sequence[float] | Sequence[Sequence[float]]) -> float:
        """The next price after ``values``, oldest first; see ``predict``."""
        return float(self.predict([values])[0])

    def check(self, windows: ArrayLike) -> Array:
        """The part of windows that the model looks at, (n, ``sequence_length``, columns).

        Raises:
            WindowError: as ``predict``.
        """
        try:
            values = np.asarray(windows, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            raise WindowError("windows must be rows of equally many numbers") from None
        columns = self.columns
        plain, plain_wanted = values.ndim == 2, len(columns) == 1
        if plain and plain_wanted:
            values = values[:, :, np.newaxis]
        if plain_wanted != plain or values.ndim != 3 or values.shape[2] != len(columns):
            found = f"rows of {values.shape[2]}" if values.ndim == 3 else "plain numbers"
            wanted = (
                f"each day as a row of {len(columns)} values ({', '.join(columns)})"
                if len(columns) > 1
                else f"plain numbers ({columns[0]})"
            )
            if values.ndim not in (2, 3):
                found = f"an array of shape {values.shape}"
            raise WindowError(f"this model takes {wanted}, oldest first; got {found}")
        length = self.sequence_length
        if values.shape[1] < length:
            raise WindowError(
                f"{values.shape[1]} values are too few: this model needs at least {length}, oldest first"
            )
        values = values[:, -length:]
        wrong = ~np.isfinite(values)
        if wrong.any():
            raise WindowError(f"{_first(values, wrong)}: every value must be a finite number")
        if self.checkpoint.normalization.log and (wrong := values <= 0).any():
            raise WindowError(f"{_first(values, wrong)}: this model needs positive prices")
        return values


class Futures:
    """Possible continuations of one window: each day is drawn from what the model says after the days before it."""

    def __init__(
        self, predictor: Predictor, window: Sequence[Any] | Array, levels: Sequence[float], paths: int = PATHS
    ) -> None:
        """Start ``paths`` futures after ``window``.

        Raises:
            WindowError: as ``Predictor.predict_steps``.
            LevelError: when the model has no intervals of these levels.
        """
        predictor.require_horizon(2)
        predictor.require_levels(levels)
        self._predictor, self._probabilities = predictor, interval_probabilities(levels)
        values = predictor.check([window])
        self._next: Array | None = predictor._forecast(values).intervals(levels)[0]
        self._values = np.repeat(values, paths, axis=0)
        self._scale = predictor.checkpoint.normalization
        self._stretch = 1.0
        self._drawn: list[Array] = []
        self._generator = np.random.default_rng(PATH_SEED)

    def advance(self, paths: int) -> Array | None:
        """Draw the next day of ``paths`` more futures.

        Returns:
            Once all have it, its central intervals, shape (levels, 2), lower bound first.
        """
        done = sum(map(len, self._drawn))
        prediction = self._predictor._forecast(self._values[done : done + paths])
        self._stretch = prediction.stretch
        lowest = 1 / FARTHEST_DRAWN if self._scale.log else -FARTHEST_DRAWN
        # One of thousands of wild futures must not cost the others.
        drawn = np.nan_to_num(prediction.sample(self._generator), nan=lowest)
        self._drawn.append(np.clip(drawn, lowest, FARTHEST_DRAWN))
        if done + paths < len(self._values):
            return None
        day, self._drawn = np.concatenate(self._drawn), []
        self._values = np.concatenate([self._values[:, 1:], day[:, np.newaxis, np.newaxis]], axis=1)
        if self._next is not None:
            # Nothing of the first day needs simulating but what comes after it.
            known, self._next = self._next, None
            return known
        # Days were drawn without the stretch: it is put on where they lie in the end.
        *quantiles, middle = np.quantile(self._scale.normalize(day), [*self._probabilities, 0.5])
        bounds = self._scale.denormalize(middle + self._stretch * (np.array(quantiles) - middle))
        return _finite(np.stack(np.split(bounds, 2), axis=-1))

    def step(self) -> Array:
        """Go on by one day; its central intervals, shape (levels, 2), lower bound first."""
        intervals = self.advance(len(self._values))
        if intervals is None:
            raise AssertionError("a day of all futures is a whole day")
        return intervals


def _finite(prices: Array) -> Array:
    if not np.isfinite(prices).all():
        raise WindowError(
            "the forecast for these values is not a finite number: they lie too far outside the training "
            "range; check their scale"
        )
    return prices


def _first(values: Array, wrong: NDArray[np.bool_]) -> str:
    window, day, column = (int(index) for index in np.argwhere(wrong)[0])
    where = f"number {values.shape[1] - day} from the end"
    if values.shape[2] > 1:
        where += f", column {column + 1}"
    if len(values) > 1:
        where += f" of window {window}"
    return f"value {values[window, day, column]} ({where})"


def predict_next_from_values(
    values: Sequence[float], checkpoint_path: str | os.PathLike[str], device: str = "auto"
) -> float:
    """The next price after ``values`` by the checkpoint at ``checkpoint_path``, as in the original system.

    The checkpoint is loaded once and reused until its file changes.

    Raises:
        CheckpointError: when the file is missing or not a usable checkpoint.
        WindowError: when the values do not fit the model.
    """
    path = Path(checkpoint_path)
    stamp = path.stat() if path.exists() else None
    changed = (stamp.st_mtime_ns, stamp.st_size, stamp.st_ino) if stamp else None
    return _cached_predictor(os.fspath(path), changed, device).predict_next(values)


@functools.lru_cache(maxsize=8)
def _cached_predictor(path: str, changed: tuple[int, int, int] | None, device: str) -> Predictor:
    return Predictor(path, device)


def describe_intervals(bounds: Array, levels: Sequence[float], *, steps: bool) -> list[dict[str, Any]]:
    """Intervals (horizon, levels, 2) of one window as plain values: ``level``, ``lower`` and ``upper``.

    Where ``steps`` are asked for, bounds are lists of one a step, else the first step's numbers.
    """
    return [
        {"level": level, "lower": lower if steps else lower[0], "upper": upper if steps else upper[0]}
        for level, (lower, upper) in zip(levels, bounds.transpose(1, 2, 0).tolist(), strict=True)
    ]
