"""A clean series of prices, the input of every later stage."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forecast.errors import DataError
from forecast.prices.integrity import IntegrityReport
from forecast.prices.timeline import RECENT_DATES, Timeline

Dates = NDArray[np.datetime64]
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Provenance:
    """The origin of a series; stored in every checkpoint and summary."""

    source: str
    """Source that gave the prices: ``yahoo``, ``cache``, ``snapshot``, another source's name, or a file's path."""
    requested: str
    """The requested source; differs from ``source`` after a fallback."""
    first_date: str
    last_date: str
    rows: int
    sha256: str
    """Hash of the clean dates and values: equal hashes mean equal series."""
    fallback: str | None = None
    """Why the requested source was not used, in one line; None when it was."""
    retrieved: str | None = None
    """Day on which the prices were taken from their origin, ISO date; None when it is not known."""
    interval: str = "1d"
    """Length of a bar."""
    calendar: str | None = None
    """Calendar of the sessions."""
    calendar_fit: str | None = None
    """Why this calendar was chosen, and how well the rows fit it, in one line."""
    grid: dict[str, Any] | None = None
    """Where intraday bars lie in a session; see ``BarGrid``."""


@dataclass(frozen=True)
class Series:
    """Prices of one symbol, one row a bar, oldest first, clean.

    Attributes:
        dates: shape (n,), strictly increasing: days (``datetime64[D]``), or times in UTC (``datetime64[s]``).
        matrix: shape (n, columns), ``float64``, finite; the feature, in price units, is the first column.
        columns: names of the columns.
        timeline: length of the bars, and their calendar.
    """

    dates: Dates
    matrix: Values
    columns: tuple[str, ...]
    symbol: str
    provenance: Provenance
    timeline: Timeline
    integrity: IntegrityReport = field(repr=False)

    def __len__(self) -> int:
        return len(self.dates)

    @property
    def feature(self) -> str:
        """Name of the column that is forecast."""
        return self.columns[0]

    @property
    def input_columns(self) -> tuple[str, ...]:
        """Names of the columns other than the feature."""
        return self.columns[1:]

    @property
    def values(self) -> Values:
        """The feature, shape (n,), in price units."""
        return self.matrix[:, 0]

    def next_dates(self, count: int) -> Dates:
        """The dates of the ``count`` bars after the last row, shape (count,).

        Raises:
            DataError: when the calendar does not reach them.
        """
        dates = self.timeline.next_dates(self.dates[-RECENT_DATES:], count)
        if dates is None:
            (last,) = self.timeline.text(self.dates[-1:])
            raise DataError(
                f"the calendar {self.timeline.calendar_name} does not know the next {count} dates after {last}; set "
                "another `calendar`, or update the package exchange_calendars"
            )
        return dates

    def part(self, rows: slice) -> Series:
        """The series of these rows alone; the provenance stays that of all rows."""
        return replace(self, dates=self.dates[rows], matrix=self.matrix[rows])


def hash_rows(dates: Dates, matrix: Values) -> str:
    """SHA-256 over dates, in little-endian days or seconds since 1970, and float64 values (n, columns)."""
    digest = hashlib.sha256()
    digest.update(dates.astype("<i8").tobytes())
    digest.update(matrix.astype("<f8").tobytes())
    return digest.hexdigest()
