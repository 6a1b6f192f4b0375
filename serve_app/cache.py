"""The loaded models of a replica: each is loaded at its first request, and the least recently used are unloaded when
they need too much memory."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from forecast.errors import CheckpointError, ForecastError
from forecast.model.header import Header
from serve_app.catalog import ModelFile
from serve_app.options import CACHE_MB, CACHED_MODELS
from serve_app.served_model import Engines, ServedModel

BYTES_PER_FILE, BYTES_PER_SYMBOL, BYTES_PER_STORED_BYTE = 150_000, 20_000, 3
"""Memory of a loaded file, measured for models of 32 x 1 to 256 x 4 units and of 1 to 382 symbols: the weights are kept
once by the checkpoint, and twice by ONNX Runtime."""


@dataclass(frozen=True)
class LoadedFile:
    """The models of a file by symbol, and the memory that they take, in bytes."""

    models: Mapping[str, ServedModel]
    memory: int

    @property
    def version(self) -> str:
        """SHA-256 of the file, in hexadecimal."""
        return next(iter(self.models.values())).version


class ModelCache:
    """The loaded files of a catalog. Use it on the event loop."""

    def __init__(self, engines: Engines, cache_mb: float | None, thread: ThreadPoolExecutor) -> None:
        """Keep nothing yet.

        Args:
            engines: where and how models compute.
            cache_mb: the memory that loaded models may take, in MB; None is ``CACHE_MB``, and at least
                ``CACHED_MODELS`` files. The file used last is always kept.
            thread: loads files, one after the other.
        """
        self._engines, self._thread = engines, thread
        self._most_bytes = 1e6 * (CACHE_MB if cache_mb is None else cache_mb)
        self._fewest = CACHED_MODELS if cache_mb is None else 1
        self._loaded: OrderedDict[ModelFile, LoadedFile] = OrderedDict()
        self._under_way: dict[ModelFile, asyncio.Task[LoadedFile]] = {}

    def __iter__(self) -> Iterator[tuple[ModelFile, LoadedFile]]:
        """The loaded files, the least recently used first."""
        return iter(list(self._loaded.items()))

    async def models_of(self, file: ModelFile) -> Mapping[str, ServedModel]:
        """The models of a file; the first to ask for it has it loaded, and all who ask meanwhile wait for that.

        Raises:
            ForecastError: when the file cannot be used.
        """
        loaded = self._loaded.get(file)
        if loaded is not None:
            self._loaded.move_to_end(file)
            return loaded.models
        loading = self._under_way.get(file)
        if loading is None:
            loading = self._under_way[file] = asyncio.create_task(self._load(file))
            # Those who wait get the failure; nobody may be left to get it.
            loading.add_done_callback(lambda task: task.cancelled() or task.exception())
        # A client that goes away does not end the loading for the others.
        return (await asyncio.shield(loading)).models

    async def _load(self, file: ModelFile) -> LoadedFile:
        try:
            loop = asyncio.get_running_loop()
            loaded = await loop.run_in_executor(self._thread, _load, file, self._engines)
        finally:
            del self._under_way[file]
        self.keep(file, loaded)
        return loaded

    def keep(self, file: ModelFile, loaded: LoadedFile) -> None:
        """Keep a loaded file as the one used last, and unload others until the rest fit.

        Requests under way keep their models until they are answered.
        """
        file.version = loaded.version
        self._loaded[file] = loaded
        memory, unloaded = sum(each.memory for each in self._loaded.values()), False
        while memory > self._most_bytes and len(self._loaded) > self._fewest:
            _, oldest = self._loaded.popitem(last=False)
            memory, unloaded = memory - oldest.memory, True
        if unloaded:
            self._thread.submit(return_memory)


def _load(file: ModelFile, engines: Engines) -> LoadedFile:
    """Load a file; runs in a thread.

    Raises:
        ForecastError: when it cannot be used, or no longer forecasts its symbols.
    """
    try:
        models = {model.symbol: model for model in ServedModel.load(file.path, engines)}
        stored = file.path.stat().st_size
    except ForecastError:
        raise
    except Exception as error:  # of torch or ONNX Runtime: it must not end the other models' service
        raise CheckpointError(f"{file.path} cannot be loaded ({error}); make the checkpoint again") from error
    if missing := file.header.symbols - models.keys():
        raise CheckpointError(
            f"{file.path} has changed: it does not forecast {sorted(missing)[0]} any more; put a checkpoint of this "
            "symbol there"
        )
    file.header = Header.of(next(iter(models.values())).predictor.whole)
    memory = BYTES_PER_FILE + BYTES_PER_SYMBOL * len(models) + BYTES_PER_STORED_BYTE * stored
    return_memory()
    return LoadedFile(models, memory)


def return_memory() -> None:
    """Give freed memory back to the system: C libraries would keep it for later, several times what is in use."""
    # Only glibc has this function.
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
