"""Trading calendars: the sessions of an exchange, their hours, and the bars that follow a bar.

Dates are session labels, ``datetime64[D]``; times are UTC, ``datetime64[s]``. The rules of the exchanges are those of
``exchange_calendars``. A calendar never guesses: outside the years that it knows it raises ``DataError``, or answers
None or NaT where a single date is asked for.
"""

from __future__ import annotations

import contextlib
import functools
import re
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forecast.errors import DataError, UsageError
from forecast.names import did_you_mean
from forecast.prices.intervals import parse_interval

Days = NDArray[np.datetime64]
Times = NDArray[np.datetime64]

Anchor = Literal["open", "clock", "clock_early"]
Label = Literal["start", "end"]

ANCHORS: tuple[Anchor, ...] = get_args(Anchor)
LABELS: tuple[Label, ...] = get_args(Label)
ALWAYS = "24/7"
WEEKDAYS = "24/5"
PERIODS = ("1wk", "1mo")
NAMES_AT = "https://github.com/gerrymanoim/exchange_calendars#calendars"
DAY = np.timedelta64(1, "D")
SECOND = np.timedelta64(1, "s")
PAD = 31 * DAY
"""Days built beyond the last one used: the library mistimes the last session of some ranges (XKRX)."""
FIT_SPAN = 3653 * DAY
"""Ten years of rows decide a calendar: old rules are less well recorded, and the next dates follow the present ones."""
FULL_YEAR = 365 * DAY
"""Shortest span of rows that holds enough holidays to tell exchanges apart."""
NEAR_PERFECT = 0.999
FEWEST_INSIDE = 0.98
"""Share of rows inside the sessions below which the rows contradict the calendar that the series' symbol names."""
FEWEST_INSIDE_GUESSED, FEWEST_PRESENT_GUESSED = 0.998, 0.995
"""Smallest shares of rows, and of daily sessions, of an exchange that nothing names: neighbours share most holidays."""
WEEKEND_SHARE = 0.1
"""Share of weekend rows above which rows that fit no exchange count as traded every day."""
CLEAR_READING = 0.95
"""Share of naive times that must lie in the sessions under one reading, and under that one only."""

CANDIDATES = (
    WEEKDAYS, "XNYS", "XLON", "XETR", "XPAR", "BVMF", "XTSE", "XTKS", "XHKG", "XASX", "XBOM", "XSHG",
)  # fmt: skip
"""Calendars to try on rows without weekends when nothing names one; the first of equal ones is taken."""

EXCHANGES = {
    code: calendar
    for calendar, codes in {
        "XNYS": "NMS NGM NCM NAS NIM NASDAQGS NASDAQGM NASDAQCM NYQ NYS ASE NYSEAMERICAN PCX NYSEARCA BTS BATS CXI"
        " WCB SNP DJI PNK OQB OQX OEM OBB OPR",
        "CMES": "CME NYM CMX CBT CGI",
        "IEPA": "NYB",
        "XTSE": "TOR VAN NEO CNQ",
        "XMEX": "MEX",
        "BVMF": "SAO",
        "XBUE": "BUE",
        "XSGO": "SGO",
        "XBOG": "BVC",
        "XLON": "LSE IOB AQS FGI",
        "XETR": "GER XETRA",
        "XFRA": "FRA",
        "XSTU": "STU",
        "XDUS": "DUS",
        "XHAM": "HAM",
        "XPAR": "PAR PARIS",
        "XAMS": "AMS",
        "XBRU": "BRU",
        "XLIS": "LIS",
        "XDUB": "ISE",
        "XMIL": "MIL",
        "XMAD": "MCE",
        "XSWX": "EBS",
        "XWBO": "VIE",
        "XSTO": "STO",
        "XCSE": "CPH",
        "XHEL": "HEL",
        "XOSL": "OSL",
        "XICE": "ICE",
        "XTAL": "TAL",
        "XRIS": "RIS",
        "XLIT": "LIT",
        "ASEX": "ATH",
        "XWAR": "WSE",
        "XPRA": "PRA",
        "XBUD": "BUD",
        "XIST": "IST",
        "XTAE": "TLV",
        "XSAU": "SAU",
        "XJSE": "JNB",
        "XTKS": "TYO JPX OSA TOKYO",
        "XHKG": "HKG",
        "XSHG": "SHH SHZ",
        "XTAI": "TAI TWO",
        "XKRX": "KSC KOE",
        "XBOM": "NSI BSE",
        "XSES": "SES",
        "XKLS": "KLS",
        "XIDX": "JKT",
        "XBKK": "SET",
        "XASX": "ASX",
        "XNZE": "NZE",
        ALWAYS: "CCC",
        WEEKDAYS: "CCY",
    }.items()
    for code in codes.split()
}
"""Calendars by Yahoo's codes and names of exchanges. Exchanges that keep the same days share one."""

SUFFIXES = {
    suffix: calendar
    for calendar, suffixes in {
        "XTSE": "TO V NE CN",
        "XMEX": "MX",
        "BVMF": "SA",
        "XBUE": "BA",
        "XSGO": "SN",
        "XBOG": "CL",
        "XLON": "L IL",
        "XETR": "DE",
        "XFRA": "F",
        "XSTU": "SG",
        "XDUS": "DU",
        "XHAM": "HM",
        "XPAR": "PA",
        "XAMS": "AS",
        "XBRU": "BR",
        "XLIS": "LS",
        "XDUB": "IR",
        "XMIL": "MI",
        "XMAD": "MC",
        "XSWX": "SW",
        "XWBO": "VI",
        "XSTO": "ST",
        "XCSE": "CO",
        "XHEL": "HE",
        "XOSL": "OL",
        "XICE": "IC",
        "XTAL": "TL",
        "XRIS": "RG",
        "XLIT": "VS",
        "ASEX": "AT",
        "XWAR": "WA",
        "XPRA": "PR",
        "XBUD": "BD",
        "XIST": "IS",
        "XTAE": "TA",
        "XSAU": "SR",
        "XJSE": "JO",
        "XTKS": "T",
        "XHKG": "HK",
        "XSHG": "SS SZ",
        "XTAI": "TW TWO",
        "XKRX": "KS KQ",
        "XBOM": "NS BO",
        "XSES": "SI",
        "XKLS": "KL",
        "XIDX": "JK",
        "XBKK": "BK",
        "XASX": "AX",
        "XNZE": "NZ",
    }.items()
    for suffix in suffixes.split()
}
"""Calendars by the suffixes of Yahoo's symbols, without the dot."""

CRYPTO = re.compile(r"-(USD|USDT|USDC|EUR|GBP|JPY|BRL|CAD|AUD|CHF|INR|KRW|BTC|ETH)$")


_BUILDING = threading.Lock()
"""One for all calendars: filters of warnings, which a build sets, are the whole process's."""


def weekday(days: Days) -> NDArray[np.int64]:
    """The day of the week of each date, shape (n,): 0 for Monday to 6 for Sunday."""
    weekdays: NDArray[np.int64] = (days.astype("datetime64[D]").astype(np.int64) + 3) % 7
    return weekdays


@dataclass(frozen=True)
class BarGrid:
    """How intraday bars lie in a session; each lunch break starts the grid anew.

    ``open`` counts bar lengths from the open. ``clock`` cuts at whole multiples of the bar length in local time, with a
    short first bar (9:30, 10:00, 11:00 for hours); ``clock_early`` is the same but labels the first bar with the
    multiple before the open (9:00). The close cuts the last bar.
    """

    seconds: int
    anchor: Anchor = "open"
    label: Label = "start"


@dataclass(frozen=True)
class Fit:
    """How well a calendar, or a grid of bars, agrees with rows."""

    rows: float
    """Share of the rows that lie in the sessions, or on the grid."""
    sessions: float
    """Share of the sessions, weeks, months or intraday bars from the first to the last row that have a row."""

    @property
    def score(self) -> float:
        """Harmonic mean of both shares."""
        return (
            2 * self.rows * self.sessions / (self.rows + self.sessions) if self.rows + self.sessions else 0.0
        )


@dataclass(frozen=True)
class Choice:
    """The calendar of a series, how well it fits, and why it was chosen, in one line."""

    calendar: Calendar
    fit: Fit
    reason: str
    named: bool = False
    """Whether the exchange or the symbol names it, rather than the rows."""

    def __str__(self) -> str:
        return (
            f"{self.reason}; {100 * self.fit.rows:.4g} % of the rows lie in its sessions, and "
            f"{100 * self.fit.sessions:.4g} % of its sessions have a row"
        )


@dataclass(frozen=True)
class _Schedule:
    """The sessions from ``first`` to ``last`` with their times; the break's are NaT where there is none."""

    first: np.datetime64
    last: np.datetime64
    sessions: Days
    opens: Times
    break_starts: Times
    break_ends: Times
    closes: Times

    def rows(self, first: np.datetime64, last: np.datetime64) -> slice:
        return slice(*np.searchsorted(self.sessions, [first, last + DAY]))


@dataclass(frozen=True)
class _Periods:
    """Whole weeks or months that have a session, oldest first."""

    first_days: Days
    first_sessions: Days
    last_sessions: Days
    last_days: Days

    def labellings(self) -> tuple[Days, Days, Days, Days]:
        """The dates that may name the periods; where several do, the first is meant."""
        return self.first_days, self.first_sessions, self.last_sessions, self.last_days


class Calendar:
    """The sessions of one exchange; ``get`` makes it.

    Attributes:
        name: canonical name: a MIC such as ``XNYS``, ``24/7`` or ``24/5``.
        zone: IANA name of the exchange's time zone.
        first_day, last_day: bounds of what the calendar knows, ``datetime64[D]``; None without a bound.
    """

    def __init__(self, name: str, factory: Any = None) -> None:
        """Make a calendar of a class of ``exchange_calendars``; without one, of plain days."""
        self.name = name
        self.zone: str = factory.tz.key if factory else "UTC"
        self.first_day = _day(factory.bound_min()) if factory else None
        self.last_day = _day(factory.bound_max()) if factory else None
        self._factory = factory
        self._known: _Schedule | None = None

    def __repr__(self) -> str:
        return f"Calendar({self.name!r})"

    def covers(self, first: np.datetime64, last: np.datetime64) -> bool:
        """Whether the calendar knows every date from ``first`` to ``last``."""
        return self.known(first, last) == (first, last)

    def sessions(self, first: np.datetime64, last: np.datetime64) -> Days:
        """The sessions from ``first`` to ``last``, both included; raises ``DataError`` outside the bounds."""
        schedule = self._schedule(first, last)
        return schedule.sessions[schedule.rows(first, last)]

    def count_sessions(self, after: np.datetime64, until: np.datetime64) -> int:
        """The number of sessions after ``after``, up to and with ``until``; raises ``DataError`` outside the bounds."""
        return len(self.sessions(after + DAY, until)) if until > after else 0

    def open_close(self, sessions: Days) -> tuple[Times, Times]:
        """The open and the close of each session, shape (n,), UTC; raises ``DataError`` for a date without one."""
        if not len(sessions):
            return _no_times(0), _no_times(0)
        schedule = self._schedule(sessions.min(), sessions.max())
        opens = _look_up(sessions, schedule.sessions, schedule.opens)
        if np.isnat(opens).any():
            raise DataError(f"{sessions[np.isnat(opens)][0]} is not a session of {self.name}")
        return opens, _look_up(sessions, schedule.sessions, schedule.closes)

    def segments(self, first: np.datetime64, last: np.datetime64) -> tuple[Times, Times]:
        """Starts and ends of trading without a break, shape (n,), in the sessions from ``first`` to ``last``.

        A session has one segment, or two around its lunch break. Raises ``DataError`` outside the bounds.
        """
        schedule = self._schedule(first, last)
        rows = schedule.rows(first, last)
        breaks = ~np.isnat(schedule.break_starts[rows])
        starts = np.concatenate([schedule.opens[rows], schedule.break_ends[rows][breaks]])
        ends = np.concatenate([schedule.closes[rows], schedule.break_starts[rows][breaks]])
        return np.sort(starts), np.sort(ends)

    def bars(self, first: np.datetime64, last: np.datetime64, grid: BarGrid) -> Times:
        """The stamps of all bars from session ``first`` to ``last``; raises ``DataError`` outside the bounds."""
        return self._bars_and_ends(first, last, grid)[0]

    def next_bars(
        self, last: np.datetime64 | Days | Times, interval: str, count: int, grid: BarGrid | None = None
    ) -> Days | Times | None:
        """The stamps of the ``count`` bars after the last one.

        Weeks and months are labelled as the given ones are: by their first day (Monday, the 1st), first session, last
        session or last day (Sunday, the 31st); a period without a session has no bar. One label can fit several of
        these, and then the first counts: give the last few labels to be sure.

        Args:
            last: the last bar's stamp, or the last few, oldest first.
            interval: name of the interval.
            count: number of bars.
            grid: where intraday bars lie; by default counted from the open and labelled by their start.

        Returns:
            Shape (count,), or None when the calendar does not say: outside its bounds, or labelled in no known way.
        """
        recent = np.atleast_1d(np.asarray(last))
        seconds = parse_interval(interval).seconds
        if seconds is not None:
            list_bars = functools.partial(self.bars, grid=grid or BarGrid(seconds))
            return self._after(recent[-1], count, 7 + count * seconds // 10_000, list_bars)
        recent = recent.astype("datetime64[D]")
        if interval == "1d":
            return self._after(recent[-1], count, 7 + 2 * count, self.sessions)
        if self.known(recent[0], recent[-1]) != (recent[0], recent[-1]):
            return None
        known = self._periods(interval, recent[0], recent[-1]).labellings()
        fitting = [number for number, labels in enumerate(known) if np.isin(recent, labels).all()]
        if not fitting:
            return None

        def labels(first: np.datetime64, until: np.datetime64) -> Days:
            return self._periods(interval, first, until).labellings()[fitting[0]]

        return self._after(recent[-1], count, 40 + 32 * count, labels)

    def closes(self, stamps: Days | Times, interval: str, grid: BarGrid | None = None) -> Times:
        """When each bar ends, shape (n,), UTC: at the close of its last session, or where the grid or a break cuts it.

        NaT where the calendar has no such bar.
        """
        if not len(stamps):
            return _no_times(0)
        seconds = parse_interval(interval).seconds
        dates = stamps.astype("datetime64[D]")
        days = (
            self.known(dates.min() - DAY, dates.max() + DAY)
            if seconds
            else self.known(dates.min(), dates.max())
        )
        if days is None:
            return _no_times(len(stamps))
        if seconds is not None:
            return _look_up(stamps, *self._bars_and_ends(*days, grid or BarGrid(seconds)))
        if interval != "1d":
            periods = self._periods(interval, *days)
            dates = _look_up(_first_days(dates, interval), periods.first_days, periods.last_sessions)
            days = self.known(*_around(days, interval))
        schedule = self._schedule(*days) if days else None
        return _look_up(dates, schedule.sessions, schedule.closes) if schedule else _no_times(len(stamps))

    def known(self, first: np.datetime64, last: np.datetime64) -> tuple[np.datetime64, np.datetime64] | None:
        """The part of these days that the calendar covers; None if it is empty."""
        if self.first_day is not None:
            first = max(first, self.first_day)
        if self.last_day is not None:
            last = min(last, self.last_day)
        return (first, last) if first <= last else None

    def _schedule(self, first: np.datetime64, last: np.datetime64) -> _Schedule:
        """A schedule that covers these days, and more; raises ``DataError`` outside the bounds."""
        last = max(first, last)
        if not self.covers(first, last):
            raise DataError(
                f"the calendar {self.name} knows no sessions {self._bounds_text()}, and {first} to {last} were needed"
            )
        with _BUILDING:
            known = self._known
            if known is None or first < known.first or last > known.last:
                if known is not None:
                    first, last = min(first, known.first), max(last, known.last)
                # Whole years, and one ahead, so that later questions seldom build it again.
                years = (
                    first.astype("datetime64[Y]").astype("datetime64[D]"),
                    (last.astype("datetime64[Y]") + 2).astype("datetime64[D]") - DAY,
                )
                self._known = known = self._build(*(self.known(*years) or years))
            return known

    def _bounds_text(self) -> str:
        texts = [f"before {self.first_day}"] if self.first_day is not None else []
        return " or ".join(texts + ([f"after {self.last_day}"] if self.last_day is not None else []))

    def _build(self, first: np.datetime64, last: np.datetime64) -> _Schedule:
        if self._factory is None:
            sessions = np.arange(first, last + DAY)
            if self.name == WEEKDAYS:
                sessions = sessions[np.is_busday(sessions)]
            opens, none = sessions.astype("datetime64[s]"), _no_times(len(sessions))
            closes = (sessions + DAY).astype("datetime64[s]")
            return _Schedule(first, last, sessions, opens, none, none, closes)
        padded = self.known(first, last + PAD) or (first, last)
        try:
            with warnings.catch_warnings():
                # The library's use of pandas, which its users cannot mend.
                warnings.simplefilter("ignore", DeprecationWarning)
                table = self._factory(start=str(padded[0]), end=str(padded[1])).schedule
        except (ValueError, NotImplementedError) as error:
            # Some calendars of exchange_calendars 4.13 fail with pandas 3: XTAE, and those with an orthodox Easter.
            raise DataError(
                f"exchange_calendars cannot compute the calendar {self.name} from {padded[0]} to {padded[1]}; "
                "choose another `calendar`"
            ) from error
        table = table.loc[: str(last)]
        columns = ("open", "break_start", "break_end", "close")
        times = (table[column].dt.tz_localize(None).to_numpy().astype("datetime64[s]") for column in columns)
        return _Schedule(first, last, table.index.to_numpy().astype("datetime64[D]"), *times)

    def _bars_and_ends(self, first: np.datetime64, last: np.datetime64, grid: BarGrid) -> tuple[Times, Times]:
        """The stamp and the end of each bar in the sessions from ``first`` to ``last``."""
        opens, closes = self.segments(first, last)
        length = grid.seconds * SECOND
        anchors = opens if grid.anchor == "open" else opens - _since_multiple(opens, length, self.zone)
        counts = -((anchors - closes) // length)
        segment = np.repeat(np.arange(len(opens)), counts)
        number = np.arange(len(segment)) - np.repeat(np.cumsum(counts) - counts, counts)
        starts = anchors[segment] + number * length
        ends = np.minimum(starts + length, closes[segment])
        if grid.label == "end":
            return ends, ends
        return (np.maximum(starts, opens[segment]) if grid.anchor == "clock" else starts), ends

    def _periods(self, interval: str, first: np.datetime64, last: np.datetime64) -> _Periods:
        """The weeks or months from the one of ``first`` to the one of ``last``, those that the bounds cut left out."""
        around = _around((first, last), interval)
        known = self.known(*around)
        sessions = self.sessions(*known) if known else np.array([], "datetime64[D]")
        first_days, index = np.unique(_first_days(sessions, interval), return_index=True)
        last_days = _last_days(first_days, interval)
        periods = (first_days, sessions[index], sessions[np.append(index[1:], len(sessions)) - 1], last_days)
        whole = np.ones(len(first_days), bool)
        if known:
            whole = (first_days >= known[0]) & (last_days <= known[1])
        return _Periods(*(dates[whole] for dates in periods))

    def _after(
        self,
        last: np.datetime64,
        count: int,
        days: int,
        list_stamps: Callable[[np.datetime64, np.datetime64], Times],
    ) -> Times | None:
        """The first ``count`` stamps after ``last``, listed for ever more days; None if the bound comes first."""
        day = last.astype("datetime64[D]")
        if not self.covers(day, day):
            return None
        first = max(day - DAY, self.first_day) if self.first_day is not None else day - DAY
        while True:
            until = day + days * DAY
            if self.last_day is not None:
                until = min(until, self.last_day)
            stamps = list_stamps(first, until)
            stamps = stamps[stamps > last][:count]
            if len(stamps) == count:
                return stamps
            if until == self.last_day:
                return None
            days *= 2


@functools.cache
def _by_canonical_name(name: str) -> Calendar:
    if name in (ALWAYS, WEEKDAYS):
        return Calendar(name)
    from exchange_calendars.calendar_utils import global_calendar_dispatcher

    # The class tells the zone and the bounds; an instance takes a tenth of a second.
    return Calendar(name, global_calendar_dispatcher._calendar_factories[name])


def get(name: str) -> Calendar:
    """The calendar of this name or alias, in any case: ``XNYS``, ``nyse``, ``24/7``, ``24/5``.

    Raises:
        UsageError: there is none; with the names that are close.
    """
    if name in (ALWAYS, WEEKDAYS):
        return _by_canonical_name(name)
    import exchange_calendars

    known = {known.upper(): known for known in exchange_calendars.get_calendar_names()}
    if name.upper() in known:
        return _by_canonical_name(exchange_calendars.resolve_alias(known[name.upper()]))
    hint = did_you_mean(name, known.values()) or f"all names: {NAMES_AT}"
    raise UsageError(
        f"`calendar` must be an exchange such as XNYS or BVMF, 24/7 or 24/5, not {name!r}; {hint}"
    )


def fit_grid(calendar: Calendar, stamps: Times, seconds: int) -> tuple[BarGrid, Fit]:
    """The grid on which most intraday stamps lie and of which most bars are present.

    Args:
        calendar: calendar of the stamps, which it must cover: else ``DataError``.
        stamps: shape (n,), n > 0, UTC, ``datetime64[s]``.
        seconds: length of a bar.
    """
    first, last = stamps.min(), stamps.max()
    from_day, to_day = _days_around(calendar, first, last)

    def fit(grid: BarGrid) -> Fit:
        bars = calendar.bars(from_day, to_day, grid)
        return _overlap(stamps, bars[(bars >= first) & (bars <= last)])

    grids = [BarGrid(seconds, anchor, label) for label in LABELS for anchor in ANCHORS]
    fits = [fit(grid) for grid in grids]
    best = max(range(len(grids)), key=lambda number: fits[number].score)
    return grids[best], fits[best]


def measure_fit(calendar: Calendar, dates: Days | Times, interval: str) -> Fit | None:
    """How well a calendar agrees with rows, of which those outside its bounds are left out.

    A daily row agrees on a session, a weekly or monthly one on a date that labels its period, an intraday one during
    trading. None when the calendar knows fewer than half of the rows, or cannot be computed.

    Args:
        calendar: the calendar.
        dates: shape (n,), ``datetime64[D]``, or UTC ``datetime64[s]`` of intraday bars; oldest first.
        interval: name of the interval.
    """
    days = dates.astype("datetime64[D]")
    known = calendar.known(days[0], days[-1]) if len(days) else None
    if known is None:
        return None
    inside = (days >= known[0]) & (days <= known[1])
    if inside.mean() < 0.5:
        return None
    dates = dates[inside]
    first, last = dates[0], dates[-1]
    seconds = parse_interval(interval).seconds
    try:
        if seconds is not None:
            return _hours_fit(calendar, dates, seconds)
        if interval == "1d":
            return _overlap(dates, calendar.sessions(first, last))
        labellings = calendar._periods(interval, first, last).labellings()
    except DataError:
        return None
    fits = [_overlap(dates, labels[(labels >= first) & (labels <= last)]) for labels in labellings]
    return max(fits, key=lambda fit: fit.score)


def choose_calendar(
    dates: Days | Times | Callable[[Calendar], Days],
    *,
    interval: str,
    symbol: str,
    exchange: str | None = None,
) -> Choice:
    """The calendar of a series: of its exchange, of its symbol's form, or else the one that fits the last ten years.

    A calendar that the rows contradict is never chosen: if no exchange fits, it is 24/7 for rows on weekends and 24/5
    for others, whatever their fit.

    Args:
        dates: shape (n,), n > 0, ``datetime64[D]``, oldest first; or a function that returns them as an exchange counts
            them, for times in UTC, which may be of the day before or after there.
        interval: name of the interval.
        symbol: as Yahoo spells it: ``PETR4.SA``, ``BTC-USD``, ``EURUSD=X``; or any other name.
        exchange: Yahoo's code or name of the exchange, or a calendar's name; None when it is not known.
    """

    def days_of(calendar: Calendar) -> Days:
        days: Days = dates(calendar) if callable(dates) else dates
        recent: Days = days[days >= days[-1] - FIT_SPAN]
        return recent

    # Weeks and months may bear any day of the week.
    dense = interval not in PERIODS
    weekends = dense and (weekday(days_of(get(ALWAYS))) >= 5).mean() > WEEKEND_SHARE
    name, reason = named(symbol, exchange)
    contradicted = ""
    if name is not None:
        calendar = get(name)
        fit = measure_fit(calendar, days_of(calendar), interval)
        skips = name == ALWAYS and dense and _skips_weekends(days_of(calendar))
        if fit is not None and fit.rows >= FEWEST_INSIDE and not skips:
            return Choice(calendar, fit, reason, named=True)
        contradicted = f"{reason}, but {'the rows do not fit' if fit else 'nothing is known of'} {name}; "

    tried: list[tuple[Calendar, Fit]] = []
    # Rows on weekends rule out every exchange, and a long series that fits one rules out the others.
    for candidate in (ALWAYS,) if weekends and not callable(dates) else CANDIDATES:
        calendar = get(candidate)
        days = days_of(calendar)
        fit = measure_fit(calendar, days, interval)
        if fit is None:
            continue
        tried.append((calendar, fit))
        near_perfect = min(fit.rows, fit.sessions) >= NEAR_PERFECT
        if near_perfect and interval == "1d" and days[-1] - days[0] >= FULL_YEAR:
            break
    fewest_present = FEWEST_PRESENT_GUESSED if interval == "1d" else 0.0
    fitting = [
        (its, fit)
        for its, fit in tried
        if fit.rows >= FEWEST_INSIDE_GUESSED and fit.sessions >= fewest_present
    ]
    if not fitting:
        calendar = get(ALWAYS if weekends else WEEKDAYS)
        fit = measure_fit(calendar, days_of(calendar), interval) or Fit(0.0, 0.0)
        reason = "it has rows on weekends" if weekends else "the rows fit no exchange that was tried"
        return Choice(calendar, fit, f"{contradicted}{reason}")
    calendar, fit = max(fitting, key=lambda item: item[1].score)
    equal = [other.name for other, its in fitting if its.score == fit.score and other is not calendar]
    also = f"; {', '.join(equal)} would fit as well" if equal else ""
    return Choice(calendar, fit, f"{contradicted}it fits the rows best{also}")


def zone_of_naive(
    calendar: Calendar, local_stamps: Times, interval: str
) -> Literal["exchange", "utc"] | None:
    """Whether times without a zone are the exchange's or UTC: the reading under which they lie in the sessions.

    Args:
        calendar: calendar of the stamps.
        local_stamps: shape (n,), ``datetime64[s]``, as written.
        interval: name of the interval.

    Returns:
        ``exchange`` or ``utc``; None when both readings fit or neither does, and for rows without a time.
    """
    seconds = parse_interval(interval).seconds
    if seconds is None or not len(local_stamps):
        return None
    if calendar.zone == "UTC":
        return "utc"

    def fits(stamps: Times) -> bool:
        known = stamps[~np.isnat(stamps)]
        fit = measure_fit(calendar, np.sort(known), interval)
        return fit is not None and fit.rows * len(known) >= CLEAR_READING * len(stamps)

    exchange, utc = fits(to_utc(local_stamps, calendar.zone)), fits(local_stamps)
    if exchange == utc:
        return None
    return "exchange" if exchange else "utc"


def named(symbol: str, exchange: str | None) -> tuple[str | None, str]:
    """The calendar that the exchange or the form of the symbol names, and how; None when neither does."""
    if exchange:
        known = EXCHANGES.get(exchange.upper().replace(" ", ""))
        if known is None:
            with contextlib.suppress(UsageError):
                known = get(exchange).name
        if known is not None:
            return known, f"its exchange is {exchange}"
    symbol = symbol.upper()
    dot, suffix = symbol.rpartition(".")[1:]
    if dot and suffix in SUFFIXES:
        return SUFFIXES[suffix], f"the symbol ends in .{suffix}"
    if CRYPTO.search(symbol):
        return ALWAYS, "the symbol is that of a cryptocurrency"
    if symbol.endswith("=X"):
        return WEEKDAYS, "the symbol is that of a currency"
    return None, ""


def _hours_fit(calendar: Calendar, stamps: Times, seconds: int) -> Fit:
    """The share of stamps during trading, and of bars counted from the open that hold a stamp."""
    first, last = _days_around(calendar, stamps[0], stamps[-1])
    starts, ends = calendar._bars_and_ends(first, last, BarGrid(seconds))
    if not len(starts):
        return Fit(0.0, 0.0)
    expected = max(1, int(((ends >= stamps[0]) & (starts <= stamps[-1])).sum()))

    def fit(bar: NDArray[np.int64], inside: NDArray[np.bool_]) -> Fit:
        return Fit(float(inside.mean()), len(np.unique(bar[inside])) / expected)

    following, ending = (
        np.minimum(np.searchsorted(ends, stamps, side), len(ends) - 1) for side in ("right", "left")
    )
    # As starts, of which the first may be the whole hour before the open, and one more may be the close.
    starting = (stamps > starts[following] - seconds * SECOND) & (stamps < ends[following])
    as_starts = fit(np.where(starting, following, ending), starting | (stamps == ends[ending]))
    as_ends = fit(ending, (stamps > starts[ending]) & (stamps <= ends[ending]))
    return max(as_starts, as_ends, key=lambda reading: reading.score)


def _days_around(
    calendar: Calendar, first: np.datetime64, last: np.datetime64
) -> tuple[np.datetime64, np.datetime64]:
    """The known days that hold the sessions of two times: a session may bear the date of the day before or after."""
    days = first.astype("datetime64[D]") - DAY, last.astype("datetime64[D]") + DAY
    return calendar.known(*days) or days


def _overlap(rows: Days | Times, expected: Days | Times) -> Fit:
    if not len(expected):
        return Fit(0.0, 0.0)
    return Fit(float(np.isin(rows, expected).mean()), float(np.isin(expected, rows).mean()))


def _skips_weekends(dates: Days | Times) -> bool:
    """Whether most weekend days between the first and the last row have no row."""
    days = np.unique(dates.astype("datetime64[D]"))
    span = np.arange(days[0], days[-1] + DAY)
    weekend = span[weekday(span) >= 5]
    return len(weekend) > 0 and bool(np.isin(weekend, days).mean() < 0.5)


def _first_days(days: Days, interval: str) -> Days:
    """The first day of the week or month of each date."""
    if interval == "1mo":
        return days.astype("datetime64[M]").astype("datetime64[D]")
    return (days.astype(np.int64) - weekday(days)).astype("datetime64[D]")


def _last_days(first_days: Days, interval: str) -> Days:
    """The last day of the weeks or months that begin on these."""
    days = first_days.astype(np.int64) + 7
    if interval == "1mo":
        days = (first_days.astype("datetime64[M]") + 1).astype("datetime64[D]").astype(np.int64)
    return (days - 1).astype("datetime64[D]")


def _around(days: tuple[np.datetime64, np.datetime64], interval: str) -> tuple[np.datetime64, np.datetime64]:
    """The first day of the first date's week or month, and the last day of the last date's."""
    first_days = _first_days(np.array(days), interval)
    return first_days[0], _last_days(first_days, interval)[1]


def _day(bound: Any) -> np.datetime64 | None:
    return None if bound is None else np.datetime64(bound.date(), "D")


def _no_times(count: int) -> Times:
    return np.full(count, np.datetime64("NaT"), "datetime64[s]")


def _look_up(keys: Times, known: Times, values: Times) -> Times:
    """The value of each key, NaT for one that is not among the known ones, which are sorted."""
    found = _no_times(len(keys)).astype(values.dtype)
    if len(known):
        place = np.minimum(np.searchsorted(known, keys), len(known) - 1)
        same = known[place] == keys
        found[same] = values[place[same]]
    return found


def _since_multiple(times: Times, length: np.timedelta64, zone: str) -> NDArray[np.timedelta64]:
    """The time since the last whole multiple of a bar's length on the clocks of a zone."""
    local = to_zone(times, zone)
    since: NDArray[np.timedelta64] = (local - local.astype("datetime64[D]")) % length
    return since


def to_zone(stamps: Times, zone: str) -> Times:
    """Times on the clocks of a zone, shape (n,), from times in UTC."""
    local = pd.DatetimeIndex(stamps).tz_localize("UTC").tz_convert(zone).tz_localize(None)
    return local.to_numpy().astype("datetime64[s]")


def to_utc(local: Times, zone: str) -> Times:
    """UTC of times on the clocks of a zone; NaT for those that the clocks skip or show twice."""
    zoned = pd.DatetimeIndex(local).tz_localize(zone, ambiguous="NaT", nonexistent="NaT")
    return zoned.tz_convert("UTC").tz_localize(None).to_numpy().astype("datetime64[s]")
