"""A table of prices as a source gave it, before columns are chosen and before any repair."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forecast.errors import DataError
from forecast.names import plain_name

THOUSANDS = r"[+-]?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?"
"""Form of a number with commas between thousands."""


@dataclass(frozen=True)
class Table:
    """Dates and columns of one symbol.

    Attributes:
        dates: shape (n,), ``datetime64[D]``, in the source's order.
        columns: n rows, one column per feature, values as read.
        as_of: the first day that was not complete when the prices were taken.
        origin: name of the table's origin, for messages.
        retrieved: the day the prices were taken from their origin; None when it is not known.
        source: name of the source that gave the table; None when it is the requested one.
        fallback: why the requested source was not used, in one line; None when it was.
    """

    dates: NDArray[np.datetime64]
    columns: pd.DataFrame
    as_of: dt.date
    origin: str
    retrieved: dt.date | None = None
    source: str | None = None
    fallback: str | None = None

    def values(self, feature: str) -> NDArray[np.float64]:
        """The column ``feature`` as numbers, shape (n,); empty and null cells are NaN.

        Case, spaces and underscores in the name do not matter.

        Raises:
            DataError: when no column has that name (the message lists the columns), or it holds text.
        """
        names = {plain_name(str(name)): name for name in self.columns.columns}
        if feature in self.columns.columns:
            names[plain_name(feature)] = feature
        if plain_name(feature) not in names:
            there = ", ".join(str(name) for name in self.columns.columns)
            raise DataError(f"{self.origin} has no feature {feature!r}; choose one of: {there}")
        column = self.columns[names[plain_name(feature)]]
        if pd.api.types.is_numeric_dtype(column):
            return column.to_numpy(dtype=np.float64, na_value=np.nan)
        text = column.astype("string").str.strip()
        # Remove commas only where they must be thousands separators: in 1234,567 they are not.
        text = text.mask(text.str.fullmatch(THOUSANDS).fillna(False), text.str.replace(",", ""))
        empty = text.isna() | text.str.lower().isin(["", "null", "none", "na", "n/a", "nan", "-", "."])
        numbers = pd.to_numeric(text.mask(empty), errors="coerce")
        wrong = np.flatnonzero((numbers.isna() & ~empty).to_numpy())
        if len(wrong):
            row = int(wrong[0])
            raise DataError(
                f"{self.origin} has {column.iloc[row]!r}, not a number, in column {feature} on "
                f"{self.dates[row]} (row {row + 1}); correct the file or choose another `feature`"
            )
        return numbers.to_numpy(dtype=np.float64, na_value=np.nan)
