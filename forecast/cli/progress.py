"""A progress bar for long work."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn


@contextmanager
def live_progress(unit: str, total: int, *, quiet: bool) -> Iterator[Callable[[str], None]]:
    """Show a bar on standard error until the work is done; show nothing if that is not a terminal.

    Args:
        unit: unit of the work, in the plural: ``epochs``.
        total: number of units.
        quiet: show nothing.

    Yields:
        A function to call after each unit, with a remark.
    """
    bar = Progress(
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn(unit + "{task.description}"),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        disable=quiet or not sys.stderr.isatty(),
    )
    task = bar.add_task("", total=total)
    with bar:
        yield lambda remark: bar.update(task, advance=1, description=f", {remark}" if remark else "")
