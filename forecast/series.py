"""A clean series of prices: what every later stage takes as its input."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forecast.integrity import IntegrityReport

Dates = NDArray[np.datetime64]
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Provenance:
    """Where a series came from; kept in every checkpoint and summary."""

    source: str
    """What the prices were read from: ``yahoo``, ``cache``, ``snapshot`` or a file's path."""
    requested: str
    """What ``--source`` asked for; differs from ``source`` after a fallback."""
    first_date: str
    last_date: str
    rows: int
    sha256: str
    """Hash of the clean dates and values: equal hashes mean equal series."""
    fallback: str | None = None
    """Why the requested source was not used, in one line; None when it was."""
    retrieved: str | None = None
    """When the prices were taken from their origin, ISO date; None when that is not known."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Series:
    """Prices of one feature of one symbol, one row a day, oldest first, clean; maybe with further columns.

    Attributes:
        dates: shape (n,), ``datetime64[D]``, strictly increasing.
        values: shape (n,), ``float64``, finite, in price units.
        further: the further columns that were asked for, by name, each like ``values``.
    """

    dates: Dates
    values: Values
    symbol: str
    feature: str
    provenance: Provenance
    integrity: IntegrityReport = field(repr=False)
    further: dict[str, Values] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.values)

    def part(self, rows: slice) -> Series:
        """Some of its rows, with the provenance of all."""
        further = {name: values[rows] for name, values in self.further.items()}
        return replace(self, dates=self.dates[rows], values=self.values[rows], further=further)

    @property
    def matrix(self) -> Values:
        """All columns, shape (n, 1 + further), the feature first."""
        return np.stack([self.values, *self.further.values()], axis=-1)


def hash_rows(dates: Dates, values: Values) -> str:
    """SHA-256 over little-endian days since 1970 and float64 values of any shape, the same on every platform."""
    digest = hashlib.sha256()
    digest.update(dates.astype("datetime64[D]").astype("<i8").tobytes())
    digest.update(values.astype("<f8").tobytes())
    return digest.hexdigest()
