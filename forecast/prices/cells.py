"""Columns of cells as Arrow arrays, whose kernels compare and convert a million cells at a time."""

from __future__ import annotations

from typing import Any, TypeAlias

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

Cells: TypeAlias = Any
"""A ``pyarrow.ChunkedArray``; pyarrow has no type hints."""


def cells_of(column: pd.Series[Any]) -> Cells:
    """The cells of a column; missing values are null, and mixed types become text."""
    try:
        cells = pa.array(column, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        cells = pa.array(
            [None if missing else shown(cell) for cell, missing in zip(column, column.isna(), strict=True)]
        )
    if not isinstance(cells, pa.ChunkedArray):
        cells = pa.chunked_array([cells])
    if pa.types.is_dictionary(cells.type):
        cells = pc.cast(cells, cells.type.value_type)
    return pc.cast(cells, pa.float32()) if pa.types.is_float16(cells.type) else cells


def shown(cell: Any) -> str:
    """The text of a cell; Excel turns the ticker TRUE into a truth value, and shows it as TRUE."""
    return str(cell).upper() if isinstance(cell, bool) else str(cell)


def is_text(cells: Cells) -> bool:
    """Whether the cells are text."""
    return bool(pa.types.is_string(cells.type) or pa.types.is_large_string(cells.type))


def text_of(column: pd.Series[Any]) -> Cells | None:
    """The cells as text without spaces around it, empty for null; None for cells that are no text, number or date."""
    cells = cells_of(column)
    if pa.types.is_boolean(cells.type) or pa.types.is_null(cells.type):
        return None
    try:
        if pa.types.is_floating(cells.type):
            cells = pc.cast(cells, pa.int64())  # whole numbers alone; others keep their decimals
    except pa.ArrowInvalid:
        pass
    try:
        text = pc.cast(cells, pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None
    return pc.utf8_trim_whitespace(pc.fill_null(text, ""))


def all_true(mask: Cells) -> bool:
    """Whether the mask has no false value."""
    return bool(pc.all(mask, min_count=0).as_py())


def any_true(mask: Cells) -> bool:
    """Whether the mask has a true value."""
    return bool(pc.any(mask, min_count=0).as_py())


def first_true(mask: Cells) -> int | None:
    """The first row where the mask is true."""
    row = pc.index(mask, True).as_py()
    return None if row < 0 else int(row)


def matches(text: Cells, pattern: str) -> Cells:
    """Which cells match a regular expression of RE2's syntax; null where a cell is null."""
    return pc.match_substring_regex(text, pattern)
