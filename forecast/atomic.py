"""Atomic file writes: a file is either complete or absent."""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any


def write_atomically(path: str | os.PathLike[str], write: Callable[[IO[bytes]], object]) -> None:
    """Write a file under a temporary name in the directory of ``path``, sync it to disk, then rename it.

    Args:
        path: path of the file; its directory is created if missing.
        write: called with a binary stream, to which it writes the content.

    Raises:
        OSError: when the directory cannot be written or the disk is full; ``path`` is then unchanged.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp creates files that only their owner may read; the finished file follows the umask.
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_directory(target.parent)


def require_writable(directory: Path) -> None:
    """Create ``directory`` and write to it once, so that a failure shows before long work, not after it.

    Raises:
        OSError: when it cannot be created or written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryFile(dir=directory) as stream:
            stream.write(b"\0" * 4096)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        # Name the directory, not the temporary file.
        raise OSError(error.errno, error.strerror, str(directory)) from None


def _umask() -> int:
    current = os.umask(0o022)
    os.umask(current)
    return current


def sync_directory(directory: Path) -> None:
    """Make the rename itself survive a power cut."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(content: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write plain values as JSON; a number that is not finite is an error rather than invalid JSON.

    Raises:
        OSError: as ``write_atomically``.
        ValueError: when a number is not finite.
    """
    text = json.dumps(content, indent=2, allow_nan=False, default=str) + "\n"
    write_atomically(path, lambda stream: stream.write(text.encode()))


def write_csv(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Write rows as CSV, at least one; a name that a row lacks is an empty cell.

    Raises:
        OSError: as ``write_atomically``.
    """
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, fieldnames=names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, lambda stream: stream.write(text.getvalue().encode()))
