"""A window of numbers without dates, from text or JSON, by the rules of price files."""

from __future__ import annotations

import json
import math
import re
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from forecast.config import FileConfig
from forecast.errors import UsageError
from forecast.prices.layout import NUMBER_LIKE, decoded, unpacked
from forecast.prices.numbers import EMPTY, parse_numbers

NAME = re.compile(r"[^\W\d][^\d]*")
"""A column's name rather than a number."""


def read_values(content: bytes, name: str, reading: FileConfig) -> list[Any] | None:
    """Numbers without dates: JSON (a list, or ``{"values": [...]}``), or text with a number a line.

    Numbers on one line are separated by spaces, semicolons, or commas. They are read by the rules of price files.
    For a model of several columns, JSON may hold rows of numbers.

    Returns:
        The numbers; None for a table, which has a header.

    Raises:
        UsageError: when the file is empty, or something in it is not a number.
        DataError: when nothing proves the decimal sign of the numbers.
    """
    if content.startswith(b"PAR1") or content.startswith(b"PK\x03\x04"):
        return None
    text = decoded(unpacked(content, name), name, reading.encoding).strip()
    if not text:
        raise UsageError(f"`file` {name} is empty; give the window's values, oldest first")
    if text[0] in "[{":
        return _json_values(text, name)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    items = lines if len(lines) > 1 else _split_line(lines[0], name)
    if len(items) > 1 and re.search(r"[,;\t|]", items[0]) and not NUMBER_LIKE.fullmatch(items[0]):
        return None
    if len(items) > 1 and NAME.fullmatch(items[0]) and items[0].lower() not in EMPTY:
        items = items[1:]  # the name of the only column
    several = next((item for item in items if item.count(",") > 1 or "\t" in item), None)
    if several is not None:
        raise UsageError(
            f"`file` {name} has {several!r}, which can be one number or several; write one number a line"
        )
    numbers = parse_numbers(
        pa.chunked_array([items]), lambda row: f"{name}, value {row + 1},", decimal=reading.decimal
    )
    if np.isnan(numbers).any():
        row = int(np.flatnonzero(np.isnan(numbers))[0])
        raise UsageError(
            f"`file` {name}: value {row + 1} is {items[row]!r}, not a number; give numbers alone"
        )
    values: list[Any] = numbers.tolist()
    return values


def _split_line(line: str, name: str) -> list[str]:
    """The numbers of one line, which spaces, semicolons or commas separate.

    Raises:
        UsageError: when its commas or spaces can as well stand between thousands or before decimals.
    """
    for sign in (";", ", "):
        if sign in line:
            return [part.strip() for part in line.split(sign) if part.strip()]
    parts = line.split()
    if len(parts) > 1 and not any("," in part for part in parts) and not _are_groups(parts):
        return parts
    parts = line.split(",")
    if len(parts) < 2 or (any("." in part for part in parts) and not _are_groups(parts) and " " not in line):
        return parts
    raise UsageError(
        f"`file` {name} has {line[:40]!r}, which can be read in several ways; write one number a line"
    )


def _are_groups(parts: list[str]) -> bool:
    """Whether parts can be groups of thousands: three digits after one to three of another size."""
    pairs = [
        (before, after)
        for before, after in pairwise(parts)
        if re.fullmatch(r"[+-]?\d{1,3}", before) and re.fullmatch(r"\d{3}(?:[.,]\d+)?", after)
    ]
    return any(
        not 0.2 < float(before) / max(float(after.replace(",", ".")), 1e-9) < 5 for before, after in pairs
    )


def _json_values(text: str, name: str) -> list[Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"`file` {name} is not JSON ({error}); give a list of numbers") from None
    found = content.get("values") if isinstance(content, dict) else content
    if not isinstance(found, list):
        raise UsageError(f'`file` {name} has no list of numbers; give [...] or {{"values": [...]}}')
    values: list[Any] = []
    for index, item in enumerate(found):
        try:
            values.append([_number(value) for value in item] if isinstance(item, list) else _number(item))
        except (TypeError, OverflowError):
            raise UsageError(
                f"`file` {name}: item {index + 1} is {item!r}, not a finite number; write numbers without quotes"
            ) from None
    return values


def _number(item: Any) -> float:
    if isinstance(item, bool) or not isinstance(item, int | float):
        raise TypeError
    number = float(item)
    if not math.isfinite(number):
        raise OverflowError
    return number
