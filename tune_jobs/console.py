"""How commands print: text as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def say(console: Console, text: str, style: str | None = None) -> None:
    """Print text as it is: no markup, no highlighting, and no line breaks added."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
