"""The models that a replica serves, by symbol, and how new ones replace them."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from forecast.errors import ForecastError
from forecast.live.store import Store
from forecast.names import MOST_NAMES, listed
from serve_app.cache import LoadedFile, ModelCache
from serve_app.catalog import Catalog, ModelFile, RefusedModel
from serve_app.served_model import Engines, ServedModel

logger = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class Refusal:
    """Why and when (UTC, ISO 8601) a checkpoint was refused."""

    reason: str
    at: str = field(default_factory=lambda: dt.datetime.now(dt.UTC).isoformat(timespec="seconds"))


@dataclass(frozen=True)
class ReloadOutcome:
    """The result of one attempt to load.

    Attributes:
        versions: the versions of the loaded models after it, by symbol.
        known: number of symbols that are answered for.
        unusable: why symbols are not answered for, one line each.
        refused: why the old models stay; None if the new ones are served.
    """

    versions: dict[str, str]
    known: int
    unusable: tuple[str, ...] = ()
    refused: str | None = None


class Models:
    """The models of one replica; replaced all at once, or not at all.

    Attributes:
        catalog: the symbols and their files.
        checkpoint: path of the file or directory that is served.
        threads: runs computations that may take long.
        refusal: the last attempt to replace them, if it was refused.
    """

    def __init__(self, engines: Engines, cache_mb: float | None = None) -> None:
        """Serve nothing yet; ``cache_mb`` is the option ``ServeOptions.cache_mb``."""
        self._engines, self._cache_mb = engines, cache_mb
        self.checkpoint = ""
        self._one_at_a_time = asyncio.Lock()
        self.threads = ThreadPoolExecutor(1, "batches")
        self._loading = ThreadPoolExecutor(1, "loading")
        self.catalog, self._cache = Catalog(), self._empty_cache()
        self.refusal: Refusal | None = None
        self._links: dict[str, Path] | None = {}

    def _empty_cache(self) -> ModelCache:
        return ModelCache(self._engines, self._cache_mb, self._loading)

    async def load(self, checkpoint: str | None = None) -> None:
        """Serve a file, or every file of a directory, instead of the old models.

        The models that are loaded now are loaded first, and others at the first request for their symbols. A thread
        does the work, while the event loop continues to answer with the old models.

        Args:
            checkpoint: path of the file or directory; None is the one loaded last.

        Raises:
            ForecastError: when no file there can be used, or the new file of a loaded model cannot; the old
                models stay.
        """
        async with self._one_at_a_time:
            place, loop = checkpoint or self.checkpoint, asyncio.get_running_loop()
            # Read before the files: a link that changes in the meantime is then found to have changed.
            self._links = await loop.run_in_executor(self._loading, Store(Path(place)).links)
            catalog = await loop.run_in_executor(self._loading, Catalog.read, Path(place))
            cache = self._empty_cache()
            await self._load_those_in_use(catalog, cache)
            await self._load_one(catalog, cache)
            self.catalog, self._cache, self.checkpoint, self.refusal = catalog, cache, place, None
        for refused in list(catalog.refused.values())[:MOST_NAMES]:
            logger.error("%s", refused.error())
        if len(catalog.refused) > MOST_NAMES:
            logger.error("%d more cannot be used; GET /models lists them", len(catalog.refused) - MOST_NAMES)

    async def _load_those_in_use(self, catalog: Catalog, cache: ModelCache) -> None:
        """Load the symbols of a new catalog whose models are loaded now, unless their files are the same.

        Raises:
            ForecastError: when one of them cannot be used.
        """
        for old, loaded in self._cache:
            for symbol in loaded.models:
                if self.catalog.by_symbol.get(symbol) is not old:
                    continue  # it is refused already: another file has it too
                if symbol not in catalog.by_symbol and symbol not in catalog.refused:
                    catalog.require_readable(old.name)
                    continue  # its file was taken away
                _, file = catalog.file_of(symbol)
                if file.version is not None:
                    continue  # loaded with another of its symbols
                if file.path == old.path and await self._is_unchanged(file, loaded):
                    cache.keep(file, loaded)
                else:
                    await cache.models_of(file)

    async def _is_unchanged(self, file: ModelFile, loaded: LoadedFile) -> bool:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._loading, file.hashed) == loaded.version

    async def _load_one(self, catalog: Catalog, cache: ModelCache) -> None:
        """If no file is loaded, load the first that can be used: a server that starts has a model that forecasts.

        Raises:
            CheckpointError: when none can be used.
        """
        for file in catalog.files:
            if any(cache):
                return
            try:
                await cache.models_of(file)
            except ForecastError as error:
                catalog.refuse(file, str(error))
        catalog.require_usable()

    async def replace(self, checkpoint: str | None = None) -> ReloadOutcome:
        """Call ``load``, but keep and log a refusal instead of raising it."""
        before = self.versions
        try:
            await self.load(checkpoint)
        except Exception as error:  # every kind: Serve ends a replica that raises
            return self._keep_old(str(error))
        after = self.versions
        logger.info("serving %s instead of %s", _described(after), _described(before))
        unusable = tuple(str(refused.error()) for refused in self.catalog.refused.values())
        return ReloadOutcome(after, len(self.catalog.by_symbol), unusable)

    def _keep_old(self, reason: str) -> ReloadOutcome:
        """Keep and log a refusal."""
        self.refusal = Refusal(reason)
        logger.error("new checkpoint refused, the old models stay in service: %s", reason)
        return ReloadOutcome(self.versions, len(self.catalog.by_symbol), refused=reason)

    async def follow(self) -> ReloadOutcome | None:
        """Call ``replace`` if other versions have become current in a model store since the last attempt to load.

        A store that cannot be read, as while a network file system is gone, is a refusal; once it is back, its models
        are loaded again.
        """
        loop = asyncio.get_running_loop()
        try:
            links = await loop.run_in_executor(self._loading, Store(Path(self.checkpoint)).links)
        except OSError as error:
            if self._links is None:
                return None  # it is refused already
            self._links = None
            return self._keep_old(
                f"{self.checkpoint} cannot be read ({(error.strerror or str(error)).lower()})"
            )
        return None if links == self._links else await self.replace()

    @property
    def loaded(self) -> Iterator[ServedModel]:
        """The loaded models."""
        for file, loaded in self._cache:
            yield from (
                model for symbol, model in loaded.models.items() if self.catalog.by_symbol.get(symbol) is file
            )

    @property
    def versions(self) -> dict[str, str]:
        """The versions of the loaded models, by symbol."""
        return {model.symbol: model.version for model in self.loaded}

    async def choose(self, symbol: str | None) -> ServedModel:
        """Return the model for ``symbol``, which may be None if only one is served; load it if it is not loaded.

        Raises:
            ModelNotFound: when there is no model for it, or it is None and several models are served.
            ModelRefused: when its file cannot be used.
        """
        symbol, file = self.catalog.file_of(symbol)
        return (await self._models_of(file, symbol))[symbol]

    async def unseen(self, symbol: str | None) -> ServedModel | None:
        """The model of many symbols that can forecast one that no model was trained on; None without exactly one.

        Raises:
            ModelRefused: when its file cannot be used.
        """
        catalog, pooled = self.catalog, self.catalog.pooled
        if pooled is None or symbol is None or symbol in catalog.by_symbol or symbol in catalog.refused:
            return None
        return next(iter((await self._models_of(pooled, pooled.header.symbols[0])).values()))

    async def _models_of(self, file: ModelFile, symbol: str) -> Mapping[str, ServedModel]:
        """The models of a file of the catalog; a refusal names ``symbol``.

        Raises:
            ModelRefused: when the file cannot be used, now and until the next ``load``.
        """
        catalog = self.catalog
        try:
            return await self._cache.models_of(file)
        except ForecastError as error:
            refusal = RefusedModel(symbol, file.path, str(error)).error()
            logger.error("%s", refusal)
            catalog.refuse(file, str(error))
            raise refusal from error


def _described(versions: Mapping[str, str]) -> str:
    """Loaded models in a line of the log."""
    return listed(f"{symbol} {version[:12]}" for symbol, version in versions.items())
