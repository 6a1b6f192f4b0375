"""A signal while a command imports its modules, which takes seconds, ends the process at once, in one line.

Importing this module costs nothing: it comes before every other import.
"""

from __future__ import annotations

import os
import signal
from typing import Any, NoReturn

EXIT_INTERRUPTED = 130
_before: dict[int, Any] = {}
"""The handlers that were set before, by signal."""


def end_at_once() -> None:
    """End at SIGINT and SIGTERM with one line and ``EXIT_INTERRUPTED``, until ``hand_over``.

    A signal that is ignored, as a shell's background jobs ignore SIGINT, stays ignored.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        if number not in _before and signal.getsignal(number) != signal.SIG_IGN:
            _before[number] = signal.signal(number, _end)


def hand_over() -> None:
    """Set the handlers again that were set before ``end_at_once``."""
    while _before:
        signal.signal(*_before.popitem())


def _end(*_: object) -> NoReturn:
    os.write(2, b"interrupted\n")
    os._exit(EXIT_INTERRUPTED)
