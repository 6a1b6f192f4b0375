"""A loaded model, ready to answer, and how a replica computes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from forecast.errors import CheckpointError, WindowError
from forecast.inference.engines import EngineName
from forecast.inference.prediction import Prediction
from forecast.inference.predictor import Predictor
from forecast.model.exported import is_exported
from serve_app.batching import Window
from serve_app.tracing import make_batcher

INLINE_COST = 25e6
"""Multiply-adds per window, about a millisecond, up to which a CPU computes on the event loop: larger models use a
thread, so that health checks and refusals do not wait for them."""
CPU_BATCH, GPU_BATCH = 16, 256
"""Most windows at a time: on a CPU, larger batches are no cheaper."""
GPU_WAIT_S = 0.002
"""Seconds to wait for more windows on a GPU, where a batch costs as much as one window."""


@dataclass(frozen=True)
class Engines:
    """Where and how a replica computes.

    Attributes:
        device: ``cpu`` or ``cuda``.
        engine: the engine that runs the networks.
        max_batch_size: most windows at a time; None is the device's default.
        batch_wait_s: seconds to wait for more windows; None is the device's default.
    """

    device: str = "cpu"
    engine: EngineName = "auto"
    max_batch_size: int | None = None
    batch_wait_s: float | None = None


class ServedModel:
    """A loaded model of one symbol, ready to answer.

    Attributes:
        predictor: the model.
        seen: whether it was trained on the symbol.
        version: SHA-256 of its file, in hexadecimal.
        cost: multiply-adds per forecast, of all members together.
        common_fields: fields that all its answers share.
        prices: collects windows that need only a price.
        predictions: collects windows that need intervals too.
    """

    def __init__(self, predictor: Predictor, engines: Engines, *, seen: bool = True) -> None:
        """Serve the symbol of a predictor."""
        self.predictor, self.seen, self._engines = predictor, seen, engines
        checkpoint = predictor.checkpoint
        self.symbol, self.feature = checkpoint.config.symbol, checkpoint.config.feature
        self.version: str = checkpoint.sha256 or ""
        self.common_fields = {
            "checkpoint_path": self.predictor.path,
            "sequence_length": self.predictor.sequence_length,
            "symbol": self.symbol,
            "feature": self.feature,
        }
        on_gpu = self.predictor.engine.device != "cpu"
        self._size = size = engines.max_batch_size or (GPU_BATCH if on_gpu else CPU_BATCH)
        wait_s = engines.batch_wait_s
        self.cost = predictor.multiply_adds
        # A thread per model, apart from ``Models.threads``: single windows do not wait for batch requests.
        thread = ThreadPoolExecutor(1, "forecast") if on_gpu or self.cost > INLINE_COST else None
        wait_s = wait_s if wait_s is not None else GPU_WAIT_S if on_gpu else 0.0

        # These do not refer to this object: in a cycle, an unloaded model would stay in memory for long.
        def prices(windows: list[Window]) -> list[float]:
            forecasts: list[float] = predictor.predict(windows).tolist()
            return forecasts

        def predictions(windows: list[Window]) -> list[Prediction]:
            return predictor.forecast(windows).split()

        self.prices = make_batcher(predictor, prices, max_batch_size=size, wait_s=wait_s, thread=thread)
        self.predictions = make_batcher(
            predictor, predictions, max_batch_size=size, wait_s=wait_s, thread=thread
        )

    @classmethod
    def load(cls, path: Path, engines: Engines) -> list[ServedModel]:
        """Load the model of a file, for each of its symbols, and compare engines.

        The first runs once at each batch size, because libraries allocate memory on the first run.

        Raises:
            CheckpointError: when the file is missing or not a usable checkpoint, or its model cannot forecast from the
                middle of its own training range.
            UsageError: when the engine cannot be used.
        """
        # An exported model runs on a CPU, also in a replica with a share of a GPU.
        predictor = Predictor(path, "cpu" if is_exported(path) else engines.device, engines.engine)
        loaded = [cls(predictor.of_symbol(symbol), engines) for symbol in predictor.symbols]
        try:
            for number, model in enumerate(loaded):
                window = model.predictor.typical_window()
                for count in (1,) if number else (1, model._size):
                    model.predictor.forecast([window] * count)
        except WindowError as error:
            raise CheckpointError(
                f"{path} cannot forecast even prices like those it was trained on: {error}"
            ) from error
        return loaded

    def age(self, until: np.datetime64 | None) -> int | None:
        """Sessions after the last training row, up to ``until`` or now; None where it is not known."""
        return self.predictor.dating.age(until)

    def of_window(self, window: Window, symbol: str) -> ServedModel:
        """The model of a symbol that it was not trained on, in the units of one window.

        Raises:
            WindowError: when the window does not fit the model.
        """
        return ServedModel(self.predictor.of_window(window, symbol), self._engines, seen=False)
