"""The table in a text file: its encoding, delimiter, header and rows, and the lines around it.

Cells stay text. Nothing is guessed by a library: an index from a surplus field, a missing value from ``NA``, or an
encoding. The lines that are not rows of the table are counted and reported.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import lzma
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from numpy.typing import NDArray

from forecast.errors import DataError, UsageError
from forecast.prices.cells import matches
from forecast.prices.dates import is_date_text

DELIMITERS = (",", ";", "\t", "|")
UNPACKING_ERRORS = (
    OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, RuntimeError, ValueError, NotImplementedError,
)  # fmt: skip
HEAD_BYTES = 1 << 20
HEAD_LINES = 200
"""Number of lines in which the delimiter and the header are found."""
SHORTEST_DATE = 5
"""Fewest digits of a date without separators: Excel's serial numbers have five."""
DATE_NUMBER = re.compile(r"(?:\d{5}|\d{8,})(?:[.]\d+)?")
"""Digits that can be a date or a time; a ticker such as 600000 has six."""
MOST_HEADERS = 4
"""Most lines of a header: yfinance writes three."""
COMMENTS = ("#", "//", "%", "--")
"""Starts of lines that are comments."""
NUMBER_LIKE = re.compile(
    r"[A-Za-z]{0,3}[$€£¥₹₿]?\s*[+-]?[.,]?\d[\d.,'\u2019\s]*(?:[eE][+-]?\d+)?\s*[%KMBT$€£¥]?"
)
"""A number, perhaps with a currency or a unit: a cell of a row rather than of a header."""
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Encodings by the bytes that a file in them begins with; longer marks come first where one begins another."""


@dataclass(frozen=True)
class Layout:
    """A table of text cells.

    Attributes:
        frame: one column of text per column of the file, named by its place: 0, 1, ...
        header: the column names, one list per line of the header, all as long as the table is wide.
        others: lines that are not rows of the table, such as comments and footers, as text.
    """

    frame: pd.DataFrame
    header: list[list[str]]
    others: list[str] = field(default_factory=list)


def unpacked(content: bytes, name: str) -> bytes:
    """The content of a file that may be compressed (gzip, bzip2, xz, or a zip archive of one file).

    Raises:
        DataError: when the archive is damaged or holds several files.
    """
    try:
        if content.startswith(b"\x1f\x8b"):
            return gzip.decompress(content)
        if content.startswith(b"BZh"):
            return bz2.decompress(content)
        if content.startswith(b"\xfd7zXZ\x00"):
            return lzma.decompress(content)
        if content.startswith(b"PK\x03\x04"):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                members = [
                    item for item in archive.namelist() if not item.endswith("/") and "__MACOSX" not in item
                ]
                if len(members) != 1:
                    listed = ", ".join(members[:5])
                    raise DataError(
                        f"{name} holds {len(members)} files ({listed}); unpack it and give one of them"
                    )
                return archive.read(members[0])
    except UNPACKING_ERRORS as error:
        raise DataError(f"{name} cannot be unpacked ({error}); download or pack it again") from None
    return content


def decoded(content: bytes, name: str, encoding: str | None) -> str:
    """The text of a file.

    Without ``encoding``, UTF-8 or the encoding of its byte order mark; else Windows-1252, which has the same digits and
    punctuation as the encodings that it may be taken for: only letters in names could differ, and names are compared.

    Raises:
        DataError: when the file is not text.
        UsageError: when there is no such encoding.
    """
    if encoding is not None:
        try:
            return content.decode(encoding).removeprefix("\ufeff")
        except (LookupError, ValueError) as error:
            if isinstance(error, UnicodeDecodeError):
                raise DataError(
                    f"{name} is not text in {encoding} (byte {error.start}); correct `encoding`"
                ) from None
            raise UsageError(
                f"`encoding` {encoding}: no such encoding; use utf-8, utf-16 or cp1252, for example"
            ) from None
    marked = next((known for mark, known in BYTE_ORDER_MARKS.items() if content.startswith(mark)), None)
    for known in (marked,) if marked else ("utf-8", "cp1252"):
        try:
            text = content.decode(known)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text
    raise DataError(f"{name} is not text; save it as CSV in UTF-8, or name its encoding with `encoding`")


def read_layout(
    content: bytes,
    name: str,
    *,
    encoding: str | None = None,
    delimiter: str | None = None,
    any_dates: bool = False,
) -> Layout:
    """Find the table in the content of a text file.

    Args:
        content: bytes of the file.
        name: the file's name, for messages.
        encoding: its encoding; None to find it.
        delimiter: sign between its fields; None to find it.
        any_dates: whether the form of its dates is given, and may be any.

    Raises:
        DataError: when there is no table, it has no header, or a line has another number of fields than the table.
    """
    if content.startswith(b"SQLite format 3"):
        raise DataError(
            f"{name} is an SQLite database; give its address, sqlite:///{name}?table=..., as `source`"
        )
    # Most files are ASCII, of which no copy is needed.
    if encoding is not None or not content.isascii() or b"\0" in content:
        content = decoded(content, name, encoding).encode()
    if b"\n" not in content:
        content = content.replace(b"\r", b"\n")
    opening = content[:HEAD_BYTES].decode(errors="ignore")
    lines = opening.split("\n", HEAD_LINES)[:HEAD_LINES]
    is_page = opening.lstrip().lower().startswith(("<html", "<!doctype", "<head"))
    if is_page or opening.lstrip()[:1] in ("{", "["):
        kind = "a web page" if is_page else "JSON"
        raise DataError(f"{name} is {kind}, not a table of prices; give a CSV, Parquet or Excel file")
    choices = (delimiter,) if delimiter else DELIMITERS
    found = [head for choice in choices if (head := _head(lines, choice, any_dates=any_dates))]
    if not found:
        raise _no_table(lines, choices, name)
    if len(found) > 1:
        found = [
            head for head in found if head.header and head.width - len(head.header[-1]) in (0, 1)
        ] or found
    if len(found) > 1:
        listed = " or ".join(repr(head.delimiter) for head in found)
        raise DataError(f"{name} can be split at {listed}; give the right one as `delimiter`")
    return _body(content, lines, found[0], name)


@dataclass(frozen=True)
class _Head:
    """The first lines of a table: where it begins, and how it is written."""

    delimiter: str
    header: list[list[str]]
    first_line: int
    """Index of the first line with data."""
    width: int
    """Fields of a row."""
    others: list[str]


def _head(lines: list[str], delimiter: str, *, any_dates: bool = False) -> _Head | None:
    """Find the header and the first row of data; None when the lines are not split by this delimiter.

    With ``any_dates``, dates have any form, and a row of data is one with a number.
    """
    rows = []
    reader = csv.reader(lines, delimiter=delimiter)
    start = 0
    try:
        for row in reader:
            rows.append((start, [cell.strip() for cell in row]))
            start = reader.line_num
    except csv.Error:
        return None
    kinds = (_has_date, _has_numbers, *([_has_a_number] if any_dates else []))
    wide = [at for at, (line, row) in enumerate(rows) if len(row) > 1 and not _is_comment(lines[line])]
    first = next((at for is_data in kinds for at in wide if is_data(rows[at][1])), None)
    if first is None:
        return None
    width = Counter(len(row) for _, row in rows[first:] if any(row)).most_common(1)[0][0]
    header: list[list[str]] = []
    at = first
    while at and len(header) < MOST_HEADERS:
        _, row = rows[at - 1]
        if any(row):
            if at - 1 not in wide:
                break
            header.insert(0, row)
        elif header:
            break
        at -= 1
    others = [lines[line].strip() for line, row in rows[:at] if any(row)]
    return _Head(delimiter, header, rows[first][0], width, others) if width > 1 else None


def _is_comment(line: str) -> bool:
    return line.lstrip("\ufeff \t").startswith(COMMENTS)


def _has_date(row: list[str]) -> bool:
    """Whether a row has a date, or digits that can be one beside another number: headers have neither."""
    if any(is_date_text(cell) for cell in row):
        return True
    return any(DATE_NUMBER.fullmatch(cell) for cell in row) and _has_numbers(row)


def _has_a_number(row: list[str]) -> bool:
    return any(NUMBER_LIKE.fullmatch(cell) for cell in row)


def _has_numbers(row: list[str]) -> bool:
    numbers = [cell for cell in row if NUMBER_LIKE.fullmatch(cell)]
    return len(numbers) > 1 and any(len(cell) >= SHORTEST_DATE for cell in numbers)


def _no_table(lines: list[str], choices: Sequence[str], name: str) -> DataError:
    first = next((line for line in lines if line.strip() and not line.lstrip().startswith(COMMENTS)), "")
    names = max((_fields(first, choice) for choice in choices), key=len)
    if len(names) < 2:
        return DataError(
            f"{name} has no table (its first line is {first.strip()[:60]!r}); give a file with a header such as "
            "Date,Close and one row for each date, or name its `delimiter`"
        )
    if sum(1 for line in lines if line.strip()) == 1:
        return DataError(f"{name} has a header but no rows; give a file with prices")
    second = [line.strip() for line in lines if line.strip()][1]
    return DataError(
        f"{name} has no dates in a known form (columns: {', '.join(names)}; next line: {second[:60]!r}); write dates "
        "such as 2024-12-31, or give their form as `date_format`"
    )


def _body(content: bytes, lines: list[str], head: _Head, name: str) -> Layout:
    """Read all rows of the table in the UTF-8 text ``content``."""
    if not head.header:
        raise DataError(
            f"{name} has no header (its first line is {lines[head.first_line].strip()[:60]!r}); add a first line that "
            "names the columns, for example Date,Open,High,Low,Close,Volume"
        )
    start, sign = sum(len(line.encode()) + 1 for line in lines[: head.first_line]), head.delimiter.encode()
    # A quoted field after a space is still quoted.
    if sign + b' "' in content:
        content = content[:start] + re.sub(re.escape(sign) + b' +"', sign + b'"', content[start:])
    body = pa.py_buffer(content).slice(start)
    quoted = b'"' in content
    strays: list[str] = []
    try:
        try:
            table = _cells(body, head, quoted)
        except pa.ArrowInvalid:  # reading is much slower where lines of other lengths are handled
            table = _cells(body, head, quoted, strays)
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{name} cannot be read as a table ({str(error).splitlines()[0]}); correct the file"
        ) from None
    wrong = next((line for line in strays if not _is_outside(_fields(line, head.delimiter), line)), None)
    header, table = _same_width(head, table, name)
    if wrong is not None:
        raise DataError(
            f"{name} has the line {wrong.strip()[:80]!r} with {len(_fields(wrong, head.delimiter))} fields, where the "
            f"table has {head.width}; correct or delete the line"
        )
    cells = table.columns
    if quoted and any(pc.any(pc.match_substring(column, "\n")).as_py() for column in cells):
        raise DataError(f"{name} has a line break within a field; correct its quotes")
    kept, outside, repeats = _rows(cells, header)
    outside += strays
    title = next((line for line in outside if not _is_comment(line)), None)
    if repeats and title is not None:
        raise DataError(
            f"{name} has its header again, and the line {title.strip()[:60]!r}, as a file of several tables has; keep "
            "one table in a file"
        )
    frame = pd.DataFrame(
        {at: pd.Series(column, dtype=pd.ArrowDtype(pa.string())) for at, column in enumerate(cells)}
    )
    return Layout(frame if kept.all() else frame[kept], header, [*head.others, *outside, *repeats])


def _cells(body: pa.Buffer, head: _Head, quoted: bool, strays: list[str] | None = None) -> pa.Table:
    """The rows as text; lines with another number of fields go to ``strays``, and are errors without it."""

    def stray(row: Any) -> str:
        if strays is not None:
            strays.append(row.text)
        return "skip"

    columns = [str(number) for number in range(head.width)]
    return pyarrow.csv.read_csv(
        pa.BufferReader(body),
        pyarrow.csv.ReadOptions(column_names=columns),
        pyarrow.csv.ParseOptions(
            delimiter=head.delimiter,
            newlines_in_values=quoted,
            invalid_row_handler=None if strays is None else stray,
        ),
        pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=False
        ),
    )


def _same_width(head: _Head, table: pa.Table, name: str) -> tuple[list[list[str]], pa.Table]:
    """The header and the table without the empty fields that only one of them has at its end."""
    named = max(
        len(row) - next((n for n, cell in enumerate(reversed(row)) if cell), len(row)) for row in head.header
    )
    surplus = table.columns[named:]
    if named > head.width or any(pc.any(matches(column, r"\S")).as_py() for column in surplus):
        raise DataError(
            f"{name} has {head.width} fields in its rows and {named} names in its header; correct the header, put "
            "numbers with decimal commas in quotes, or name its `delimiter`"
        )
    return [(row + [""] * named)[:named] for row in head.header], table.select(range(named))


def _fields(line: str, delimiter: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]


def _is_outside(fields: list[str], line: str = "") -> bool:
    """Whether fields are those of a comment, a title or a footer: one text, which is neither a date nor a number."""
    filled = [cell for cell in (field.strip() for field in fields) if cell]
    if line.lstrip().startswith(COMMENTS) or not filled:
        return True
    return len(filled) == 1 and not NUMBER_LIKE.fullmatch(filled[0]) and not is_date_text(filled[0])


def _rows(cells: list[Any], header: list[list[str]]) -> tuple[NDArray[np.bool_], list[str], list[str]]:
    """Which rows are rows of the table, shape (n,), and the text of the others: of footers, and of repeated headers."""
    filled = np.sum([pc.not_equal(column, "").to_numpy() for column in cells], axis=0)
    kept: NDArray[np.bool_] = filled > 0
    outside, repeats = [], []
    for row in np.flatnonzero(filled == 1):
        fields = [column[row].as_py() for column in cells]
        if _is_outside(fields):
            kept[row] = False
            outside.append("".join(fields))
    for line in header:
        again = pc.equal(cells[0], line[0])
        for column, name in zip(cells[1:], line[1:], strict=True):
            again = pc.and_(again, pc.equal(column, name))
        for row in np.flatnonzero(again.to_numpy()):
            kept[row] = False
            repeats.append(", ".join(line))
    return kept, outside, repeats
