"""Forecast windows that wait at the same moment together: a batch costs less than its windows one by one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeAlias, TypeVar

Window = Sequence[float] | Sequence[Sequence[float]]
Result = TypeVar("Result")
Batch: TypeAlias = list[tuple[Window, asyncio.Future[Result]]]
"""Windows and the futures of their results."""
Outcome: TypeAlias = Result | Exception


class Batcher(Generic[Result]):
    """Collects windows on the event loop, and answers each with a future.

    A window does not wait for others unless ``wait_s`` says so: the windows that arrive before the loop's next turn,
    or while the last batch is computed, form a batch.
    """

    def __init__(
        self,
        forecast: Callable[[list[Window]], list[Result]],
        *,
        max_batch_size: int,
        wait_s: float = 0.0,
        thread: ThreadPoolExecutor | None = None,
    ) -> None:
        """Collect windows for ``forecast``.

        Args:
            forecast: returns a result for each window; if it raises for several windows, it is called for each alone,
                so that one bad window does not spoil the others' answers.
            max_batch_size: most windows at a time.
            wait_s: seconds to wait for more windows.
            thread: where to compute; None is the event loop, which a short computation blocks for less time than a
                hand-over to a thread and back would take.
        """
        self._forecast, self._max_batch_size, self._wait_s = forecast, max_batch_size, wait_s
        self._thread = thread
        self._waiting: deque[tuple[Window, asyncio.Future[Result]]] = deque()
        self._turn_is_coming = False

    def forecast(self, window: Window) -> asyncio.Future[Result]:
        """Return a future of the result for ``window``; call this on the event loop."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._waiting.append((window, future))
        if not self._turn_is_coming:
            self._turn_is_coming = True
            if self._wait_s:
                loop.call_later(self._wait_s, self._take_turn, loop)
            else:
                loop.call_soon(self._take_turn, loop)
        return future

    def _take_turn(self, loop: asyncio.AbstractEventLoop) -> None:
        batch: Batch[Result] = []
        while self._waiting and len(batch) < self._max_batch_size:
            window, future = self._waiting.popleft()
            if not future.done():  # else its client has gone, or its time limit has passed
                batch.append((window, future))
        if not batch:
            self._turn_is_coming = False
            return
        if self._thread is None:
            self._answer(batch, self._run(batch))
            self._next_turn(loop)
        else:

            def answer(done: asyncio.Future[list[Outcome[Result]]]) -> None:
                self._answer(batch, done.result())
                self._next_turn(loop)

            loop.run_in_executor(self._thread, self._run, batch).add_done_callback(answer)

    def _next_turn(self, loop: asyncio.AbstractEventLoop) -> None:
        self._turn_is_coming = bool(self._waiting)
        if self._turn_is_coming:
            loop.call_soon(self._take_turn, loop)

    def _run(self, batch: Batch[Result]) -> list[Outcome[Result]]:
        return self._compute([window for window, _ in batch])

    def _compute(self, windows: list[Window]) -> list[Outcome[Result]]:
        try:
            return [*self._forecast(windows)]
        except Exception as error:
            if len(windows) == 1:
                return [error]
            return [self._compute([window])[0] for window in windows]

    def _answer(self, batch: Batch[Result], outcomes: list[Outcome[Result]]) -> None:
        for (_, future), outcome in zip(batch, outcomes, strict=True):
            if future.done():
                continue
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
