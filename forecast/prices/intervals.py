"""The time from one bar of a series to the next."""

from __future__ import annotations

from dataclasses import dataclass

from forecast.errors import UsageError


@dataclass(frozen=True)
class Interval:
    """The length of a bar: of a fixed number of seconds, or of a session, a week or a month."""

    name: str
    seconds: int | None = None
    """Length of an intraday bar; None for longer bars, whose length varies."""

    @property
    def is_intraday(self) -> bool:
        """Whether a session has several bars, stamped with a time rather than a date."""
        return self.seconds is not None


INTERVALS = {
    interval.name: interval
    for interval in (
        Interval("1m", 60),
        Interval("5m", 300),
        Interval("15m", 900),
        Interval("30m", 1800),
        Interval("1h", 3600),
        Interval("1d"),
        Interval("1wk"),
        Interval("1mo"),
    )
}


def parse_interval(name: str) -> Interval:
    """The interval of this name; raises ``UsageError``, which lists the names, when there is none."""
    if name not in INTERVALS:
        raise UsageError(f"`interval` must be one of {', '.join(INTERVALS)}, not {name!r}")
    return INTERVALS[name]
