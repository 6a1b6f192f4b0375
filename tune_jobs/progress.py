"""Progress while the search runs: one live line on a terminal, an occasional line elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from tune_jobs.searcher import Finished
from tune_jobs.trial import EXPECTED_WORK

PLAIN_LINE_EVERY = 15.0
"""Seconds between lines when the output is not a terminal."""
PRIOR_TRIALS = 5
"""How many finished trials ``EXPECTED_WORK`` counts as in the mean work of a trial."""
WIDE = 130
"""Terminal columns from which the live line has room for a bar and persistence's metrics."""


class SearchProgress:
    """Counts the trials that ended, and keeps the best value of each objective.

    Attributes:
        done: completed trials.
        failed: failed trials.
        seconds: training seconds of the completed trials.
    """

    def __init__(
        self,
        console: Console,
        samples: int,
        persistence: dict[str, float],
        *,
        at_a_time: Callable[[], int],
        quiet: bool,
    ) -> None:
        self.done = self.failed = 0
        self.seconds = self._work = 0.0
        self._at_a_time = at_a_time
        self._samples, self._persistence = samples, persistence
        self._best: dict[str, float] = {}
        self._console, self._quiet = console, quiet
        self._last_line = time.monotonic()
        bar = [BarColumn(bar_width=20)] if console.width >= WIDE else []
        self._live = Progress(
            *bar,
            TextColumn("{task.description}"),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self._task = self._live.add_task(self._line(), total=samples)

    def __enter__(self) -> SearchProgress:
        self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.stop()

    def finished(self, trial: Finished) -> None:
        """Count one trial that ended."""
        if trial.objectives is None:
            self.failed += 1
            if not self._quiet:
                self._console.print(
                    f"trial {trial.number} failed: {trial.reason}",
                    style="yellow",
                    markup=False,
                    soft_wrap=True,
                )
        else:
            self.done += 1
            self.seconds += trial.seconds
            self._work += trial.work
            for name, value in trial.objectives.items():
                self._best[name] = min(value, self._best.get(name, value))
        self._live.update(self._task, completed=self.done + self.failed, description=self._line())

    def tick(self) -> None:
        """Print a line if one is due and there is no live line."""
        now = time.monotonic()
        if self._quiet or self._console.is_terminal or now - self._last_line < PLAIN_LINE_EVERY:
            return
        self._last_line = now
        self._console.print(self._line(), markup=False, highlight=False, soft_wrap=True)

    def _line(self) -> str:
        """Return done, failed, best of each objective and time left; with persistence's metrics if there is room."""
        roomy = self._console.width >= WIDE or not self._console.is_terminal
        best = "  ".join(
            f"{name} {self._best[name]:.5g}" + (f" ({self._persistence[name]:.5g})" if roomy else "")
            for name in self._best
        )
        ended = self.done + self.failed
        text = f"{self.done}/{self._samples} done, {self.failed} failed"
        if best:
            text += f"; best{' (persistence)' if roomy else ''}: {best}"
        if self._work and ended < self._samples:
            text += f"; {_duration(self._seconds_left())} left"
        return text

    def _seconds_left(self) -> float:
        """Expected seconds of training to come, of all trials that run at a time.

        The first trials to end are the cheapest, so their work alone is a poor estimate of the others' work.
        """
        expected = (PRIOR_TRIALS * EXPECTED_WORK + self._work) / (PRIOR_TRIALS + self.done)
        to_come = self._samples - self.done - self.failed
        return to_come * expected * self.seconds / self._work / max(1, min(to_come, self._at_a_time()))


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes >= 3 else f"{round(seconds)} s"
