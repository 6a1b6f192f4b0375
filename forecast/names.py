"""How names are compared, and how lists of names are read."""

from __future__ import annotations

from typing import Any


def plain_name(name: str) -> str:
    """A column's name as it is compared: without case, spaces and underscores."""
    return name.lower().replace(" ", "").replace("_", "")


def split_names(value: Any) -> Any:
    """Names separated by commas, by spaces, or both, as one list; a value that is neither text nor a list, as it is."""
    parts = [value] if isinstance(value, str) else value
    if not isinstance(parts, list | tuple):
        return value
    names = [name.strip() for part in parts for name in str(part).split(",")]
    return [name for name in names if name]
