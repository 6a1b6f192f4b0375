"""Prices from CSV and Parquet files, in the shapes people have them."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forecast.errors import DataError
from forecast.table import Table

DATE_NAMES = ("date", "datetime", "timestamp", "time", "day")
READABLE = (".csv", ".parquet")


def read_file(path: Path, symbol: str) -> Table:
    """Read a ``.csv`` or ``.parquet`` file with a date column and price columns, in any order of rows.

    Understood: a plain header; the three header lines that yfinance writes; dates as text, as a Parquet
    index, with or without a time zone, or as seconds or milliseconds since 1970. Of a file with several
    symbols the columns of ``symbol`` are taken.

    Raises:
        DataError: when the file is missing, empty, of another kind, damaged, or without usable dates.
    """
    if not path.exists():
        raise DataError(f"no file at {path}; check the path given to --source")
    if not path.is_file():
        raise DataError(f"{path} is not a file; give a .csv or .parquet file to --source")
    if path.suffix.lower() not in READABLE:
        raise DataError(
            f"{path} is neither a .csv nor a .parquet file; convert it, or rename it if it is one"
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
        head = path.read_text(encoding="utf-8-sig").splitlines()[:3]
        # yfinance writes two header lines (Price, Ticker) and a third that names the index only.
        many = len(head) == 3 and head[0].split(",")[0] == "Price" and head[1].split(",")[0] == "Ticker"
        if many:
            frame = pd.read_csv(path, header=[0, 1], index_col=0, skiprows=[2], encoding="utf-8-sig")
            frame.index.name = "Date"
            return frame
        return pd.read_csv(path, encoding="utf-8-sig", skipinitialspace=True)
    except UnicodeDecodeError:
        raise DataError(f"{path} is not text; save it as CSV in UTF-8") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"{path} is not a usable CSV file ({reason}); correct it") from None


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except Exception as error:  # pyarrow raises whatever its decoders stumble over
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"{path} is not a usable Parquet file ({reason}); write it again") from None


def _one_symbol(frame: pd.DataFrame, symbol: str, path: Path) -> pd.DataFrame:
    """The columns of ``symbol`` from a frame with (feature, symbol) columns; another frame as it is."""
    if frame.columns.nlevels == 1:
        return frame
    symbols = list(dict.fromkeys(str(column[-1]) for column in frame.columns))
    if symbol not in symbols:
        raise DataError(f"{path} holds {', '.join(symbols)}, not {symbol}; choose one with --symbol")
    chosen = frame.loc[:, [str(column[-1]) == symbol for column in frame.columns]]
    return chosen.set_axis([str(column[0]) for column in chosen.columns], axis=1)


def _split_dates(frame: pd.DataFrame, path: Path) -> tuple[NDArray[np.datetime64], pd.DataFrame]:
    named = [column for column in frame.columns if str(column).strip().lower() in DATE_NAMES]
    index_is_dates = isinstance(frame.index, pd.DatetimeIndex) or str(frame.index.name).lower() in DATE_NAMES
    if index_is_dates:
        return _to_days(frame.index.to_series(), path), frame.reset_index(drop=True)
    # An unnamed first column of text is an index that somebody saved along.
    unnamed = [
        c for c in frame.columns[:1] if str(c).startswith("Unnamed") and frame[c].dtype.kind not in "iuf"
    ]
    if not named and not unnamed:
        there = ", ".join(str(column) for column in frame.columns)
        raise DataError(f"{path} has no date column (columns: {there}); name one of them Date")
    column = (named or unnamed)[0]
    return _to_days(frame[column], path), frame.drop(columns=column)


def _to_days(column: pd.Series[Any], path: Path) -> NDArray[np.datetime64]:
    """Calendar days; of a time with a zone, the day in that zone."""
    if pd.api.types.is_numeric_dtype(column):
        # Seconds reach the year 5138 before they reach 1e11; milliseconds pass it in 1973.
        unit: Literal["ms", "s"] = "ms" if column.abs().max() > 1e11 else "s"
        return _days(pd.to_datetime(column.to_numpy(dtype=np.float64), unit=unit))
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        return _days(pd.DatetimeIndex(column).tz_localize(None))
    # A day written with a time and an offset is that day where it was written.
    text = column.astype("string").str.strip().str.replace(r"([T ]\d{1,2}:\d{2}.*)$", "", regex=True)
    days = pd.to_datetime(text, errors="coerce", format="ISO8601")
    if days.isna().any():
        days = pd.to_datetime(text, errors="coerce", format="mixed")
    wrong = np.flatnonzero(days.isna().to_numpy())
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"{path} has {column.iloc[row]!r} where a date should be (row {row + 1}); correct it, for example "
            "2024-12-31"
        )
    return _days(pd.DatetimeIndex(days))


def _days(index: pd.DatetimeIndex) -> NDArray[np.datetime64]:
    return index.to_numpy().astype("datetime64[D]")
