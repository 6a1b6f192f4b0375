"""Helpers for names: compare them, and read lists of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

MOST_NAMES = 10
"""Largest number of names that a message lists."""


def plain_name(name: str) -> str:
    """Reduce a column's name to its form for comparison: without case, spaces and underscores."""
    return name.lower().replace(" ", "").replace("_", "")


def split_names(value: Any) -> Any:
    """Split names at commas, in a text or in each item of a list; return any other value unchanged."""
    parts = [value] if isinstance(value, str) else value
    if not isinstance(parts, list | tuple):
        return value
    names = [name.strip() for part in parts for name in str(part).split(",")]
    return [name for name in names if name]


def listed(names: Iterable[str]) -> str:
    """Names for a message: the first of them, and how many more there are."""
    every = list(names)
    more = f" and {len(every) - MOST_NAMES} more" if len(every) > MOST_NAMES else ""
    return ", ".join(every[:MOST_NAMES]) + more
