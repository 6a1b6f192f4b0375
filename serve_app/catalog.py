"""What the served file or directory holds: which symbols, in which files, and which of them cannot be used.

A catalog is made from the headers of the files; it loads no model.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote

from forecast.errors import CheckpointError, ForecastError
from forecast.live.store import MANIFEST_FILE, Store
from forecast.model.exported import SUFFIX
from forecast.model.header import Header, read_header
from forecast.names import did_you_mean, listed, matching

SUFFIXES = (".pt", SUFFIX)
"""Ends of the names of the files that a directory is served from."""


class ModelNotFound(ForecastError):
    """No served model forecasts the requested symbol.

    Attributes:
        status: the HTTP status of the refusal.
        kind: a stable word for it.
    """

    status = 422
    kind = "symbol"


class ModelRefused(ModelNotFound):
    """The file of the requested symbol cannot be used."""

    status = 503
    kind = "model_refused"


@dataclass(frozen=True)
class Stored:
    """A version of a model in a model store.

    Attributes:
        name: the model's name in the store.
        version: the version's name.
    """

    name: str
    version: str

    @classmethod
    def at(cls, path: str | Path) -> Stored | None:
        """The version that a checkpoint is the file of; None outside of a store."""
        directory = Path(path).resolve().parent
        if not (directory / MANIFEST_FILE).is_file():
            return None
        return cls(unquote(directory.parent.name), directory.name)


@dataclass(eq=False)
class ModelFile:
    """A checkpoint that is served.

    Attributes:
        path: its path; of a model store, that of the version which was current, whose file never changes.
        header: its header, as it was last read.
        version: SHA-256 of the file when it was last read as a whole, in hexadecimal; None before.
    """

    path: Path
    header: Header
    version: str | None = None

    @cached_property
    def stored(self) -> Stored | None:
        """Its version in the model store; None outside of one."""
        return Stored.at(self.path)

    @property
    def name(self) -> str:
        """What stands for its symbols where it does not tell them."""
        return self.stored.name if self.stored else self.path.stem

    def hashed(self) -> str:
        """The hash of the file as it is now; empty when it cannot be read."""
        try:
            with self.path.open("rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError:
            return ""


@dataclass(frozen=True)
class RefusedModel:
    """A symbol whose model cannot be used, its file, and the reason."""

    symbol: str
    path: Path
    reason: str

    def error(self) -> ModelRefused:
        """The refusal of a request for the symbol."""
        return ModelRefused(
            f"the model of {self.symbol[:100]} cannot be used: {self.reason}; then run `python -m serve_app reload`"
        )


def read_files(place: Path) -> Iterator[ModelFile | RefusedModel]:
    """Read the header of a file, or of every file of a directory, sorted by name, one after the other.

    These are a directory's ``.pt`` and ``.onnx`` files, and the current versions of the models in a model store.

    Raises:
        CheckpointError: when a directory has no such file.
    """
    files = [place]
    if place.is_dir():
        files = sorted(path for path in place.iterdir() if path.suffix in SUFFIXES)
    paths = [(path.stem, path) for path in files]
    if place.is_dir():
        # A link without a target is a damaged version, and must not look like one that was taken away.
        paths += [(name, path.resolve()) for name, path in Store(place).links().items()]
    if not paths:
        raise CheckpointError(
            f"{place} has no .pt or .onnx file, and no promoted version of a model; put one file per symbol there, or "
            "run `python -m tune_jobs.update`, which makes a model store"
        )
    for name, path in paths:
        try:
            yield ModelFile(path, read_header(path))
        except ForecastError as error:
            yield RefusedModel(name, path, str(error))


def require_usable_file(place: Path) -> None:
    """Check that a directory has a file with a readable header; reads no further than the first.

    Raises:
        CheckpointError: when it has none.
    """
    refused = []
    for each in read_files(place):
        if isinstance(each, ModelFile):
            return
        refused.append(each)
    raise _none_usable(refused)


def _none_usable(refused: Sequence[RefusedModel]) -> CheckpointError:
    first, *further = refused
    more = f" (and {len(further)} more files or symbols)" if further else ""
    return CheckpointError(f"{first.reason}{more}")


class Catalog:
    """The symbols of a file or directory.

    Attributes:
        by_symbol: the file of each symbol that has a usable one, in the order of the files' names.
        refused: the symbols that have none; of a file whose symbol is not known, the name that stands for it.
    """

    def __init__(self, files: Sequence[ModelFile] = (), refused: Iterable[RefusedModel] = ()) -> None:
        """Catalog usable files, and files that cannot be used."""
        self._pooled = [file for file in files if file.header.pooled]
        self.takes_rows = any(len(file.header.columns) > 1 for file in files)
        files_of: dict[str, list[ModelFile]] = defaultdict(list)
        for file in files:
            for symbol in file.header.symbols:
                files_of[symbol].append(file)
        self.by_symbol = {symbol: of[0] for symbol, of in files_of.items() if len(of) == 1}
        self.refused = {each.symbol: each for each in refused}
        self._unreadable = dict(self.refused)
        for symbol, (first, *others) in files_of.items():
            if others:
                reason = f"{others[0].path} and {first.path} both forecast {symbol}; keep only one of the two"
                self.refused[symbol] = RefusedModel(symbol, others[0].path, reason)

    @classmethod
    def read(cls, place: Path) -> Catalog:
        """Read the header of a file, or of every file of a directory, as ``read_files``.

        Raises:
            CheckpointError: when the file cannot be used, or none of the directory's files.
        """
        files: list[ModelFile] = []
        refused: list[RefusedModel] = []
        for each in read_files(place):
            if isinstance(each, ModelFile):
                files.append(each)
            else:
                refused.append(each)
        catalog = cls(files, refused)
        catalog.require_usable()
        return catalog

    def require_usable(self) -> None:
        """Check that there is a usable file.

        Raises:
            CheckpointError: when there is none; with the first reason.
        """
        if not self.by_symbol:
            raise _none_usable(list(self.refused.values()))

    def require_readable(self, name: str) -> None:
        """Check that the file with this ``ModelFile.name``, if there is one, tells its symbols.

        Raises:
            ModelRefused: when it does not.
        """
        if (refused := self._unreadable.get(name)) is not None:
            raise refused.error()

    @property
    def files(self) -> list[ModelFile]:
        """The usable files, in the order of their names."""
        return list(dict.fromkeys(self.by_symbol.values()))

    @property
    def pooled(self) -> ModelFile | None:
        """The file of many symbols that forecasts symbols it was not trained on; None without exactly one."""
        return self._pooled[0] if len(self._pooled) == 1 else None

    def file_of(self, symbol: str | None) -> tuple[str, ModelFile]:
        """The file for a symbol, with the symbol, which may be None if there is only one.

        Raises:
            ModelNotFound: when there is no file for it, or it is None and there are several.
            ModelRefused: when its file cannot be used.
        """
        if symbol is None and len(self.by_symbol.keys() | self.refused.keys()) == 1:
            (symbol,) = self.by_symbol.keys() | self.refused.keys()
        if symbol is not None and (file := self.by_symbol.get(symbol)) is not None:
            return symbol, file
        if symbol is not None and (refused := self.refused.get(symbol)) is not None:
            raise refused.error()
        asked = "several models are served"
        if symbol is not None:
            close = did_you_mean(symbol[:100], self.by_symbol)
            asked = f"there is no model for {symbol[:100]!r}{f' ({close})' if close else ''}"
        unusable = f"; {len(self.refused)} more cannot be used, see GET /models" if self.refused else ""
        raise ModelNotFound(f"{asked}; give symbol as one of: {listed(self.by_symbol)}{unusable}")

    def refuse(self, file: ModelFile, reason: str) -> None:
        """Refuse the symbols of a file that turned out to be unusable."""
        self._pooled = [other for other in self._pooled if other is not file]
        for symbol in file.header.symbols:
            if self.by_symbol.get(symbol) is file:
                del self.by_symbol[symbol]
                self.refused[symbol] = RefusedModel(symbol, file.path, reason)

    def find(self, text: str) -> tuple[list[str], list[RefusedModel]]:
        """The usable and the refused symbols that contain a text, in the order of ``matching``."""
        return matching(text, self.by_symbol), [
            self.refused[symbol] for symbol in matching(text, self.refused)
        ]
