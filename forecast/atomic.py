"""Files that are either whole or not there."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any


def write_atomically(path: str | os.PathLike[str], write: Callable[[IO[bytes]], object]) -> None:
    """Write a file under a temporary name beside ``path``, sync it to disk, then rename it.

    Args:
        path: where the file is to be; its directory is made when it is not there.
        write: writes the content to the binary stream it is given.

    Raises:
        OSError: when the place cannot be written or the disk is full; ``path`` is then as it was.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes files that only their owner may read; a finished file follows the umask.
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync_directory(target.parent)


def require_writable(directory: Path) -> None:
    """Make ``directory`` and write to it once: before long work, not after it.

    Raises:
        OSError: when that cannot be done.
    """
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryFile(dir=directory) as stream:
            stream.write(b"\0" * 4096)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        # Name the directory, not the file that was tried.
        raise OSError(error.errno, error.strerror, str(directory)) from None


def _umask() -> int:
    current = os.umask(0o022)
    os.umask(current)
    return current


def _sync_directory(directory: Path) -> None:
    """Make the rename itself survive a power cut."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(content: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write plain values as JSON; a number that is not finite is an error rather than bad JSON.

    Raises:
        OSError: as ``write_atomically``.
        ValueError: when a number is not finite.
    """
    text = json.dumps(content, indent=2, allow_nan=False, default=str) + "\n"
    write_atomically(path, lambda stream: stream.write(text.encode()))
