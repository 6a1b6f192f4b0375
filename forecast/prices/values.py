"""A window of numbers without dates, from text or JSON, by the rules of price files."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa

from forecast.config import FileConfig
from forecast.errors import UsageError
from forecast.prices.layout import NUMBER_LIKE, decoded, unpacked
from forecast.prices.numbers import parse_numbers


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
    items = lines if len(lines) > 1 else _split_line(lines[0])
    if not NUMBER_LIKE.fullmatch(items[0]):
        if (
            len(lines) > 1
            and any(NUMBER_LIKE.fullmatch(item) for item in items[1:])
            and len(items[0].split(",")) < 2
        ):
            items = items[1:]  # the name of the only column
        elif len(lines) > 1:
            return None
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


def _split_line(line: str) -> list[str]:
    """The numbers of one line: a comma between them has no space before, or a space after."""
    for sign in (";", ", ", None, ","):
        parts = [part.strip() for part in line.split(sign)]
        if len(parts) > 1 and (sign is None or all(NUMBER_LIKE.fullmatch(part) for part in parts)):
            return parts
    return [line]


def _json_values(text: str, name: str) -> list[Any]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"`file` {name} is not JSON ({error}); give a list of numbers") from None
    found = content.get("values") if isinstance(content, dict) else content
    if not isinstance(found, list):
        raise UsageError(f'`file` {name} has no list of numbers; give [...] or {{"values": [...]}}')
    values: list[Any] = []
    for index, item in enumerate(found):
        try:
            values.append([_number(value) for value in item] if isinstance(item, list) else _number(item))
        except TypeError:
            raise UsageError(
                f"`file` {name}: item {index + 1} is {item!r}, not a number; write numbers without quotes"
            ) from None
    return values


def _number(item: Any) -> float:
    if isinstance(item, bool) or not isinstance(item, int | float):
        raise TypeError
    return float(item)
