"""The models that a replica serves, by symbol, and how new ones replace them."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from forecast.errors import CheckpointError, ForecastError, WindowError
from forecast.inference.dating import Dating
from forecast.inference.engines import EngineName
from forecast.inference.prediction import Prediction
from forecast.inference.predictor import Predictor
from forecast.model.network import multiply_adds
from forecast.names import listed
from serve_app.batching import Batcher, Window

logger = logging.getLogger("ray.serve")

INLINE_COST = 25e6
"""Multiply-adds per window, about a millisecond, up to which a CPU computes on the event loop: larger models use a
thread, so that health checks and refusals do not wait for them."""
CPU_BATCH, GPU_BATCH = 16, 256
"""Most windows at a time: on a CPU, larger batches are no cheaper."""
GPU_WAIT_S = 0.002
"""Seconds to wait for more windows on a GPU, where a batch costs as much as one window."""


class ModelNotFound(ForecastError):
    """No served model forecasts the requested symbol."""


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
        # A symbol that was not trained on has no age of its own: its model has one.
        self._training = predictor.dating if seen else Dating(predictor.whole)
        self.symbol, self.feature = checkpoint.config.symbol, checkpoint.config.feature
        self.version: str = checkpoint.sha256 or ""
        self.common_fields = {
            "checkpoint_path": self.predictor.path,
            "sequence_length": self.predictor.sequence_length,
            "symbol": self.symbol,
            "feature": self.feature,
        }
        on_gpu = self.predictor.engine.device.type != "cpu"
        self._size = size = engines.max_batch_size or (GPU_BATCH if on_gpu else CPU_BATCH)
        wait_s = engines.batch_wait_s
        self.cost = sum(multiply_adds(member.config) for member in checkpoint.members)
        # A thread per model, apart from ``Models.threads``: single windows do not wait for batch requests.
        thread = ThreadPoolExecutor(1, "forecast") if on_gpu or self.cost > INLINE_COST else None
        wait_s = wait_s if wait_s is not None else GPU_WAIT_S if on_gpu else 0.0
        self.prices = Batcher(self._prices, max_batch_size=size, wait_s=wait_s, thread=thread)
        self.predictions = Batcher(self._predictions, max_batch_size=size, wait_s=wait_s, thread=thread)

    @classmethod
    def load(cls, path: Path, engines: Engines) -> list[ServedModel]:
        """Load the model of a file, for each of its symbols, and compare engines.

        The first runs once at each batch size, because libraries allocate memory on the first run.

        Raises:
            CheckpointError: when the file is missing or not a usable checkpoint, or its model cannot forecast from the
                middle of its own training range.
            UsageError: when the engine cannot be used.
        """
        predictor = Predictor(path, engines.device, engines.engine)
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
        return self._training.age(until)

    def of_window(self, window: Window, symbol: str) -> ServedModel:
        """The model of a symbol that it was not trained on, in the units of one window.

        Raises:
            WindowError: when the window does not fit the model.
        """
        return ServedModel(self.predictor.of_window(window, symbol), self._engines, seen=False)

    def _prices(self, windows: list[Window]) -> list[float]:
        prices: list[float] = self.predictor.predict(windows).tolist()
        return prices

    def _predictions(self, windows: list[Window]) -> list[Prediction]:
        return self.predictor.forecast(windows).split()


@dataclass(frozen=True)
class Refusal:
    """Why and when (UTC, ISO 8601) a checkpoint was refused."""

    reason: str
    at: str = field(default_factory=lambda: dt.datetime.now(dt.UTC).isoformat(timespec="seconds"))


@dataclass(frozen=True)
class ReloadOutcome:
    """The result of one attempt to load: the versions served after it, by symbol, and the reason if it was refused."""

    versions: dict[str, str]
    refused: str | None = None


class Models:
    """The models of one replica; replaced all at once, or not at all.

    Attributes:
        by_symbol: the models.
        checkpoint: path of the file or directory they were loaded from.
        threads: runs computations that may take long.
        refusal: the last attempt to replace them, if it was refused.
    """

    def __init__(self, engines: Engines) -> None:
        """Serve nothing yet."""
        self._engines = engines
        self.checkpoint = ""
        self._one_at_a_time = asyncio.Lock()
        self.threads = ThreadPoolExecutor(1, "batches")
        self.by_symbol: Mapping[str, ServedModel] = {}
        self.refusal: Refusal | None = None

    async def load(self, checkpoint: str | None = None) -> None:
        """Load a file, or every ``.pt`` file of a directory, and serve it instead of the old models.

        A thread does the work, while the event loop continues to answer with the old models.

        Args:
            checkpoint: path of the file or directory; None is the one loaded last.

        Raises:
            ForecastError: when a file there cannot be used; the old models are still served.
        """
        async with self._one_at_a_time:
            place = checkpoint or self.checkpoint
            loaded = await asyncio.to_thread(self._load_all, Path(place))
            self.by_symbol, self.checkpoint, self.refusal = loaded, place, None

    async def replace(self, checkpoint: str | None = None) -> ReloadOutcome:
        """Call ``load``, but keep and log a refusal instead of raising it."""
        before = {symbol: model.version for symbol, model in self.by_symbol.items()}
        try:
            await self.load(checkpoint)
        except Exception as error:  # every kind: Serve ends a replica that raises
            self.refusal = Refusal(str(error))
            logger.error("new checkpoint refused, the old models stay in service: %s", error)
            return ReloadOutcome(before, str(error))
        after = {symbol: model.version for symbol, model in self.by_symbol.items()}
        logger.info("serving %s instead of %s", after, before)
        return ReloadOutcome(after)

    def _load_all(self, place: Path) -> dict[str, ServedModel]:
        loaded: dict[str, ServedModel] = {}
        for path in checkpoint_files(place):
            for model in ServedModel.load(path, self._engines):
                if (other := loaded.get(model.symbol)) is not None:
                    raise CheckpointError(
                        f"{path} and {other.predictor.path} both forecast {model.symbol}; keep only one file in {place}"
                    )
                loaded[model.symbol] = model
        return loaded

    def choose(self, symbol: str | None) -> ServedModel:
        """Return the model for ``symbol``, which may be None if only one model is served.

        Raises:
            ModelNotFound: when there is no model for it, or it is None and several models are served.
        """
        if symbol is None and len(self.by_symbol) == 1:
            return next(iter(self.by_symbol.values()))
        model = self.by_symbol.get(symbol) if symbol is not None else None
        if model is None:
            asked = (
                "several models are served" if symbol is None else f"there is no model for {symbol[:100]!r}"
            )
            raise ModelNotFound(f"{asked}; give symbol as one of: {listed(self.by_symbol)}")
        return model

    def unseen(self, symbol: str | None) -> ServedModel | None:
        """The model of many symbols that can forecast one that no model was trained on; None without exactly one."""
        if symbol is None or symbol in self.by_symbol:
            return None
        pooled = {
            model.predictor.path: model for model in self.by_symbol.values() if model.predictor.whole.symbols
        }
        return next(iter(pooled.values())) if len(pooled) == 1 else None


def checkpoint_files(place: Path) -> list[Path]:
    """Return the file itself, or the ``.pt`` files of a directory, sorted by name.

    Raises:
        CheckpointError: when a directory has none.
    """
    if not place.is_dir():
        return [place]
    files = sorted(place.glob("*.pt"))
    if not files:
        raise CheckpointError(f"{place} has no .pt file; put one checkpoint per symbol there")
    return files
