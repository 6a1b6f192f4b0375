"""How the rows of a series lie in time: the length of a bar, the calendar, and the bars that come next."""

from __future__ import annotations

import dataclasses
import datetime as dt
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forecast.errors import DataError, UsageError
from forecast.prices import calendars
from forecast.prices.calendars import BarGrid, Calendar
from forecast.prices.intervals import INTERVALS

Dates = NDArray[np.datetime64]

RECENT = np.timedelta64(30, "D")
"""Days among which the last session is sought."""
LONGEST_SHORT_BAR = np.timedelta64(3, "D")
"""A bar that is shorter than a day ends within this time, whatever its calendar."""
RECENT_DATES = 8
"""Number of a series' last dates that show how weeks and months are labelled."""
UNITS = {"1d": "session", "1wk": "week", "1mo": "month"}
"""What a bar of a day or longer is called."""


@dataclass(frozen=True)
class Timeline:
    """The bars of a series.

    Attributes:
        interval: name of the bar length.
        calendar_name: name of the calendar.
        grid: where intraday bars lie in a session; None for longer bars.
    """

    interval: str
    calendar_name: str
    grid: BarGrid | None = None

    @classmethod
    def of(cls, provenance: dict[str, Any] | None) -> Timeline | None:
        """The bars of a model's series; None for models that were trained before series had calendars."""
        if not provenance or not provenance.get("calendar"):
            return None
        grid = provenance.get("grid")
        return cls(provenance["interval"], provenance["calendar"], BarGrid(**grid) if grid else None)

    @cached_property
    def calendar(self) -> Calendar:
        """The calendar."""
        return calendars.get(self.calendar_name)

    @property
    def unit(self) -> str:
        """What a bar is called."""
        return UNITS.get(self.interval, "bar")

    @property
    def is_intraday(self) -> bool:
        """Whether dates are times in UTC rather than days."""
        return INTERVALS[self.interval].is_intraday

    def parse(self, text: str) -> np.datetime64:
        """A date or a time as a user writes it, as a stamp of this series; a time without a zone is the exchange's.

        Raises:
            UsageError: when it is neither.
        """
        example = "2024-12-31T15:30:00-05:00" if self.is_intraday else "2024-12-31"
        try:
            stamp = pd.Timestamp(dt.datetime.fromisoformat(text))
        except ValueError:
            raise UsageError(f"{text!r} is not a date of ISO 8601; use a date such as {example}") from None
        if not self.is_intraday:
            # Midnight with a zone is a day as it is written; another time is one on the exchange's clock.
            midnight = stamp.tz is None or stamp.time() == dt.time()
            return np.datetime64((stamp if midnight else stamp.tz_convert(self.calendar.zone)).date(), "D")
        if ":" not in text:
            raise UsageError(
                f"{text!r} is a day, but these are bars of {self.interval}; use a time such as {example}"
            )
        if stamp.tz is None:
            try:
                stamp = stamp.tz_localize(self.calendar.zone)
            except ValueError:
                raise UsageError(
                    f"{text!r} is a time that the clocks of {self.calendar.zone} skip or show twice; write its offset "
                    f"from UTC, as in {example}"
                ) from None
        return np.datetime64(stamp.tz_convert("UTC").tz_localize(None), "s")

    def now(self) -> np.datetime64:
        """The present day or time, as a stamp of this series."""
        return self.parse(dt.datetime.now(dt.UTC).isoformat(timespec="seconds"))

    def text(self, dates: Dates) -> list[str]:
        """Dates as text of ISO 8601; times with the exchange's offset from UTC."""
        if not self.is_intraday:
            return [str(date) for date in dates]
        zoned = pd.DatetimeIndex(dates).tz_localize("UTC").tz_convert(self.calendar.zone)
        return [stamp.isoformat() for stamp in zoned]

    def label(self, dates: Dates) -> list[str]:
        """Dates for a table: times to the minute, on the exchange's clock."""
        if not self.is_intraday:
            return [str(date) for date in dates]
        return [str(time).replace("T", " ") for time in self.local(dates).astype("datetime64[m]")]

    def local(self, dates: Dates) -> Dates:
        """Dates for an axis: times on the exchange's clock."""
        return calendars.to_zone(dates, self.calendar.zone) if self.is_intraday else dates

    def next_dates(self, last: np.datetime64 | Dates, count: int) -> Dates | None:
        """The ``count`` bars after ``last``; None where the calendar does not know them.

        Args:
            last: the last date; or the last ``RECENT_DATES``, which show how weeks and months are labelled.
            count: number of bars.
        """
        try:
            return self.calendar.next_bars(last, self.interval, count, self.grid)
        except DataError:  # years that no calendar has
            return None

    def closes(self, dates: Dates) -> list[str | None]:
        """When each bar ends, ISO 8601 with the exchange's offset from UTC; None where the calendar has no such bar."""
        ends = self.calendar.closes(dates, self.interval, self.grid)
        zoned = pd.DatetimeIndex(ends).tz_localize("UTC").tz_convert(self.calendar.zone)
        return [None if pd.isna(end) else end.isoformat() for end in zoned]

    def sessions_between(self, after: np.datetime64, until: np.datetime64) -> int | None:
        """The number of sessions after the day of ``after``, up to the day of ``until``; None outside the calendar."""
        try:
            return self.calendar.count_sessions(self._day(after), self._day(until))
        except DataError:
            return None

    def last_complete_session(self, now: np.datetime64) -> np.datetime64 | None:
        """The last session that had closed at ``now`` (UTC, ``datetime64[s]``); None outside the calendar."""
        today = now.astype("datetime64[D]")
        try:
            sessions = self.calendar.sessions(today - RECENT, today)
        except DataError:
            return None
        _, closes = self.calendar.open_close(sessions)
        closed = sessions[closes <= now]
        return closed[-1] if len(closed) else None

    def expected(self, first: np.datetime64, last: np.datetime64) -> Dates:
        """The bars from ``first`` to ``last`` that the calendar has; none of the time that it does not know."""
        days = self.calendar.known(first.astype("datetime64[D]"), last.astype("datetime64[D]"))
        if days is None:
            return np.array([], dtype="datetime64[D]")
        if self.is_intraday:
            around = self.calendar.known(days[0] - calendars.DAY, days[1] + calendars.DAY) or days
            bars = self.calendar.bars(*around, self.grid or BarGrid(INTERVALS[self.interval].seconds or 0))
        elif self.interval == "1d":
            bars = self.calendar.sessions(*days)
        else:
            count = int((last - first).astype(int)) // (7 if self.interval == "1wk" else 28)
            following = self.calendar.next_bars(first, self.interval, count) if count else None
            bars = np.array([first]) if following is None else np.append(first, following)
        return bars[(bars >= first) & (bars <= last)]

    def first_incomplete(self, dates: Dates, now: dt.datetime) -> np.datetime64:
        """The first of the dates whose bar had not ended at ``now``; a later one when all had.

        Args:
            dates: shape (n,), n > 0, oldest first.
            now: with a zone.
        """
        moment = np.datetime64(now.astimezone(dt.UTC).replace(tzinfo=None), "s")
        # Every bar that began before this moment has ended. The last few rows would not be enough: a file may
        # have many rows with dates in the future.
        before = moment - (LONGEST_SHORT_BAR if self.is_intraday else 2 * RECENT)
        recent = dates[np.searchsorted(dates, before) :]
        if not len(recent):
            recent = dates[-1:]
        ends = self.calendar.closes(recent, self.interval, self.grid)
        # A row that the calendar does not have ends with its day, or with its length.
        length = np.timedelta64(INTERVALS[self.interval].seconds or 86_400, "s")
        ends = np.where(np.isnat(ends), recent.astype("datetime64[s]") + length, ends)
        unfinished = recent[ends > moment]
        first: np.datetime64 = unfinished[0] if len(unfinished) else recent[-1] + np.timedelta64(1)
        return first

    def _day(self, date: np.datetime64) -> np.datetime64:
        day: np.datetime64 = self.local(np.array([date]))[0].astype("datetime64[D]")
        return day

    def described(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {
            "interval": self.interval,
            "calendar": self.calendar_name,
            "grid": dataclasses.asdict(self.grid) if self.grid else None,
        }
