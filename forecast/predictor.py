"""Forecasts from a checkpoint: loaded once, any number of windows at a time."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forecast.checkpoint import load_checkpoint
from forecast.errors import WindowError
from forecast.model import choose_device
from forecast.networks import Engine, build_network


class Predictor:
    """A checkpoint ready to forecast.

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

    def predict(self, windows: ArrayLike) -> NDArray[np.float64]:
        """Next prices (n,) for windows (n, length), oldest value first, length >= ``sequence_length``.

        Only the last ``sequence_length`` values of each window are used.

        Raises:
            WindowError: when a window is too short, or a value is not a finite number or, for a model of
                log prices, not positive; names the first such value.
        """
        values = self.check(windows)
        # What overflows on the way is refused by its result, below.
        with np.errstate(all="ignore"):
            normalized = self.checkpoint.normalization.normalize(values)
            outputs = self.network(self._encoding.inputs(normalized))
            prices = self._encoding.prices(outputs, normalized[:, -1])
        if not np.isfinite(prices).all():
            raise WindowError(
                "the forecast for these values is not a finite number: they lie too far outside the training "
                "range; check their scale"
            )
        return prices

    def predict_steps(self, windows: ArrayLike, horizon: int) -> NDArray[np.float64]:
        """The next ``horizon`` prices, shape (n, horizon), for windows (n, length).

        Each step's forecast is taken for the price that the next step looks back on (the recursive strategy; Ben
        Taieb et al. 2012), so what one step gets wrong the next ones build on.

        Raises:
            WindowError: as ``predict``; also when a step's forecast leaves what the model can take.
        """
        values = self.check(windows)
        steps = np.empty((len(values), horizon))
        for step in range(horizon):
            steps[:, step] = self.predict(values)
            values = np.concatenate([values[:, 1:], steps[:, step : step + 1]], axis=1)
        return steps

    def outside_training_range(self, values: Sequence[float]) -> bool:
        """Whether any price that the model looks at, of one window (length,), is beyond those of its training.

        False for checkpoints that do not know their training range, those of the original system.
        """
        window = values[-self.sequence_length :]
        low, high = self.checkpoint.train_range or (-math.inf, math.inf)
        return min(window) < low or max(window) > high

    def predict_next(self, values: Sequence[float]) -> float:
        """The next price after ``values``, oldest first; see ``predict``."""
        return float(self.predict([values])[0])

    def check(self, windows: ArrayLike) -> NDArray[np.float64]:
        """The part of windows (n, length) that the model looks at, (n, ``sequence_length``).

        Raises:
            WindowError: when a window is too short, or a value is not a finite number or, for a model of
                log prices, not positive; names the first such value.
        """
        try:
            values = np.asarray(windows, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            raise WindowError("windows must be rows of equally many numbers") from None
        if values.ndim != 2:
            raise WindowError(f"windows must have two dimensions, (n, length); got shape {values.shape}")
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


def _first(values: NDArray[np.float64], wrong: NDArray[np.bool_]) -> str:
    row, column = (int(index) for index in np.argwhere(wrong)[0])
    from_end = values.shape[1] - column
    window = f" of window {row}" if len(values) > 1 else ""
    return f"value {values[row, column]} (number {from_end} from the end{window})"


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
