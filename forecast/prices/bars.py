"""From the rows of a table to the bars of a series: their length, their calendar, and days from shorter bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forecast.errors import DataError
from forecast.names import plain_name
from forecast.prices import calendars
from forecast.prices.calendars import BarGrid, Calendar, Choice, weekday
from forecast.prices.intervals import INTERVALS
from forecast.prices.table import Table
from forecast.prices.timeline import Timeline

Dates = NDArray[np.datetime64]
Values = NDArray[np.float64]

DAY = 86_400
SHORTEST_DAY = DAY - 7200
"""Seconds from which on a step between times is a day: clocks are put forward by up to two hours."""
LONGEST_DAYS, FEWEST_STEPS = 4, 4
"""A median step of at most four days is one of sessions, as it is where a few rows have longer steps."""
MOST_PRESENT = 0.95
"""Share of a calendar's bars that times without a zone must hold where rows outside the sessions hide their zone."""
MOST_APART = 2
"""Times that two prices of one date may differ by: prices of two symbols differ by more."""
BAR_DAYS = {"1wk": (5, 9), "1mo": (26, 33)}
"""Days between most rows of longer bars."""
MOST_REPEATED = 0.1
"""Share of the dates that may have several rows which disagree, as corrections of a price do."""
OF_A_DAY = {"open": "first", "high": "max", "low": "min", "volume": "sum"}
"""How the columns of a day follow from its shorter bars; of any other column, the last value counts."""


@dataclass(frozen=True)
class Bars:
    """The rows of a table as bars.

    Attributes:
        dates: shape (n,): days (``datetime64[D]``), or times in UTC (``datetime64[s]``).
        matrix: shape (n, columns).
        timeline: their length and calendar.
        choice: the calendar, why it was chosen and how well it fits.
        notes: lines that tell a person what was done.
    """

    dates: Dates
    matrix: Values
    timeline: Timeline
    choice: Choice
    notes: tuple[str, ...]


def arrange(
    table: Table,
    matrix: Values,
    columns: Sequence[str],
    *,
    symbol: str,
    interval: str | None,
    calendar: str | None,
) -> Bars:
    """The rows of ``table`` as bars of the length that is asked for.

    Args:
        table: the source's table.
        matrix: its values, shape (n, columns).
        columns: names of the columns.
        symbol: the series' symbol.
        interval: name of a bar length; ``auto`` for the table's own; None for days, or the table's own longer bars.
        calendar: name of a calendar; None to find it.

    Raises:
        DataError: when the rows are not bars of that length, and days cannot be made of them.
        UsageError: when there is no such calendar.
    """
    own = _own_interval(table)
    shown = own if isinstance(own, str) else f"{own} seconds"
    wanted = own if interval == "auto" or (interval is None and own in BAR_DAYS) else interval or "1d"
    days_from_times = wanted == "1d" and own != "1d" and own not in BAR_DAYS
    if wanted not in INTERVALS or (wanted != own and not days_from_times):
        choices = f"`interval={own}`" if own in INTERVALS else "`interval=1d`"
        asked = "of a length that has a name" if interval == "auto" else f"bars of {interval}"
        raise DataError(
            f"{table.origin} has bars of {shown}, which are not {asked}; use {choices}, or a source with the "
            "bars you want"
        )
    intraday = INTERVALS[wanted].is_intraday
    found = _calendar_of(table, own, symbol, calendar)
    notes = []
    if intraday or days_from_times:
        seconds = own if isinstance(own, int) else INTERVALS[own].seconds or 0
        dates, assumed = _in_utc(table, found, seconds, intraday)
        grid, fit = calendars.fit_grid(found.calendar, np.unique(dates), seconds)
        found = replace(found, fit=fit)
        if days_from_times:
            dates, matrix, left_out = _days_of(dates, matrix, columns, found.calendar, grid)
            if not len(dates):
                raise DataError(
                    f"{table.origin} has bars of {shown}, but no complete session of {found.calendar.name}; give more "
                    "rows, another `calendar`, or `interval=auto` to use the bars as they are"
                )
            notes.append(
                f"{table.origin} has bars of {shown}; the last one of each session is its day's price"
            )
            if left_out:
                notes.append(
                    f"rows of {table.origin} outside the sessions of {found.calendar.name}: {left_out}"
                )
        if assumed is not None:
            notes.append(f"{table.origin} has times without a zone; they are read as times of {assumed}")
    else:
        dates = _days(table, found.calendar)
    _require_one_row_each(dates, matrix, table.origin, wanted)
    if interval is None and wanted != "1d":
        notes.append(f"{table.origin} has bars of {shown}; they are used as they are")
    timeline = Timeline(wanted, found.calendar.name, grid if intraday else None)
    return Bars(dates, matrix, timeline, found, tuple(notes))


def _own_interval(table: Table) -> str | int:
    """The name of a table's bar length, or its seconds when it has no name: the most frequent step between rows.

    Raises:
        DataError: for longer steps than a day that are neither weeks nor months.
    """
    known = np.unique(table.dates.astype("datetime64[s]"))
    steps = np.diff(known).astype(np.int64)
    if not len(steps):
        return "1d"
    lengths, counts = np.unique(steps, return_counts=True)
    step = int(lengths[np.argmax(counts)])
    if step < SHORTEST_DAY:
        return next((name for name, interval in INTERVALS.items() if interval.seconds == step), step)
    days = round(float(np.median(steps)) / DAY)
    if days <= LONGEST_DAYS or len(steps) < FEWEST_STEPS:
        return "1d"
    name = next((name for name, (least, most) in BAR_DAYS.items() if least <= days <= most), None)
    if name is None or (name == "1mo" and len(np.unique(known.astype("datetime64[M]"))) < len(known)):
        raise DataError(
            f"{table.origin} has a row every {days} days; give a source with bars of a day, a week or a month"
        )
    return name


def _calendar_of(table: Table, own: str | int, symbol: str, name: str | None) -> Choice:
    """The calendar that is asked for, or else found, by the days as the exchange counts them."""
    interval = own if isinstance(own, str) and own in BAR_DAYS else "1d"
    if name is not None:
        calendar = calendars.get(name)
        days = np.unique(_days(table, calendar))
        return Choice(
            calendar,
            calendars.measure_fit(calendar, days, interval) or calendars.Fit(0.0, 0.0),
            "it was asked for",
            True,
        )

    def days_of(calendar: Calendar) -> Dates:
        return np.unique(_days(table, calendar))

    utc = table.offsets is not None and not table.offsets.any()
    found = calendars.choose_calendar(
        days_of if utc else np.unique(table.dates.astype("datetime64[D]")),
        interval=interval,
        symbol=symbol,
        exchange=table.exchange,
    )
    weekdays = set(weekday(_days(table, found.calendar)).tolist())
    if (
        found.calendar.zone == "UTC"
        and table.dates.dtype != "datetime64[D]"
        and 6 in weekdays
        and 4 not in weekdays
    ):
        raise DataError(
            f"{table.origin} has days from Sunday to Thursday, as times in UTC have of exchanges east of it; name the "
            "exchange as `calendar`"
        )
    return found


def _in_utc(table: Table, found: Choice, seconds: int, intraday: bool) -> tuple[Dates, str | None]:
    """The rows' times in UTC, and the zone that they are read in if the source names none.

    A time without a zone is on the exchange's clock, or in UTC if only that fits its sessions.

    Raises:
        DataError: when neither fits, or a clock skips or repeats a time.
    """
    local, calendar = table.dates.astype("datetime64[s]"), found.calendar
    if table.offsets is not None:
        utc: Dates = local - table.offsets.astype("timedelta64[s]")
        return utc, None
    name = next((name for name, interval in INTERVALS.items() if interval.seconds == seconds), "1m")
    zone = calendars.zone_of_naive(calendar, local, name)
    if zone == "utc" and not (intraday and not found.named and calendar.name == calendars.WEEKDAYS):
        return local, "UTC"
    utc = calendars.to_utc(local, calendar.zone)
    # Rows before and after the sessions fit neither reading, but then all bars of the sessions are there.
    if zone != "exchange" and (
        zone == "utc"
        or calendars.fit_grid(calendar, np.unique(utc[~np.isnat(utc)]), seconds)[1].sessions < MOST_PRESENT
    ):
        raise DataError(
            f"{table.origin} has times without a zone that fit the sessions of {calendar.name} neither on its clock "
            "nor in UTC; write times with their offset from UTC, or name the exchange as `calendar`"
        )
    if np.isnat(utc).any():
        raise DataError(
            f"{table.origin} has the time {local[np.isnat(utc)][0]}, which the clocks of {calendar.zone} skip or show "
            "twice; write times with their offset from UTC"
        )
    return utc, calendar.zone


def _days(table: Table, calendar: Calendar) -> Dates:
    """The days of rows of a day or longer: as they are written, but the exchange's where the source writes UTC."""
    if table.offsets is None or table.offsets.any() or calendar.zone == "UTC":
        return table.dates.astype("datetime64[D]")
    return calendars.to_zone(table.dates.astype("datetime64[s]"), calendar.zone).astype("datetime64[D]")


def _days_of(
    stamps: Dates, matrix: Values, columns: Sequence[str], calendar: Calendar, grid: BarGrid
) -> tuple[Dates, Values, int]:
    """Sessions and their values from shorter bars, and how many rows lie outside the sessions.

    A last session without its last bar is left out: its price was not known yet.
    """
    order = np.argsort(stamps, kind="stable")
    stamps, matrix = stamps[order], matrix[order]
    days = stamps.astype("datetime64[D]")
    sessions = calendar.sessions(days[0] - 2 * calendars.DAY, days[-1] + 2 * calendars.DAY)
    opens, closes = calendar.open_close(sessions)
    # A bar labelled by its end may be stamped with the close; one labelled by its start may begin before the open.
    at_end = grid.label == "end"
    session = np.minimum(np.searchsorted(closes, stamps, side="left" if at_end else "right"), len(closes) - 1)
    length = np.timedelta64(grid.seconds, "s")
    after_open = stamps > opens[session] if at_end else stamps > opens[session] - length
    inside = after_open & (stamps <= closes[session] if at_end else stamps < closes[session])
    labels, frame = sessions[session[inside]], pd.DataFrame(matrix[inside])
    groups = frame.groupby(labels.astype(np.int64))
    values = groups.nth(-1).to_numpy(copy=True)
    for at, column in enumerate(columns):
        if (how := OF_A_DAY.get(plain_name(column))) is not None:
            values[:, at] = groups[at].agg(how).to_numpy()
    dates = np.unique(labels)
    if len(dates):
        bars = calendar.bars(dates[-1], dates[-1], grid)
        if len(bars) and stamps[inside][-1] < bars[-1]:
            dates, values = dates[:-1], values[:-1]
    return dates, values, int((~inside).sum())


def _require_one_row_each(dates: Dates, matrix: Values, origin: str, interval: str) -> None:
    """Refuse a table with several rows for many dates: rows of several symbols, or shorter bars without times."""
    order = np.argsort(dates, kind="stable")
    dates, matrix = dates[order], matrix[order]
    same = dates[1:] == dates[:-1]
    apart = (matrix[1:] > MOST_APART * matrix[:-1]) | (matrix[:-1] > MOST_APART * matrix[1:])
    disagree = same & ((matrix[1:] != matrix[:-1]) & ~np.isnan(matrix[1:]) & ~np.isnan(matrix[:-1])).any(
        axis=1
    )
    repeated = len(np.unique(dates[1:][disagree]))
    if repeated > MOST_REPEATED * len(np.unique(dates)) or (disagree & apart[:, 0]).any():
        first = dates[1:][disagree][0]
        raise DataError(
            f"{origin} has several rows with different prices for {repeated} of its dates (the first is {first}), "
            f"where bars of {interval} allow one; delete the wrong rows, or name the column of the symbols with "
            "`symbol_column`"
        )
