"""The columns and the rows of one symbol, from a table of one symbol or several."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc
from numpy.typing import NDArray

from forecast.errors import DataError
from forecast.names import listed, plain_name
from forecast.prices.cells import Cells, all_true, any_true, cells_of, is_text, matches, text_of
from forecast.prices.dates import is_date_like
from forecast.prices.layout import NUMBER_LIKE
from forecast.prices.numbers import EMPTY

LABELS = ("ticker", "tickers", "symbol", "symbols")
"""Names of the level of a header that holds symbols."""
COLUMN_NAMES = (
    *LABELS, "tic", "uniqueid", "name", "code", "instrument", "security", "company", "asset", "pair", "index", "item",
    "ativo", "papel", "isin", "cusip", "sedol", "figi", "ric", "permno",
)  # fmt: skip
"""Columns that hold each row's symbol, whatever it is, in ``plain_name``'s form and without brackets."""
SEPARATORS = ("_", ".", "-", "/", "|", ":", " ")
"""Signs between a column's name and its symbol, as in ``Close_AAPL``."""
PAIR = re.compile(r"""^\(\s*['"](.*?)['"],\s*['"](.*?)['"]\s*\)$""")
"""A pair that was written as a name, such as ``('Close', 'AAPL')``."""
OTHER_PRICE = re.compile(
    r"(?:^|[^A-Za-z])(?:adj(?:usted)?|prev(?:ious)?)[.\s]*$|^(?:adj(?:usted)?|prev(?:ious)?)\.?[_\s]",
    re.IGNORECASE,
)
"""What is left of another price's name, as of ``AAPL_Adj Close`` or ``Close_Prev_AAPL`` without ``Close``."""
FRACTION = r"^[+-]?\d*[.,]\d+$"
"""A number that is a price rather than a symbol."""
SAMPLE = 50
"""Number of cells that show whether a column holds numbers."""
TICKER = re.compile(r"[A-Z][A-Z0-9.^=/-]{0,11}")
"""A ticker, in a column that no name marks as one of symbols."""


def columns_of_symbol(
    header: Sequence[Sequence[str]], labels: Sequence[str], symbol: str, name: str
) -> tuple[list[int], list[str], str | None]:
    """The columns of ``symbol``: their places, their names, and a note where the table names another symbol.

    Args:
        header: the lines of the header, each with one name per column.
        labels: the name of each line, such as ``Ticker``; empty where it has none.
        symbol: the symbol that is asked for.
        name: the table's name, for messages.

    Raises:
        DataError: when the header names several symbols, but not this one.
    """
    if len(header) == 1:
        return list(range(len(header[0]))), [_without_symbol(text, symbol) for text in header[0]], None
    header = _unmerged(header)
    level = next((at for at, line in enumerate(header) if symbol in line), None)
    chosen, note = symbol, None
    if level is None:
        level = next((at for at, label in enumerate(labels) if plain_name(label) in LABELS), None)
        if level is not None:
            there = [text for text in dict.fromkeys(header[level]) if text and text != labels[level]]
            _require(len(there) == 1, there, symbol, name)
            chosen, note = there[0], other_symbol(name, there[0], symbol)
    places, names, last = [], [], ""
    for place, column in enumerate(zip(*header, strict=True)):
        if level is not None and column[level]:
            last = "" if column[level] == labels[level] else column[level]
        # An empty cell belongs to the symbol before it.
        if level is None or last in (chosen, ""):
            parts = [text for at, text in enumerate(column) if text and at != level]
            places.append(place)
            names.append(parts[-1] if parts else "")
    return places, names, note


def _unmerged(header: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """The header with each merged cell repeated above its columns: an empty cell above a fuller line is part of one."""
    lines: list[Sequence[str]] = []
    fullest = 0
    for line in reversed(header):
        filled = sum(map(bool, line))
        if filled < fullest:
            last = ""
            line = [last := cell or last for cell in line]
        fullest = max(fullest, filled)
        lines.insert(0, line)
    return lines


def _without_symbol(name: str, symbol: str) -> str:
    """A column's name without the symbol at its start or its end."""
    pair = PAIR.match(name)
    if pair and symbol in pair.groups():
        return pair[1] if pair[2] == symbol else pair[2]
    for sign in SEPARATORS:
        if name.endswith(sign + symbol):
            return name.removesuffix(sign + symbol)
        if name.startswith(symbol + sign):
            return name.removeprefix(symbol + sign)
    return name


def rows_of_symbol(
    frame: pd.DataFrame,
    symbol: str,
    symbol_column: str | None,
    name: str,
    dates: Callable[[], Cells | None],
) -> tuple[pd.DataFrame, str | None]:
    """The rows of ``symbol``, and a note where the table names another symbol.

    The symbol's column is ``symbol_column``, else the column of text that holds ``symbol``, whatever its name.

    Args:
        frame: the table.
        symbol: the symbol that is asked for.
        symbol_column: the name of the column of symbols; None to find it.
        name: the table's name, for messages.
        dates: returns the dates as text. They tell several symbols, which share dates, from notes such as a grade A.

    Raises:
        DataError: when there is no such column, when the table holds other symbols only, when two columns disagree, or
            when a column can be one of notes.
    """
    texts = _texts(frame)
    if symbol_column is not None:
        place = find_column([str(column) for column in frame.columns], symbol_column, name, "symbol_column")
        cells = texts.get(place, text_of(frame.iloc[:, place]))
        if cells is None:
            raise DataError(
                f"{name} has no symbols in column {symbol_column}; choose another `symbol_column`"
            )
        there = pc.unique(cells).to_pylist()
        _require(symbol in there, there, symbol, name)
        require_one_spelling(there, symbol, name)
        return frame[pc.equal(cells, symbol).to_numpy()], None
    rows = _rows_that_hold(frame, texts, symbol, name, dates)
    if rows is not None:
        return frame[rows], None
    return frame, _note_of_another(frame, texts, symbol, name)


def _rows_that_hold(
    frame: pd.DataFrame,
    texts: dict[int, Cells],
    symbol: str,
    name: str,
    dates: Callable[[], Cells | None],
) -> NDArray[np.bool_] | None:
    """Which rows have the symbol in a column of text, shape (n,); None when no column has it."""
    masks = {
        column: pc.equal(cells, symbol).to_numpy()
        for column, cells in texts.items()
        if pc.index(cells, symbol).as_py() >= 0
        # A ticker such as NA is a missing cell anywhere else.
        and (symbol.lower() not in EMPTY or _is_of_symbols(frame, column))
    }
    if not masks:
        return None
    for column in masks:
        require_one_spelling(pc.unique(texts[column]).to_pylist(), symbol, name)
    first: NDArray[np.bool_]
    first, *others = masks.values()
    if any((first != other).any() for other in others):
        listed = ", ".join(str(frame.columns[column]) for column in masks)
        raise DataError(
            f"{name} has {symbol} in several columns ({listed}), in different rows; choose one as `symbol_column`"
        )
    if not first.all() and not any(_is_of_symbols(frame, column) for column in masks):
        days = dates()
        if days is not None and not any_true(pc.is_in(days.filter(~first), pc.unique(days.filter(first)))):
            noted = str(frame.columns[next(iter(masks))])
            raise DataError(
                f"{name} has {symbol} in some rows of column {noted}, on dates that no other row has; if they are "
                f"its symbols, add `symbol_column={noted}`, otherwise ask for another `symbol`"
            )
    return first


def _note_of_another(frame: pd.DataFrame, texts: dict[int, Cells], symbol: str, name: str) -> str | None:
    """A note where the table is of one other symbol; refuses a table of several others."""
    for column, cells in texts.items():
        named = _is_of_symbols(frame, column)
        if not named and not all(TICKER.fullmatch(cell) for cell in cells[:SAMPLE].to_pylist() if cell):
            continue  # most columns of text are dates, of which a long table has as many as rows
        there = [text for text in pc.unique(cells).to_pylist() if text]
        if named:
            if is_date_like(frame.iloc[:, column]) or (
                len(there) == len(frame) and all(map(str.isdigit, there))
            ):
                continue  # an index of dates, or numbers of rows
            _require(len(there) < 2, there, symbol, name)
            if there:
                return other_symbol(name, there[0], symbol)
        else:
            _refuse_blocks(cells, there, str(frame.columns[column]), name)
    return None


def refuse_blocks(frame: pd.DataFrame, name: str) -> None:
    """Refuse a table whose rows can be those of several symbols in turn, by a column without a telling name.

    Raises:
        DataError: when there is such a column.
    """
    for column, cells in _texts(frame).items():
        if all(TICKER.fullmatch(cell) for cell in cells[:SAMPLE].to_pylist() if cell):
            there = [text for text in pc.unique(cells).to_pylist() if text]
            _refuse_blocks(cells, there, str(frame.columns[column]), name)


def _refuse_blocks(cells: Cells, there: Sequence[str], column: str, name: str) -> None:
    if len(there) > 1 and all(map(TICKER.fullmatch, there)) and _in_blocks(cells, len(there)):
        raise DataError(
            f"{name} has {listed(there)} in column {column}, one after the other; if they are symbols, add "
            f"`symbol_column={column}`, otherwise delete the column"
        )


def _in_blocks(cells: Cells, distinct: int) -> bool:
    """Whether equal cells follow each other, as the histories of several symbols do; single rows are no block."""
    codes = cells.combine_chunks().dictionary_encode().indices.to_numpy()
    starts = np.flatnonzero(np.append(True, codes[1:] != codes[:-1]))
    lengths = np.diff(np.append(starts, len(codes)))
    return len(starts) == distinct and bool((lengths > 1).all())


def symbol_place(frame: pd.DataFrame, symbol_column: str | None, name: str) -> int | None:
    """The place of the column that names each row's symbol: ``symbol_column``, or one with such a name; else None.

    Raises:
        DataError: when there is no column ``symbol_column``, or several columns disagree.
    """
    if symbol_column is not None:
        return find_column([str(column) for column in frame.columns], symbol_column, name, "symbol_column")
    texts = _texts(frame)
    places = [
        place
        for place, cells in texts.items()
        if _is_of_symbols(frame, place)
        and not is_date_like(frame.iloc[:, place])
        and not _holds_prices(cells)
        and len(pc.unique(cells)) < max(2, len(frame))  # as many as rows are numbers of rows
    ]
    # A company's name beside its ticker splits the rows alike.
    counts = {place: len(pc.unique(texts[place])) for place in places}
    if len(set(counts.values())) > 1:
        columns = ", ".join(str(frame.columns[place]) for place in places)
        raise DataError(f"{name} has several columns of symbols ({columns}); choose one as `symbol_column`")
    return min(places, key=lambda place: COLUMN_NAMES.index(_bare(frame, place)), default=None)


def _holds_prices(cells: Cells) -> bool:
    """Whether cells are numbers, some with decimals: those of a ticker such as CODE, which has a column of its own."""
    return any_true(matches(cells, FRACTION)) and all_true(matches(cells, rf"^$|^[+-]?\d+$|{FRACTION}"))


def symbols_of_levels(header: Sequence[Sequence[str]], labels: Sequence[str], feature: str) -> list[str]:
    """The symbols in a header of several lines: in a line with such a label, else in the one without ``feature``."""
    level = next((at for at, label in enumerate(labels) if plain_name(label) in LABELS), None)
    if level is None:
        # Of three lines, one may hold the name of the index alone.
        lines = [at for at, line in enumerate(header) if len(header) == 2 or sum(map(bool, line)) > 1]
        without = [at for at in lines if plain_name(feature) not in map(plain_name, header[at])]
        if len(without) != 1 or len(lines) != 2:
            return []
        level = without[0]
    return [text for text in dict.fromkeys(header[level]) if text and text != labels[level]]


def symbols_of_names(names: Sequence[str], feature: str) -> list[str]:
    """The symbols that column names hold beside ``feature``, as in ``Close_AAPL`` or ``('Close', 'AAPL')``."""
    wanted = plain_name(feature)
    found = [
        other
        for text in names
        for part, other in parts_of_name(text)
        # Close_ is no other way to write Close.
        if plain_name(part) == wanted and part[0] not in SEPARATORS and part[-1] not in SEPARATORS
    ]
    return [symbol for symbol in dict.fromkeys(found) if symbol and not OTHER_PRICE.search(symbol)]


def parts_of_name(text: str) -> list[tuple[str, str]]:
    """Each part of a column's name that can be a price or a symbol, and what is left beside it."""
    if pair := PAIR.match(text):
        first, second = pair.groups()
        return [(first, second), (second, first)]
    splits = [(text[:at], text[at + 1 :]) for at, sign in enumerate(text) if sign in SEPARATORS]
    return [parts for before, after in splits for parts in ((before, after), (after, before))]


def find_column(names: Sequence[str], wanted: str, name: str, parameter: str) -> int:
    """The place of a column; case, spaces and underscores do not matter where no name is exactly ``wanted``.

    Raises:
        DataError: when no column or more than one has that name; ``parameter`` is the option that chooses one.
    """
    places = [at for at, text in enumerate(names) if text == wanted]
    places = places or [at for at, text in enumerate(names) if plain_name(text) == plain_name(wanted)]
    if len(places) == 1:
        return places[0]
    listed = ", ".join(text for text in names if text)
    if places:
        raise DataError(f"{name} has {len(places)} columns called {wanted!r}; give each column its own name")
    kind = "feature" if parameter == "feature" else "column"
    raise DataError(f"{name} has no {kind} {wanted!r}; choose one of: {listed}, with `{parameter}`")


def require_one_spelling(there: Iterable[str], symbol: str, name: str) -> None:
    """Refuse a symbol that is there in another case too: its rows may be divided between the two."""
    others = [text for text in there if text != symbol and text.casefold() == symbol.casefold()]
    if others:
        raise DataError(f"{name} has {symbol} and {listed(others)}; write the symbol in one way")


def columns_by_symbol(names: Sequence[str], symbols: Iterable[str]) -> dict[str, tuple[list[int], list[str]]]:
    """The columns of each symbol and those of none, by the names in one line: places, and names without the symbol."""
    owned: dict[str | None, list[int]] = {symbol: [] for symbol in (None, *symbols)}
    for place, name in enumerate(names):
        # Of B and BRK.B, the longer one is meant by Close_BRK.B.
        parts = [part for part, _ in parts_of_name(name) if part in owned]
        owned[max(parts, key=len, default=None)].append(place)
    shared = owned.pop(None)
    return {
        symbol: (places, [_without_symbol(names[place], symbol) for place in places])
        for symbol, own in owned.items()
        if symbol is not None and (places := sorted(shared + own))
    }


def other_symbol(name: str, there: str, symbol: str) -> str:
    """A line that says that a table is of another symbol than the one asked for."""
    return f"{name} holds {there} alone; its prices are read as those of {symbol}, the `symbol` that was asked for"


def _texts(frame: pd.DataFrame) -> dict[int, Any]:
    """The columns of text, by place; and those of symbols, which may be numbers."""
    found = {}
    for at in range(frame.shape[1]):
        series = frame.iloc[:, at]
        if (
            _is_of_symbols(frame, at)
            or isinstance(series.dtype, pd.CategoricalDtype)
            or _is_text_without_numbers(series)
        ):
            cells = text_of(series)
            if cells is not None:
                found[at] = cells
    return found


def _is_of_symbols(frame: pd.DataFrame, column: int) -> bool:
    """Whether a column's name is one of symbols."""
    return _bare(frame, column) in COLUMN_NAMES


def _bare(frame: pd.DataFrame, column: int) -> str:
    return plain_name(str(frame.columns[column])).strip("<>")


def _is_text_without_numbers(column: pd.Series[Any]) -> bool:
    cells = cells_of(column)
    return is_text(cells) and not all(
        NUMBER_LIKE.fullmatch(cell)
        for cell in pc.utf8_trim_whitespace(cells[:SAMPLE].drop_null()).to_pylist()
        if cell.lower() not in EMPTY
    )


def _require(there_is: bool, there: Sequence[str], symbol: str, name: str) -> None:
    if not there_is:
        raise DataError(f"{name} holds {listed(there)}, not {symbol}; choose one of these with `symbol`")
