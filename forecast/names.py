"""How names are told apart and taken apart."""

from __future__ import annotations

from typing import Any


def plain_name(name: str) -> str:
    """A column's name without what does not matter in it: case, spaces and underscores."""
    return name.lower().replace(" ", "").replace("_", "")


def split_names(value: Any) -> Any:
    """Names divided by commas, by spaces, or both, as one list; what is neither text nor a list stays as it is."""
    parts = [value] if isinstance(value, str) else value
    if not isinstance(parts, list | tuple):
        return value
    names = [name.strip() for part in parts for name in str(part).split(",")]
    return [name for name in names if name]
