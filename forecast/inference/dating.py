"""The bars that forecasts are for, and the age of a model, by the calendar of its series."""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forecast.errors import UsageError, WindowError
from forecast.model.card import ModelCard
from forecast.prices.timeline import Timeline

Dates = NDArray[np.datetime64]

TOLERANCE = np.timedelta64(1, "D")
"""How far a last date may lie ahead of this clock: elsewhere it may be tomorrow."""


class Dating:
    """Dates the forecasts of one model."""

    def __init__(self, checkpoint: ModelCard) -> None:
        """Use the calendar of the series that the model was trained on."""
        self.timeline = self._trained_on = Timeline.of(checkpoint.provenance)
        self._trained_until = checkpoint.trained_until
        self._symbol = checkpoint.config.symbol

    @classmethod
    def of_unseen(cls, whole: ModelCard, symbol: str, timeline: Timeline | None) -> Dating:
        """Dates of a symbol that a model was not trained on, by its own calendar; the age stays that of the model.

        Args:
            whole: the model.
            symbol: the symbol.
            timeline: its bars; None where they are not known.
        """
        dating = cls(whole)
        dating._symbol, dating.timeline = symbol, timeline
        return dating

    def require_timeline(self) -> Timeline:
        """The bars of the model's series.

        Raises:
            WindowError: when the calendar is not known: the model was trained before series had calendars, or not on
                this symbol.
        """
        if self.timeline is None:
            raise WindowError(
                f"this model does not know the calendar of {self._symbol}, so its forecasts have no dates; train or "
                "tune a model of it, or leave the dates out"
            )
        return self.timeline

    @property
    def unknown(self) -> str:
        """Why a forecast has no dates, in one line."""
        return f"the calendar {self.require_timeline().calendar_name} does not know the next dates"

    def parse(self, texts: Sequence[str]) -> Dates:
        """The last known dates as users write them, oldest first, shape (n,).

        Raises:
            UsageError: when one is no date, they are out of order, or the last is in the future.
            WindowError: as ``require_timeline``.
        """
        timeline = self.require_timeline()
        dates = np.array([timeline.parse(text) for text in texts])
        if (np.diff(dates).astype(np.int64) <= 0).any():
            raise UsageError("the dates are not in order; give them oldest first, each once")
        if dates[-1] > timeline.now() + TOLERANCE:
            raise UsageError(f"{texts[-1]} is in the future; give the date of the last known value")
        return dates

    def doubt(self, last: np.datetime64) -> str | None:
        """Why a last date is doubtful, in one line; None when the calendar has such a bar."""
        timeline = self.require_timeline()
        if timeline.closes(np.array([last])) != [None]:
            return None
        return f"the last date is no {timeline.unit} of the calendar {timeline.calendar_name}"

    def describe(self, last: Dates, count: int) -> dict[str, Any]:
        """Fields of an answer with ``count`` steps: the bars that they are for, and when these bars end.

        Args:
            last: the window's last date; or its last few, which show how weeks and months are labelled.
            count: number of steps.

        Returns:
            ``forecast_dates`` and ``forecast_closes``, ISO 8601; nothing where the calendar knows no next bars.

        Raises:
            WindowError: as ``require_timeline``.
        """
        timeline = self.require_timeline()
        dates = timeline.next_dates(last, count)
        if dates is None:
            return {}
        return {"forecast_dates": timeline.text(dates), "forecast_closes": timeline.closes(dates)}

    def age(self, until: np.datetime64 | None = None) -> int | None:
        """Sessions after the last training row, up to ``until`` or to the last complete session now.

        None when the model does not record its last training row, or the calendar does not know these years.
        """
        if self._trained_on is None or self._trained_until is None:
            return None
        if until is None:
            now = dt.datetime.now(dt.UTC).replace(tzinfo=None, second=0, microsecond=0)
            return self._age_at(self._trained_on, np.datetime64(now, "s"))
        return self._age(self._trained_on, until)

    @functools.lru_cache(maxsize=64)  # noqa: B019 - a server has one per model, which lives as long as it is served
    def _age(self, timeline: Timeline, until: np.datetime64) -> int | None:
        return timeline.sessions_between(timeline.parse(str(self._trained_until)), until)

    @functools.lru_cache(maxsize=1)  # noqa: B019
    def _age_at(self, timeline: Timeline, now: np.datetime64) -> int | None:
        last = timeline.last_complete_session(now)
        return None if last is None else self._age(timeline, last)


def with_the_same_sessions(windows: Mapping[str, Dates | None]) -> list[list[str]]:
    """Groups of symbols whose windows hold the same dates, as far back as the shorter window reaches.

    Args:
        windows: the dates of each symbol's window, oldest first; None for a window without dates, which is a
            group of its own.
    """
    groups: list[tuple[Dates, list[str]]] = []
    alone = [[symbol] for symbol, dates in windows.items() if dates is None]
    dated = {symbol: dates for symbol, dates in windows.items() if dates is not None}
    for symbol in sorted(dated, key=lambda symbol: -len(dated[symbol])):
        dates = dated[symbol]
        fitting = (symbols for known, symbols in groups if np.array_equal(known[-len(dates) :], dates))
        if (group := next(fitting, None)) is not None:
            group.append(symbol)
        else:
            groups.append((dates, [symbol]))
    return [*(symbols for _, symbols in groups), *alone]
