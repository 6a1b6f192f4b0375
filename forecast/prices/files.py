"""Prices from files: CSV and other text, Parquet and Excel, packed or not."""

from __future__ import annotations

import datetime as dt
import io
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forecast.config import DataConfig, FileConfig, parse_settings
from forecast.errors import DataError
from forecast.names import plain_name
from forecast.prices.calendars import weekday
from forecast.prices.cells import shown, text_of
from forecast.prices.dates import (
    WEEKDAYS,
    Days,
    Evidence,
    Stamps,
    is_date_like,
    is_date_text,
    join_time,
    parse_dates,
)
from forecast.prices.layout import MOST_HEADERS, read_layout, unpacked
from forecast.prices.numbers import Sign, proved_signs
from forecast.prices.symbols import (
    columns_by_symbol,
    columns_of_symbol,
    find_column,
    parts_of_name,
    refuse_blocks,
    rows_of_symbol,
    symbol_place,
    symbols_of_levels,
    symbols_of_names,
)
from forecast.prices.table import Table, texts_of

READABLE = (".csv", ".tsv", ".txt", ".parquet", ".xlsx")
"""Endings of the files that can be read, each also packed as ``.gz``, ``.bz2``, ``.xz`` or ``.zip``."""
PACKED = (".gz", ".bz2", ".xz", ".zip")
DATE_NAMES = (
    "date", "datetime", "timestamp", "ds", "observationdate", "tradedate", "tradingdate", "data", "datum", "fecha",
    "date/time", "gmttime", "localtime", "time", "day", "unix", "unixtime", "opentime", "dt", "month", "period",
    "dtyyyymmdd",
)  # fmt: skip
"""Names of columns of dates in ``plain_name``'s form and without brackets, the likeliest first."""
PRICE_NAMES = ("open", "high", "low", "close", "adjclose", "last", "price", "volume", "y")
"""Names of columns of a bar in ``plain_name``'s form: a file with one of them has no column for each symbol."""
UNNAMED = "Unnamed:"
"""What pandas calls a column without a name, such as an index of row numbers."""
TIME_NAMES = ("time", "hour", "hora", "uhrzeit", "zeit", "heure", "timeutc")
"""Names of columns of times of day, beside a column of dates."""


@dataclass(frozen=True)
class Sheet:
    """The cells of a file, before the columns and the rows of a symbol are chosen.

    Attributes:
        frame: the rows; its columns are numbered.
        header: the lines of the header, each with one name per column.
        labels: the name of each line of the header, such as ``Ticker``; empty where it has none.
        name: the file's name, for messages.
        outside: lines of the file that are not rows of the table.
        retrieved: the day on which the file was read from its origin; None when it is not known.
    """

    frame: pd.DataFrame
    header: Sequence[Sequence[str]]
    labels: Sequence[str]
    name: str
    outside: tuple[str, ...] = ()
    retrieved: dt.date | None = None

    def table(self, symbol: str, reading: FileConfig) -> Table:
        """The prices of ``symbol``.

        Raises:
            DataError: when there are none, or the cells can be read in more than one way.
        """
        name = self.name
        if isinstance(reading, DataConfig) and self._has_column_of(symbol, reading):
            return self.readers(reading)[symbol]()
        places, names, other = columns_of_symbol(self.header, self.labels, symbol, name)
        self._require_rows()
        whole_frame = self.frame.iloc[:, places].set_axis(names, axis=1)
        frame, another = rows_of_symbol(
            whole_frame,
            symbol,
            reading.symbol_column,
            name,
            dates=lambda: text_of(whole_frame.iloc[:, _date_place(whole_frame, names, name, reading)]),
        )
        stamps, columns = _split_dates(frame, name, reading)
        return self._table(stamps, columns, reading, tuple(note for note in (other, another) if note))

    def _has_column_of(self, symbol: str, config: DataConfig) -> bool:
        """Tell whether a column holds the prices of ``symbol`` and has only its name."""
        (names, *further) = self.header
        plain = [plain_name(text) for text in names]
        return (
            not further
            and symbol in names
            and plain_name(config.feature) not in plain
            and not symbols_of_names(names, config.feature)
            and symbol_place(self.frame.set_axis(list(names), axis=1), config.symbol_column, self.name)
            is None
        )

    def _require_rows(self) -> None:
        if not len(self.frame):
            raise DataError(f"{self.name} has a header but no rows; give a file with prices")

    def _table(
        self, stamps: Stamps, columns: pd.DataFrame, reading: FileConfig, notes: tuple[str, ...] = ()
    ) -> Table:
        table = table_of_rows(stamps, columns, self.name, decimal=reading.decimal)
        return replace(table, notes=notes, retrieved=self.retrieved, outside=self.outside)

    def readers(self, config: DataConfig) -> dict[str, Callable[[], Table]]:
        """Functions that return the table of each symbol, with its prices as ``config.feature``, in the file's order.

        Dates are read once, because what the cells prove holds for all symbols.

        Raises:
            DataError: when the file does not name the symbols of its rows or of its columns, or has no dates.
        """
        self._require_rows()
        feature = config.feature
        if len(self.header) > 1:
            found = symbols_of_levels(self.header, self.labels, feature)
            return self._readers_one_by_one(dict.fromkeys(found, self), config) or self._nameless()
        names = list(self.header[0])
        frame = self.frame.set_axis(names, axis=1)
        if (place := symbol_place(frame, config.symbol_column, self.name)) is not None:
            return self._readers_of_rows(frame, place, config)
        found = symbols_of_names(names, feature)
        bare = [plain_name(text) for text in names]
        # Some symbols are called Open or Low, but not two of them and nothing else.
        prices = sum(text in PRICE_NAMES for text in bare)
        if not found and (plain_name(feature) in bare or prices > 1 or "volume" in bare):
            self._nameless()
        if not found:
            self._refuse_other_prices(names, feature)
        refuse_blocks(frame, self.name)
        stamps, columns = _split_dates(frame, self.name, config)
        names = list(columns.columns)
        signs = cache(lambda: proved_signs(texts_of(columns)))

        def read(places: list[int], its_names: list[str]) -> Table:
            own = columns.iloc[:, places].set_axis(its_names, axis=1)
            return replace(self._table(stamps, own, config), signs_of_file=signs)

        if found:
            return {symbol: partial(read, *its) for symbol, its in columns_by_symbol(names, found).items()}
        # A column for each symbol, which has its name.
        inputs = [plain_name(text) for text in config.input_columns]

        def read_named(symbol: str) -> Table:
            places = [at for at, text in enumerate(names) if text == symbol or plain_name(text) in inputs]
            return read(places, [feature if names[at] == symbol else names[at] for at in places])

        return {
            symbol: partial(read_named, symbol)
            for symbol in names
            if symbol and not symbol.startswith(UNNAMED)
        }

    def _readers_of_rows(
        self, frame: pd.DataFrame, place: int, reading: FileConfig
    ) -> dict[str, Callable[[], Table]]:
        """As ``readers``, of a file whose column at ``place`` names the symbol of each row."""
        codes, symbols = pd.factorize(pd.Series(text_of(frame.iloc[:, place]), dtype=object))
        order = np.argsort(codes, kind="stable")
        ends = np.searchsorted(codes[order], np.arange(len(symbols) + 1))
        rows = {
            str(symbol): order[start:end]
            for symbol, (start, end) in zip(symbols.tolist(), itertools.pairwise(ends), strict=True)
        }
        nameless = len(rows.pop("", ()))
        notes = (f"{self.name} has {nameless} rows without a symbol; they are left out",) if nameless else ()
        try:
            stamps, columns = _split_dates(frame, self.name, reading)
        except DataError:  # a bad cell costs only the symbol of its row
            sheets = {symbol: replace(self, frame=self.frame.iloc[its]) for symbol, its in rows.items()}
            return self._readers_one_by_one(sheets, reading, notes)
        signs = cache(lambda: proved_signs(texts_of(columns)))

        def read(its: NDArray[np.int64]) -> Table:
            table = self._table(stamps[its], columns.iloc[its], reading, notes)
            return replace(table, signs_of_file=signs)

        return {symbol: partial(read, its) for symbol, its in rows.items()}

    def _readers_one_by_one(
        self, sheets: dict[str, Sheet], reading: FileConfig, notes: tuple[str, ...] = ()
    ) -> dict[str, Callable[[], Table]]:
        """As ``readers``, for symbols whose dates are read separately."""
        signs = cache(lambda: proved_signs(texts_of(self.frame)))

        def read(symbol: str) -> Table:
            table = sheets[symbol].table(symbol, reading)
            return replace(table, signs_of_file=signs, notes=(*notes, *table.notes))

        return {symbol: partial(read, symbol) for symbol in sheets}

    def _refuse_other_prices(self, names: Sequence[str], feature: str) -> None:
        """Refuse columns such as Open_ACME and Volume_ACME, without ``feature``, as those of symbols of such names.

        Only if they are many: among all pairs of currencies, a few have a currency that is called Open or High.
        """
        others = [
            text
            for text in names
            if any(plain_name(part) in PRICE_NAMES and len(part) > 1 for part, _ in parts_of_name(text))
        ]
        if len(others) > 1 and 2 * len(others) >= len(names) - 1:
            raise DataError(
                f"{self.name} has columns such as {others[0]}, but none of {feature} with the name of a symbol; choose "
                "another `feature`"
            )

    def _nameless(self) -> NoReturn:
        raise DataError(
            f"{self.name} does not name the symbols of its prices; give one with `symbol`, or name the column of "
            "symbols with `symbol_column`"
        )


def table_of_rows(
    stamps: Stamps, columns: pd.DataFrame, origin: str, *, decimal: Sign | None = None
) -> Table:
    """The table of rows with these dates, which are days where all times are midnight.

    Args:
        stamps: the dates or times, shape (n,).
        columns: n rows.
        origin: name of the table's origin, for messages.
        decimal: the decimal sign of numbers in text; None to find it.
    """
    whole = (stamps.days == stamps.local).all()
    return Table(
        dates=stamps.days if whole else stamps.local,
        columns=columns.reset_index(drop=True),
        as_of=dt.datetime.now(dt.UTC),
        origin=origin,
        offsets=None if whole else stamps.offsets,
        decimal=decimal,
    )


def read_file(path: Path, symbol: str, reading: FileConfig | None = None) -> Table:
    """Read the prices of ``symbol`` from a file; its content decides what kind of file it is.

    Raises:
        DataError: when the file is missing, empty, of another kind, damaged, or can be read in more than one way.
    """
    reading = reading or parse_settings(FileConfig, {})
    return open_file(path, reading).table(symbol, reading)


def open_file(path: Path, reading: FileConfig) -> Sheet:
    """The cells of a file; errors as ``read_file``."""
    if not path.exists():
        raise DataError(f"no file at {path}; check the path given as `source`")
    if not path.is_file():
        raise DataError(f"{path} is not a file; give a .csv, .parquet or .xlsx file as `source`")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check its permissions") from None
    return open_sheet(content, str(path), reading)


def open_sheet(content: bytes, name: str, reading: FileConfig) -> Sheet:
    """The cells of the content of a file called ``name``; errors as ``read_file``."""
    if not content:
        raise DataError(f"{name} is empty; give a file with a date column and prices")
    if name.lower().endswith(".xlsx") or (content.startswith(b"PK\x03\x04") and b"xl/" in content):
        frame, header = _read_excel(content, name)
        return Sheet(frame, header, [line[0] for line in header], name)
    content = unpacked(content, name)
    if content.startswith(b"PAR1") or name.lower().endswith(".parquet"):
        return sheet_of_frame(_read_parquet(content, name), name)
    layout = read_layout(
        content,
        name,
        encoding=reading.encoding,
        delimiter=reading.delimiter,
        any_dates=reading.date_format is not None,
    )
    labels = [line[0] for line in layout.header]
    return Sheet(layout.frame, layout.header, labels, name, tuple(layout.others))


def sheet_of_frame(frame: pd.DataFrame, name: str) -> Sheet:
    """The cells of a frame whose columns have types; its index may hold dates and symbols."""
    from_index = 0
    if frame.index.names != [None] or not isinstance(frame.index, pd.RangeIndex):
        dated = isinstance(frame.index, pd.DatetimeIndex | pd.PeriodIndex)
        if dated and frame.index.name is None:
            frame = frame.rename_axis(index="Date")
        from_index = frame.index.nlevels
        frame = frame.reset_index(allow_duplicates=True)
    lines = [frame.columns.get_level_values(at).fillna("") for at in range(frame.columns.nlevels)]
    header = [[str(cell).strip() for cell in line] for line in lines]
    labels = [str(label or "") for label in frame.columns.names]
    if len(header) > 1:
        # The names of the index get a line of their own, as in a text file: in a line of symbols, they would be some.
        rest = [""] * (frame.shape[1] - from_index)
        header = [[""] * from_index + line[from_index:] for line in header] + [header[0][:from_index] + rest]
        labels.append("")
    return Sheet(frame.set_axis(range(frame.shape[1]), axis=1), header, labels, name)


def _read_parquet(content: bytes, name: str) -> pd.DataFrame:
    try:
        return pd.read_parquet(io.BytesIO(content))
    except Exception as error:  # pyarrow's decoders can raise anything
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"{name} is not a usable Parquet file ({reason}); write the file again") from None


def _read_excel(content: bytes, name: str) -> tuple[pd.DataFrame, list[list[str]]]:
    """The rows of the only sheet, and the lines of their header."""
    try:
        import openpyxl
    except ModuleNotFoundError:
        raise DataError(
            f"{name} is an Excel file, which needs openpyxl; install pareto-price-forecaster[excel], or save it as CSV"
        ) from None
    try:
        book = openpyxl.load_workbook(io.BytesIO(content), read_only=True, data_only=True)
    except Exception as error:  # openpyxl raises what its zip and XML readers raise
        raise DataError(f"{name} is not a usable Excel file ({error}); save it again") from None
    if len(book.worksheets) != 1:
        listed = ", ".join(sheet.title for sheet in book.worksheets)
        raise DataError(
            f"{name} has {len(book.worksheets)} sheets ({listed}); keep the sheet with prices alone"
        )
    sheet = book.worksheets[0].iter_rows(values_only=True)
    rows = [list(row) for row in sheet if any(cell is not None for cell in row)]
    first = next((at for at, row in enumerate(rows) if _is_excel_data(row)), None)
    if not first:
        raise DataError(f"{name} has no table; give a sheet with a header and one row for each date")
    header: list[list[str]] = []
    for row in reversed(rows[max(0, first - MOST_HEADERS) : first]):
        if header and sum(cell is not None for cell in row) < 2:
            break  # a title
        header.insert(0, ["" if cell is None else shown(cell).strip() for cell in row])
    body = [row for row in rows[first:] if sum(cell is not None for cell in row) > 1]
    return pd.DataFrame(body).infer_objects(), header


def _is_excel_data(row: list[Any]) -> bool:
    """Whether a row has a date, as a date or as text, and so belongs to the body."""
    filled = [cell for cell in row if cell is not None]
    return len(filled) > 1 and any(isinstance(cell, dt.date) or is_date_text(str(cell)) for cell in filled)


def _split_dates(frame: pd.DataFrame, name: str, reading: FileConfig) -> tuple[Stamps, pd.DataFrame]:
    """The dates of the rows, with their times where a column of times is beside them; and the other columns."""
    names = [str(column) for column in frame.columns]
    place = _date_place(frame, names, name, reading)
    column = frame.iloc[:, place]
    used = {place}
    time_place = next(
        (at for at, text in enumerate(names) if at != place and _bare(text) in TIME_NAMES), None
    )
    if time_place is not None and (joined := join_time(column, frame.iloc[:, time_place])) is not None:
        column = joined
        used.add(time_place)

    def where(row: int) -> str:
        return f"{name}, column {names[place]}, row {row + 1},"

    stamps = parse_dates(
        column, where, date_format=reading.date_format, evidence=lambda: _evidence(frame, used)
    )
    return stamps, frame.iloc[:, [at for at in range(len(names)) if at not in used]]


def _date_place(frame: pd.DataFrame, names: list[str], name: str, reading: FileConfig) -> int:
    """The column of dates: the given one, else the likeliest name with cells that can be dates, else by its cells."""
    if reading.date_column is not None:
        return find_column(names, reading.date_column, name, "date_column")
    head = frame.head(50)
    places = [at for at, text in enumerate(names) if _bare(text) in DATE_NAMES]
    named = sorted(places, key=lambda at: DATE_NAMES.index(_bare(names[at])))
    usable = [at for at in named if not _has_weekdays(head.iloc[:, at])]
    for at in usable:
        if is_date_like(head.iloc[:, at]) or _is_numeric(head.iloc[:, at]):
            return at
    unnamed = [at for at in range(len(names)) if at not in named and is_date_like(head.iloc[:, at])]
    if len(unnamed) == 1:
        return unnamed[0]
    if usable:
        return usable[0]
    listed = ", ".join(text for text in names if text)
    if unnamed:
        listed = ", ".join(names[at] for at in unnamed)
        raise DataError(f"{name} has several columns of dates ({listed}); choose one as `date_column`")
    raise DataError(f"{name} has no date column (columns: {listed}); name it with `date_column`")


def _bare(text: str) -> str:
    return plain_name(text).strip("<>")


def _has_weekdays(column: pd.Series[Any]) -> bool:
    text = text_of(column)
    return text is not None and all(
        cell[:3].lower() in WEEKDAYS and cell.isalpha() for cell in text.to_pylist()
    )


def _is_numeric(column: pd.Series[Any]) -> bool:
    text = text_of(column)
    return text is not None and all(
        cell.lstrip("-").replace(".", "", 1).isdigit() for cell in text.to_pylist()
    )


def _weekdays_agree(numbers: NDArray[np.int64], days: Days) -> bool:
    return bool((weekday(days) == numbers).all())


def _days_agree(others: Days, days: Days) -> bool:
    # A column in another zone may be a day ahead or behind.
    return bool((np.abs((days - others).astype(np.int64)) <= 1).all())


def _evidence(frame: pd.DataFrame, used: set[int]) -> list[Evidence]:
    """What the other columns say about the dates: names of weekdays, and other columns of dates."""
    found: list[Evidence] = []
    for at in range(frame.shape[1]):
        if at in used:
            continue
        column = frame.iloc[:, at]
        text = text_of(column)
        if text is not None and _has_weekdays(column.head(50)):
            cells = [cell[:3].lower() for cell in text.to_pylist()]
            numbers = np.array([WEEKDAYS.index(cell) if cell in WEEKDAYS else -1 for cell in cells])
            found.append(partial(_weekdays_agree, numbers))
        elif _bare(str(frame.columns[at])) in DATE_NAMES:
            try:
                found.append(partial(_days_agree, parse_dates(column, str).days))
            except DataError:
                continue
    return found
