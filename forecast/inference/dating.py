"""The bars that forecasts are for, and the age of a model, by the calendar of its series."""

from __future__ import annotations

import datetime as dt
import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forecast.errors import WindowError
from forecast.model.checkpoint import Checkpoint
from forecast.prices.timeline import Timeline

Dates = NDArray[np.datetime64]


@dataclass(frozen=True)
class Steps:
    """The bars that the steps of a forecast are for.

    Attributes:
        dates: date or time of each step's bar, ISO 8601.
        closes: when each of these bars ends, ISO 8601; None where the calendar does not say.
    """

    dates: list[str]
    closes: list[str | None]


class Dating:
    """Dates the forecasts of one model."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Use the calendar of the series that the model was trained on."""
        self.timeline = Timeline.of(checkpoint.provenance)
        self._trained_until = checkpoint.trained_until
        self._symbol = checkpoint.config.symbol

    def require_timeline(self) -> Timeline:
        """The bars of the model's series.

        Raises:
            WindowError: when the model was trained before series had calendars.
        """
        if self.timeline is None:
            raise WindowError(
                f"this model of {self._symbol} does not know its calendar, so its forecasts have no dates; train or "
                "tune it again, or leave the dates out"
            )
        return self.timeline

    def steps(self, last: np.datetime64 | Dates, count: int) -> Steps | None:
        """The ``count`` bars after ``last`` (or the last of several); None where the calendar does not know them."""
        timeline = self.require_timeline()
        dates = timeline.next_dates(last, count)
        return None if dates is None else Steps(timeline.text(dates), timeline.closes(dates))

    def age(self, until: np.datetime64 | None = None) -> int | None:
        """Sessions after the last training row, up to ``until`` or to the last complete session now.

        None when the model does not record its last training row, or the calendar does not know these years.
        """
        if self.timeline is None or self._trained_until is None:
            return None
        if until is None:
            now = dt.datetime.now(dt.UTC).replace(tzinfo=None, second=0, microsecond=0)
            return self._age_at(np.datetime64(now, "s"))
        return self._age(until)

    @functools.lru_cache(maxsize=64)  # noqa: B019 - a server has one per model, which lives as long as it is served
    def _age(self, until: np.datetime64) -> int | None:
        timeline = self.require_timeline()
        return timeline.sessions_between(timeline.parse(str(self._trained_until)), until)

    @functools.lru_cache(maxsize=1)  # noqa: B019
    def _age_at(self, now: np.datetime64) -> int | None:
        last = self.require_timeline().last_complete_session(now)
        return None if last is None else self._age(last)

    def describe(self, last: Any, count: int) -> dict[str, Any]:
        """Fields of an answer: the dates of its steps and when they close; empty where the calendar does not know."""
        steps = self.steps(last, count)
        return {"dates": steps.dates, "closes": steps.closes} if steps else {}
