"""The model store: a directory of names, each with versions that never change and one that is current.

    models/ledger.db
    models/BTC-USD/2020-01-17-3fa9c1d2/     a job's files, read-only
    models/BTC-USD/current                  a link to a version

A name is a symbol or the name of a universe of symbols. The ledger records a change of the current version before the
link changes, so the next command completes an interrupted change.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from forecast.atomic import sync_directory, write_json
from forecast.errors import StoreError
from forecast.job_files import (
    FRONT_FILE,
    PICK_FILE,
    REPORT_FILE,
    SCORED_FILE,
    SUMMARY_FILE,
    SYMBOLS_FILE,
)

if TYPE_CHECKING:
    from forecast.live.ledger import Event, Ledger

FILES = (PICK_FILE, SCORED_FILE, SUMMARY_FILE, FRONT_FILE, SYMBOLS_FILE, REPORT_FILE)
"""The files of a job that a version keeps, if they exist."""
MANIFEST_FILE = "manifest.json"
LEDGER_FILE = "ledger.db"
CURRENT = "current"
LOCK_FILE = ".lock"
CHANGES: tuple[Event, ...] = ("promoted", "rolled_back")
"""The events that change the current version."""


@dataclass(frozen=True)
class Version:
    """A version of a model.

    Attributes:
        name: name in the store.
        version: name of the version.
        created: time when the version was added, ISO 8601.
        trained_until: date or time of the last row that the model was trained or calibrated on, ISO 8601.
        files: SHA-256 of each file.
    """

    name: str
    version: str
    created: str
    trained_until: str
    files: Mapping[str, str]

    @property
    def sha256(self) -> str:
        """The hash of the served checkpoint."""
        return self.files[PICK_FILE]


class Store:
    """A model store in a directory, which is created when the first model is added."""

    def __init__(self, root: Path) -> None:
        """Use the directory ``root``."""
        self.root = root

    @cached_property
    def ledger(self) -> Ledger:
        """The ledger of the store's models.

        Raises:
            LedgerError: when it cannot be opened.
        """
        # A server of files needs no ledger, and its libraries take a third of a second to import.
        from forecast.live.ledger import Ledger

        return Ledger(self.root / LEDGER_FILE)

    def require(self) -> None:
        """Check that there is a store.

        Raises:
            StoreError: when the directory is missing, or has neither a model nor a ledger.
        """
        if not self.root.is_dir():
            reason = "there is no such directory" if not self.root.exists() else "it is no directory"
        elif not (self.root / LEDGER_FILE).is_file() and not self.names():
            reason = f"it has neither a model nor {LEDGER_FILE}"
        else:
            return
        raise StoreError(
            f"{self.root.absolute()} is no model store: {reason}; name the store's directory as `models`, or create "
            "one with `python -m tune_jobs.update`"
        )

    def names(self) -> list[str]:
        """The names that have versions, sorted."""
        if not self.root.is_dir():
            return []
        return sorted({unquote(path.parent.name) for path in self.root.glob("[!.]*/[!.]*")})

    def directory(self, name: str) -> Path:
        """The directory of a name, which is within the store whatever the name."""
        escaped = quote(name, safe="")
        return self.root / (f"%2E{escaped[1:]}" if escaped.startswith(".") else escaped)

    def path(self, name: str, version: str) -> Path:
        """The directory of a version.

        Raises:
            StoreError: when the store has no such name, or the name has no such version.
        """
        path = self.directory(name) / version
        plain = re.fullmatch(r"[^./][^/]*", version) and version != CURRENT
        if not plain or not (path / MANIFEST_FILE).is_file():
            self.versions(name)  # refuses an unknown name
            raise StoreError(
                f"{name} has no version {version!r}; `python -m tune_jobs.models show {name}` lists the versions"
            )
        return path

    def versions(self, name: str) -> list[Version]:
        """The versions of a name, oldest first.

        Raises:
            StoreError: when the store has no such name, or a version's manifest cannot be read.
        """
        found = self._versions(name)
        if not found:
            known = ", ".join(self.names()) or "none"
            raise StoreError(f"the store {self.root} has no model {name!r}; its models: {known}")
        return found

    def newest(self, name: str) -> Version | None:
        """The version that was added last; None without one."""
        versions = self._versions(name)
        return versions[-1] if versions else None

    def _versions(self, name: str) -> list[Version]:
        found = []
        for path in self.directory(name).glob(f"[!.]*/{MANIFEST_FILE}"):
            if path.parent.name == CURRENT:
                continue
            try:
                found.append(Version(**json.loads(path.read_text())))
            except (OSError, ValueError, TypeError) as error:
                raise StoreError(f"{path} cannot be read ({error}); restore it from a copy") from None
        return sorted(found, key=lambda each: (each.created, each.version))

    def version(self, name: str, version: str) -> Version:
        """One version; errors as ``path`` and ``versions``."""
        self.path(name, version)
        return next(each for each in self.versions(name) if each.version == version)

    def current(self, name: str) -> Version | None:
        """The version that is served; None before the first promotion, or if its directory is missing."""
        try:
            version = (self.directory(name) / CURRENT).readlink().name
        except OSError:
            return None
        if not (self.directory(name) / version / MANIFEST_FILE).is_file():
            return None
        return self.version(name, version)

    def links(self) -> dict[str, Path]:
        """The checkpoint that the link ``current`` of each name leads to, by name, whether it is there or not."""
        found = {}
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(self.root) as entries:
            for entry in entries:
                # Names without versions are few, and a server reads all links every second.
                with contextlib.suppress(OSError):
                    version = Path(entry.path, CURRENT).readlink()
                    found[unquote(entry.name)] = Path(entry.path, version, PICK_FILE)
        return dict(sorted(found.items()))

    def checkpoint(self, name: str, version: str) -> Path:
        """The served checkpoint of a version; errors as ``path``."""
        return self.path(name, version) / PICK_FILE

    def damage(self, version: Version) -> str | None:
        """A line about the first file of a version that has changed since it was added; None if no file has."""
        directory = self.directory(version.name) / version.version
        for file, expected in version.files.items():
            try:
                if _sha256(directory / file) != expected:
                    return f"{directory / file} has changed since it was added"
            except OSError as error:
                return f"{directory / file} cannot be read ({error.strerror})"
        return None

    def add(self, name: str, job: Path, trained_until: str) -> Version:
        """Add a job's files as a version; the same model again returns the existing version.

        Args:
            name: name in the store.
            job: the job's output directory.
            trained_until: date or time of the last row that the model has seen, ISO 8601.

        Raises:
            StoreError: when the job left no model.
            OSError: when the store cannot be written; no version is added then.
        """
        if not (job / PICK_FILE).is_file():
            raise StoreError(f"{job} has no {PICK_FILE}; give the output directory of a finished job")
        digest = _sha256(job / PICK_FILE)
        version = f"{trained_until.replace(':', '')}-{digest[:8]}"
        directory = self.directory(name)
        if (directory / version).exists():
            there = self.version(name, version)
            if self.damage(there) is None:
                self._record_added(there)
                return there
            (directory / version).rename(Path(tempfile.mkdtemp(dir=directory, prefix=".damaged.")) / version)
        directory.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=directory, prefix=".adding."))
        try:
            files = {}
            for file in FILES:
                if (job / file).is_file():
                    shutil.copyfile(job / file, temporary / file)
                    files[file] = _sha256(temporary / file)
            added = Version(name, version, _now(), trained_until, files)
            write_json(asdict(added), temporary / MANIFEST_FILE)
            for path in temporary.iterdir():
                _sync(path)
                path.chmod(0o444)
            temporary.chmod(0o755)
            temporary.rename(directory / version)
            sync_directory(directory)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        self._record_added(added)
        return added

    def _record_added(self, version: Version) -> None:
        """Record a version in the ledger, once."""
        recorded = self.ledger.events(version.name, "added")
        if all(event["version"] != version.version for event in recorded):
            self.ledger.add_event(
                version.name, "added", version=version.version, session=version.trained_until
            )

    def promote(
        self,
        name: str,
        version: str,
        *,
        kind: Event = "promoted",
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """Make a version the current version, and record this.

        Args:
            name: name in the store.
            version: the version.
            kind: ``promoted`` or ``rolled_back``.
            details: reasons and figures, plain values.

        Raises:
            StoreError: when there is no such version, or its files have changed.
        """
        chosen = self.version(name, version)
        if damage := self.damage(chosen):
            raise StoreError(f"version {version} of {name} cannot be used: {damage}; choose another version")
        before = self.current(name)
        self.ledger.add_event(
            name,
            kind,
            version=version,
            session=self.ledger.last_session(name),
            details={"before": before and before.version, **(details or {})},
        )
        self._point_to(name, version)

    def rollback(self, name: str, details: Mapping[str, Any] | None = None) -> str:
        """Make the previous current version current again, and return it.

        Versions whose files have changed are skipped.

        Raises:
            StoreError: when there is no such version.
        """
        current = self.current(name)
        for earlier in self._earlier(name):
            if current is None or earlier.version != current.version:
                self.promote(name, earlier.version, kind="rolled_back", details=details)
                return earlier.version
        versions = self._versions(name)
        damaged = [damage for each in versions if each != current and (damage := self.damage(each))]
        cause = f" ({damaged[-1]})" if damaged else ""
        raise StoreError(f"{name} has no earlier version to return to{cause}; promote another version")

    def _earlier(self, name: str) -> Iterator[Version]:
        """The undamaged versions that were current before the current version, latest first.

        Versions from which a rollback led away are not among them.
        """
        versions = {each.version: each for each in self.versions(name)}
        stack: list[str] = []
        for event in reversed(self.ledger.events(name, *CHANGES)):
            version = event["version"]
            if event["kind"] == "rolled_back" and version in stack:
                del stack[stack.index(version) + 1 :]
            else:
                stack = [*(each for each in stack if each != version), version]
        for version in reversed(stack[:-1]):
            if version in versions and self.damage(versions[version]) is None:
                yield versions[version]

    def complete(self, name: str) -> None:
        """Complete an interrupted step: the record of a version, or a recorded change of the current version."""
        versions = self._versions(name)
        for each in versions:
            self._record_added(each)
        last = self.ledger.events(name, *CHANGES, limit=1)
        current = self.current(name)
        there = last and any(each.version == last[0]["version"] for each in versions)
        if there and (current is None or current.version != last[0]["version"]):
            self._point_to(name, last[0]["version"])

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Keep other commands from changing the models of a name.

        Raises:
            StoreError: when another process has the lock; the message names the process.
        """
        directory = self.directory(name)
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / LOCK_FILE).open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                holder = lock.read().strip() or "another process"
                raise StoreError(
                    f"{holder} is working on {name} in {self.root}; wait for it to end, or end it"
                ) from None
            lock.truncate(0)
            lock.write(f"process {os.getpid()} on {socket.gethostname()}, since {_now()},")
            lock.flush()
            # The lock ends with the process, however the process ends; the file stays.
            yield

    def _point_to(self, name: str, version: str) -> None:
        directory = self.directory(name)
        temporary = directory / f".{CURRENT}.{os.getpid()}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(version)
        temporary.replace(directory / CURRENT)
        sync_directory(directory)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
