"""Prices from CSV and Parquet files, in their common layouts."""

from __future__ import annotations

import csv
import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forecast.errors import DataError
from forecast.prices.table import Table

DATE_NAMES = ("date", "datetime", "timestamp", "time", "day")
READABLE = (".csv", ".parquet")
SYMBOL_NAMES = ("symbol", "ticker", "name")
"""Columns that may hold each row's symbol; the first one present is used."""
DATE_FORMS = ("ISO8601", "%Y-%m-%d", "%m-%d-%Y", "%d-%m-%Y", "%m-%d-%y", "%d-%m-%y")
"""Forms of numeric dates, once their separators are dashes; a column is read in one of them."""
NAMED_SYMBOLS = 10
"""Largest number of symbols that an error lists."""


def read_file(path: Path, symbol: str) -> Table:
    """Read a ``.csv`` or ``.parquet`` file with a date column and price columns, in any order of rows.

    Understood: a plain header; the header lines that yfinance writes; dates as text, as a Parquet index, with
    or without a time zone, as digits such as 20241231, or as seconds (or parts of them) since 1970. A column
    of dates is read in one form; where day and month could be either way round, in the form with the smaller
    gaps. Of a file with several symbols, in columns or in rows, those of ``symbol`` are taken.

    Raises:
        DataError: when the file is missing, empty, of another kind, damaged, or without usable dates.
    """
    if not path.exists():
        raise DataError(f"no file at {path}; check the path given as `source`")
    if not path.is_file():
        raise DataError(f"{path} is not a file; give a .csv or .parquet file as `source`")
    if path.suffix.lower() not in READABLE:
        raise DataError(
            f"{path} is neither a .csv nor a .parquet file; convert the file, or correct its extension"
        )
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty; give a file with a date column and prices")
    read = _read_csv if path.suffix.lower() == ".csv" else _read_parquet
    frame = _one_symbol(read(path), symbol, path)
    dates, columns = _split_dates(frame, path)
    if not len(columns):
        raise DataError(f"{path} has a header but no rows; give a file with prices")
    today = dt.datetime.now(dt.UTC).date()
    return Table(dates=dates, columns=columns, as_of=today, origin=str(path))


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            head = [row for row, _ in zip(csv.reader(stream), range(3), strict=False)]
        # yfinance writes two header lines (Price, Ticker) and usually a third that only names the index.
        if [row[0] for row in head[:2] if row] in (["Price", "Ticker"], ["Ticker", "Price"]):
            third = len(head) == 3 and not any(head[2][1:]) and head[2][0].lower() in (*DATE_NAMES, "")
            frame = pd.read_csv(
                path, header=[0, 1], index_col=0, skiprows=[2] if third else None, encoding="utf-8-sig"
            )
            frame.index.name = "Date"
            return frame
        return pd.read_csv(path, encoding="utf-8-sig", skipinitialspace=True, low_memory=False)
    except UnicodeDecodeError:
        raise DataError(f"{path} is not text; save it as CSV in UTF-8") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, csv.Error) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"{path} is not a usable CSV file ({reason}); correct the file") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check its permissions") from None


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except Exception as error:  # pyarrow's decoders can raise anything
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"{path} is not a usable Parquet file ({reason}); write the file again") from None


def _one_symbol(frame: pd.DataFrame, symbol: str, path: Path) -> pd.DataFrame:
    """The columns or rows of ``symbol`` from a frame with several symbols; any other frame unchanged."""
    if frame.columns.nlevels == 1:
        return _rows_of_symbol(frame, symbol, path)
    # yfinance's columns are (price, ticker), or (ticker, price) when grouped by ticker.
    at = 0 if frame.columns.names[0] == "Ticker" else -1
    symbols = [str(column[at]) for column in frame.columns]
    _require_symbol(symbols, symbol, path)
    chosen = frame.loc[:, [name == symbol for name in symbols]]
    return chosen.set_axis([str(column[-1 - at]) for column in chosen.columns], axis=1)


def _rows_of_symbol(frame: pd.DataFrame, symbol: str, path: Path) -> pd.DataFrame:
    columns = {str(column).strip().lower(): column for column in frame.columns}
    column = next((columns[name] for name in SYMBOL_NAMES if name in columns), None)
    # A file of one symbol may spell it differently: BTC/USD for BTC-USD.
    if column is None or frame[column].nunique() < 2:
        return frame
    symbols = frame[column].astype("string").str.strip()
    _require_symbol(symbols.dropna().tolist(), symbol, path)
    return frame[(symbols == symbol).fillna(False).to_numpy(dtype=bool)]


def _require_symbol(symbols: list[str], symbol: str, path: Path) -> None:
    there = list(dict.fromkeys(symbols))
    if symbol not in there:
        more = f" and {len(there) - NAMED_SYMBOLS} more" if len(there) > NAMED_SYMBOLS else ""
        listed = ", ".join(there[:NAMED_SYMBOLS]) + more
        raise DataError(f"{path} holds {listed}, not {symbol}; choose one of these with `symbol`")


def _split_dates(frame: pd.DataFrame, path: Path) -> tuple[NDArray[np.datetime64], pd.DataFrame]:
    named = [column for column in frame.columns if str(column).strip().lower() in DATE_NAMES]
    index_is_dates = isinstance(frame.index, pd.DatetimeIndex) or str(frame.index.name).lower() in DATE_NAMES
    if index_is_dates:
        return _to_days(frame.index.to_series(), path), frame.reset_index(drop=True)
    # An unnamed first column of text is an index that was saved with the table.
    unnamed = [
        c for c in frame.columns[:1] if str(c).startswith("Unnamed") and frame[c].dtype.kind not in "iuf"
    ]
    if not named and not unnamed:
        there = ", ".join(str(column) for column in frame.columns)
        raise DataError(f"{path} has no date column (columns: {there}); rename one of the columns to Date")
    column = (named or unnamed)[0]
    return _to_days(frame[column], path), frame.drop(columns=column)


def _to_days(column: pd.Series[Any], path: Path) -> NDArray[np.datetime64]:
    """Convert dates to calendar days; a time with a zone gives the day in that zone."""
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        column = column.dt.tz_localize(None)
    if isinstance(column.dtype, np.dtype) and column.dtype.kind == "M":
        days = column.to_numpy().astype("datetime64[D]")
    elif pd.api.types.is_numeric_dtype(column):
        days = _days_of_numbers(column.to_numpy(dtype=np.float64, na_value=np.nan))
    else:
        days = _days_of_text(column.astype("string").str.strip())
    wrong = np.flatnonzero(np.isnat(days))
    if len(wrong):
        row = int(wrong[0])
        value = column.iloc[row]
        shown = repr(value) if isinstance(value, str) else str(value)
        raise DataError(
            f"{path} has {shown} where a date should be (row {row + 1}); use a date such as 2024-12-31"
        )
    return days


def _days_of_numbers(numbers: NDArray[np.float64]) -> NDArray[np.datetime64]:
    """Days from numbers such as 20241231 or from times since 1970; NaT where a number is neither."""
    finite = np.isfinite(numbers)
    largest = np.abs(numbers[finite]).max(initial=0)
    if 1900_01_01 <= largest <= 2100_12_31:
        return _days_of_text(pd.Series(numbers).map("{:.0f}".format).astype("string"))
    # Seconds stay below 1e11 until the year 5138, milliseconds below 1e14 and so on; numbers that all stay
    # below 1e8, which is 1973 in seconds, are row numbers rather than times.
    per_second = next((unit for unit in (1, 1e3, 1e6, 1e9) if 1e8 <= largest < 1e11 * unit), None)
    days = np.full(len(numbers), np.datetime64("NaT"), dtype="datetime64[D]")
    if per_second:
        days[finite] = (
            np.floor(numbers[finite] / (86_400 * per_second)).astype(np.int64).astype("datetime64[D]")
        )
    return days


def _days_of_text(column: pd.Series[str]) -> NDArray[np.datetime64]:
    """Days from text, read in one form for all rows; NaT where a row does not have that form."""
    # A day written with a time and an offset is the day as written, in that zone.
    text = column.str.replace(r"([T ]\d{1,2}:\d{2}.*)$", "", regex=True)
    figures = text.str.replace(r"[./]", "-", regex=True)
    readings = []
    for form in DATE_FORMS:
        days = _parse(figures, form)
        if form == "ISO8601" and not np.isnat(days).any():
            return days
        readings.append(days)
    # With mixed forms, only a named month makes clear which number is the day.
    readings.append(_parse(text.where(text.str.contains(r"[A-Za-z]{3}")), "mixed"))
    missing = [int(np.isnat(days).sum()) for days in readings]
    best = [days for days, count in zip(readings, missing, strict=True) if count == min(missing)]
    return min(best, key=_largest_gap)


def _parse(text: pd.Series[str], form: str) -> NDArray[np.datetime64]:
    return pd.to_datetime(text, errors="coerce", format=form).to_numpy().astype("datetime64[D]")


def _largest_gap(days: NDArray[np.datetime64]) -> int:
    gaps = np.diff(np.sort(days[~np.isnat(days)])).astype(int)
    return int(gaps.max(initial=0))
