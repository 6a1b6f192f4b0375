"""A table of prices as a source gave it, before columns are chosen and before any repair."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from forecast.errors import DataError
from forecast.prices.cells import Cells, cells_of, is_text
from forecast.prices.numbers import Sign, parse_numbers, proved_signs
from forecast.prices.symbols import find_column


@dataclass(frozen=True)
class Table:
    """Dates or times, and columns, of one symbol.

    Attributes:
        dates: shape (n,), in the source's order: days (``datetime64[D]``), or times as written (``datetime64[s]``).
        columns: n rows, one column per feature, values as read.
        as_of: the moment at which the prices were taken, with a zone; or the first day that was not complete then.
        origin: name of the table's origin, for messages.
        retrieved: the day the prices were taken from their origin; None when it is not known.
        source: name of the source that gave the table; None when it is the requested one.
        fallback: why the requested source was not used, in one line; None when it was.
        offsets: shape (n,), seconds that each time is ahead of UTC; None where the source names no zone.
        exchange: the code or the name of the exchange, as Yahoo gives it; None when it is not known.
        notes: lines that tell a person about the table.
        outside: lines of the file that are not rows of the table.
        decimal: the decimal sign of numbers in text; None to find the sign that the cells prove.
        signs_of_file: returns the decimal signs that all cells of the file prove, where the table has some of them.
    """

    dates: NDArray[np.datetime64]
    columns: pd.DataFrame
    as_of: dt.date | dt.datetime
    origin: str
    retrieved: dt.date | None = None
    source: str | None = None
    fallback: str | None = None
    offsets: NDArray[np.int64] | None = None
    exchange: str | None = None
    notes: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()
    decimal: Sign | None = None
    signs_of_file: Callable[[], Collection[Sign]] = tuple

    def values(self, feature: str) -> NDArray[np.float64]:
        """The column ``feature`` as numbers, shape (n,); empty and null cells are NaN.

        Case, spaces and underscores in the name do not matter.

        Raises:
            DataError: when no column has that name (the message lists the columns), or it holds text.
        """
        place = find_column([str(name) for name in self.columns.columns], feature, self.origin, "feature")
        cells = cells_of(self.columns.iloc[:, place])
        if is_text(cells):
            return parse_numbers(
                pc.fill_null(cells, ""),
                lambda row: f"{self.origin}, column {feature}, row {row + 1} ({self.dates[row]}),",
                decimal=self.decimal,
                others=lambda: self._other_signs(place),
            )
        try:
            if pa.types.is_boolean(cells.type):
                raise pa.ArrowInvalid
            numbers: NDArray[np.float64] = (
                pc.fill_null(pc.cast(cells, pa.float64(), safe=False), np.nan).to_numpy().astype(np.float64)
            )
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise DataError(
                f"{self.origin} has no numbers in column {feature} ({cells.type}); choose another `feature`"
            ) from None
        return numbers

    def _other_signs(self, place: int) -> set[Sign]:
        others = self.columns.iloc[:, [at for at in range(self.columns.shape[1]) if at != place]]
        return proved_signs(texts_of(others)) | set(self.signs_of_file())


def texts_of(frame: pd.DataFrame) -> list[Cells]:
    """The columns of text, empty for null."""
    columns = (cells_of(frame.iloc[:, at]) for at in range(frame.shape[1]))
    return [pc.fill_null(cells, "") for cells in columns if is_text(cells)]
