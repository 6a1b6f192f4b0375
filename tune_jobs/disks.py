"""Name the disk that is full, whatever error its fullness causes."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

from forecast.config import home_expanded
from forecast.errors import StudyError
from tune_jobs.options import TuneOptions
from tune_jobs.ray_internals import temporary_directory

NEARLY_FULL = 64 * 2**20
"""Free bytes below which a disk explains such an error: a large trial's state takes tens of megabytes."""
FULL = (errno.ENOSPC, errno.EDQUOT)
WORDS = (
    "no space left",
    "disk is full",
    "out of disk",
    "outofdisk",
    "disk quota",
    "pytorchstreamwriter",
    "inline_container",
)
"""How the system, SQLite, Ray and torch say that a disk is full, in lower case."""


@contextlib.contextmanager
def full_disk_named(options: TuneOptions) -> Iterator[None]:
    """Turn an error that a full disk causes into one line that names the disk and the remedy.

    Raises:
        StudyError: that line.
    """
    try:
        yield
    except Exception as error:
        if not _tells_of_full_disk(error):
            raise
        free, place, remedy = min((_free(place), place, remedy) for place, remedy in _places(options))
        if free >= NEARLY_FULL:
            raise
        raise StudyError(
            f"the disk of {place} is full ({free / 1e6:.3g} MB are free); free space there, or {remedy}; what "
            "finished is kept: continue with `resume`"
        ) from error


def _tells_of_full_disk(error: BaseException | None) -> bool:
    """Return whether an error, or one that caused it, can come from a full disk."""
    while error is not None:
        # Tune reads back the files that it could not write.
        if isinstance(error, EOFError | pickle.UnpicklingError):
            return True
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        if any(word in str(error).lower() for word in WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


def _places(options: TuneOptions) -> list[tuple[Path, str]]:
    """Return each directory that a job writes to on this machine, with the remedy for a full one."""
    places = [
        (options.output_dir.absolute(), "choose another `output_dir`"),
        (Path(temporary_directory()), "set RAY_TMPDIR to a directory on another disk"),
    ]
    if options.storage_path and "://" not in options.storage_path:
        places.append((home_expanded(options.storage_path).absolute(), "choose another `storage_path`"))
    return places


def _free(place: Path) -> int:
    while not place.exists():
        place = place.parent
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize
