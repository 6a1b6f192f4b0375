"""Many symbols from one source: several requests at a time, at the rate that the source allows."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeAlias

from forecast.errors import DataError, RateLimited, SourceStopped, SourceUnavailable
from forecast.prices.table import Table

FIRST_PAUSE = 5.0
"""Seconds of the first pause once the rate is limited; each later pause is twice as long, until a symbol is fetched."""
JITTER = 0.25
"""Largest random share added to a pause, so that several programs do not continue at the same moment."""
LONGEST_PAUSES = 600.0
"""Total seconds of pauses after which no more symbols are asked for."""
MOST_UNANSWERED = 5
"""Number of symbols in a row without an answer after which no more are asked for."""
PROGRESS_SECONDS = 10.0
"""Seconds between two lines of progress."""

Answer: TypeAlias = Table | DataError
"""What a source says of a symbol: its prices, or why there are none."""


def given(answer: Answer) -> Table:
    """The table of an answer; raises the error of an answer without prices."""
    if isinstance(answer, DataError):
        raise answer
    return answer


def ask_for_many(
    symbols: Sequence[str],
    ask: Callable[[str], Table],
    notify: Callable[[str], None],
    *,
    at_a_time: int = 1,
) -> dict[str, Answer]:
    """Ask a source for each symbol.

    When the source limits the rate, requests pause for as long as it asks, or else for longer each time; then the
    symbol is asked for again. Once the source stops answering, the answer for each remaining symbol is
    ``SourceStopped``.

    Args:
        symbols: the symbols.
        ask: returns the table of one symbol, or raises; called in the caller's thread, or in a thread for each symbol
            where several are asked for at a time.
        notify: called with a line for a person.
        at_a_time: number of requests at a time.
    """
    return _Inquiry(symbols, ask, notify, at_a_time).answers()


class _Inquiry:
    """The state of ``ask_for_many``, which only the thread that called it changes."""

    def __init__(
        self,
        symbols: Sequence[str],
        ask: Callable[[str], Table],
        notify: Callable[[str], None],
        at_a_time: int,
    ) -> None:
        self._ask, self._notify, self._at_a_time = ask, notify, at_a_time
        self._count, self._left, self._under_way = len(symbols), deque(symbols), 0
        self._finished: queue.SimpleQueue[tuple[str, Table | BaseException]] = queue.SimpleQueue()
        self._answers: dict[str, Answer] = {}
        self._unanswered: list[str] = []
        self._limits_in_a_row, self._paused, self._resume = 0, 0.0, 0.0
        self._stopped: SourceStopped | None = None
        self._told = time.monotonic()

    def answers(self) -> dict[str, Answer]:
        while self._left or self._under_way:
            pause = self._resume - time.monotonic()
            if self._left and pause <= 0 and self._under_way < self._at_a_time:
                self._under_way += 1
                self._start(self._left.popleft())
            elif self._under_way:
                symbol, answer = self._finished.get()
                self._under_way -= 1
                self._take(symbol, answer)
            else:
                time.sleep(pause)
        return self._answers

    def _start(self, symbol: str) -> None:
        if self._at_a_time == 1:
            # What a source keeps, such as a connection to SQLite, may belong to this thread alone.
            self._work(symbol)
            return
        # A daemon: an interrupted program does not wait for its requests.
        threading.Thread(target=self._work, args=(symbol,), daemon=True).start()

    def _work(self, symbol: str) -> None:
        try:
            self._finished.put((symbol, self._ask(symbol)))
        except BaseException as error:
            self._finished.put((symbol, error))

    def _take(self, symbol: str, answer: Table | BaseException) -> None:
        if not isinstance(answer, Table | DataError):
            raise answer
        if isinstance(answer, SourceUnavailable):
            self._take_failure(symbol, answer)
            return
        self._answers[symbol] = answer
        self._unanswered.clear()
        self._limits_in_a_row = 0
        if time.monotonic() - self._told >= PROGRESS_SECONDS:
            self._told = time.monotonic()
            self._notify(self._progress())

    def _take_failure(self, symbol: str, error: SourceUnavailable) -> None:
        if self._stopped is not None:
            # The request was under way at the stop. One reason for all such symbols makes one line for the user.
            self._answers[symbol] = self._stopped
        elif isinstance(error, RateLimited):
            self._left.appendleft(symbol)
            self._pause(error)
        else:
            self._answers[symbol] = error
            self._unanswered.append(symbol)
            if len(self._unanswered) >= MOST_UNANSWERED:
                self._stop(error)

    def _pause(self, limit: RateLimited) -> None:
        now = time.monotonic()
        if now < self._resume:
            return  # its request was under way when the pause began
        pause = max(limit.retry_after or 0.0, FIRST_PAUSE * 2**self._limits_in_a_row)
        pause *= 1 + random.uniform(0, JITTER)
        if self._paused + pause > LONGEST_PAUSES:
            self._stop(limit)
            return
        self._limits_in_a_row += 1
        self._paused += pause
        self._resume = now + pause
        what = str(limit).partition(";")[0]
        self._notify(f"{what}; waiting {pause:.0f} s ({self._progress()})")

    def _stop(self, error: SourceUnavailable) -> None:
        """Ask no more: the error is the answer for each symbol that is left, and for the latest without an answer."""
        self._stopped = SourceStopped(f"{error} ({self._progress()})")
        self._answers |= dict.fromkeys((*self._unanswered, *self._left), self._stopped)
        self._left.clear()

    def _progress(self) -> str:
        fetched = sum(isinstance(answer, Table) for answer in self._answers.values())
        return f"prices of {fetched} of {self._count} symbols fetched"
