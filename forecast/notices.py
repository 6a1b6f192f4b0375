"""Lines for a person, apart from the output for machines."""

from __future__ import annotations

import sys
from collections.abc import Callable

Notify = Callable[[str], None]
"""Called with one line for a person."""


def say_on_stderr(line: str) -> None:
    """Print one line on standard error."""
    print(line, file=sys.stderr)


def each_once(notify: Notify | None) -> Notify:
    """A function that says each line once: most lines on a source of many symbols are the same for each symbol."""
    said: set[str] = set()

    def say(line: str) -> None:
        if notify and line not in said:
            said.add(line)
            notify(line)

    return say
