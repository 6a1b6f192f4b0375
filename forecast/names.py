"""Helpers for names: compare them, and read lists of them."""

from __future__ import annotations

import difflib
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


def matching(text: str, names: Iterable[str]) -> list[str]:
    """The names that contain a text, in any case: first the text itself, then those that begin with it."""
    wanted = text.casefold()

    def rank(name: str) -> tuple[bool, bool]:
        folded = name.casefold()
        return folded != wanted, not folded.startswith(wanted)

    return sorted((name for name in names if wanted in name.casefold()), key=rank)


def did_you_mean(name: str, known: Iterable[str], most: int = 3) -> str | None:
    """Ask whether one of the known names that are most like a name, in any case, was meant; None where none is.

    Args:
        most: largest number of names to ask about.
    """
    written = {each.upper(): each for each in known}
    close = difflib.get_close_matches(name.upper(), written, n=most)
    return f"did you mean {' or '.join(written[each] for each in close)}?" if close else None
