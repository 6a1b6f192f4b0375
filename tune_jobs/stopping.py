"""End a search before its last trial: on signals, at the time budget, or on failures that make continuing useless."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

from ray import tune

from forecast.job_files import TIME_BUDGET


@dataclass
class Stop:
    """Whether and why the search should end before its last trial; Tune checks it after every event."""

    deadline: float | None = None
    reason: str | None = None
    failure: Exception | None = None
    """An error that makes continuing useless: a full disk, a database that cannot be written."""

    def now(self) -> bool:
        """Return whether to stop; this also checks the time budget."""
        if self.reason is None and self.deadline is not None and time.monotonic() >= self.deadline:
            self.reason = TIME_BUDGET
        return self.reason is not None


class SearchStopper(tune.Stopper):
    """Lets Tune's loop see a ``Stop``."""

    def __init__(self, stop: Stop, end_steps: Callable[[], None]) -> None:
        """``end_steps`` ends the steps under way, which Tune would otherwise wait for."""
        self._stop, self._end_steps = stop, end_steps

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Return whether to end one trial: never, the scheduler and the trial decide that."""
        return False

    def stop_all(self) -> bool:
        """Return whether to end the search."""
        if not self._stop.now():
            return False
        # Before Tune releases the trials' actors: after that they cannot be reached.
        self._end_steps()
        return True


@contextlib.contextmanager
def stop_on_signals(stop: Stop) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the search cleanly; a second Ctrl-C ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, _frame: FrameType | None) -> None:
        stop.reason = signal.Signals(number).name
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
