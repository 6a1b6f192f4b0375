"""From the rows of a table to the bars of a series: their length, their calendar, and days from shorter bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forecast.errors import DataError
from forecast.names import plain_name
from forecast.prices import calendars
from forecast.prices.calendars import Calendar, Choice
from forecast.prices.intervals import INTERVALS
from forecast.prices.table import Table
from forecast.prices.timeline import Timeline

Dates = NDArray[np.datetime64]
Values = NDArray[np.float64]

DAY = 86_400
SHORTEST_DAY = DAY - 7200
"""Seconds from which on a step between times is a day: clocks are put forward by up to two hours."""
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
    own = _own_interval(table.dates)
    shown = own if isinstance(own, str) else f"{own} seconds"
    wanted = own if interval == "auto" or (interval is None and own in BAR_DAYS) else interval or "1d"
    days_from_times = wanted == "1d" and own != "1d" and own not in BAR_DAYS
    if wanted not in INTERVALS or (wanted != own and not days_from_times):
        choices = f"`interval={own}`" if own in INTERVALS else "`interval=1d`"
        raise DataError(
            f"{table.origin} has bars of {shown}, which are not bars of {interval}; use {choices}, or a source with "
            "the bars you want"
        )
    intraday = INTERVALS[wanted].is_intraday
    found = _calendar_of(table, own, symbol, calendar)
    stamps = _in_utc(table, found.calendar, own) if intraday or table.offsets is not None else table.dates
    notes = []
    if days_from_times:
        dates, matrix = _days_of(
            table.dates, stamps, matrix, columns, found.calendar, table.offsets is not None
        )
        notes.append(f"{table.origin} has bars of {shown}; the last one of each session is its day's price")
    elif intraday:
        dates = stamps
    else:
        dates = _days(table, stamps, found.calendar)
    _require_one_row_each(dates, matrix, table.origin, wanted)
    if interval is None and wanted != "1d":
        notes.append(f"{table.origin} has bars of {shown}; they are used as they are")
    grid = None
    if intraday:
        known = np.unique(dates)
        found_grid = calendars.fit_grid(found.calendar, known, INTERVALS[wanted].seconds or 0)
        grid = found_grid[0]
    return Bars(dates, matrix, Timeline(wanted, found.calendar.name, grid), found, tuple(notes))


def _own_interval(dates: Dates) -> str | int:
    """The name of a table's bar length, or its seconds when it has no name: the most frequent step between rows."""
    steps = np.diff(np.unique(dates.astype("datetime64[s]"))).astype(np.int64)
    if not len(steps):
        return "1d"
    lengths, counts = np.unique(steps, return_counts=True)
    step = int(lengths[np.argmax(counts)])
    if step < SHORTEST_DAY:
        return next((name for name, interval in INTERVALS.items() if interval.seconds == step), step)
    days = round(step / DAY)
    return next((name for name, (least, most) in BAR_DAYS.items() if least <= days <= most), "1d")


def _calendar_of(table: Table, own: str | int, symbol: str, name: str | None) -> Choice:
    interval = own if isinstance(own, str) and own in BAR_DAYS else "1d"
    days = np.unique(table.dates.astype("datetime64[D]"))
    if name is None:
        return calendars.choose_calendar(days, interval=interval, symbol=symbol, exchange=table.exchange)
    calendar = calendars.get(name)
    fit = calendars.measure_fit(calendar, days, interval) or calendars.Fit(0.0, 0.0)
    return Choice(calendar, fit, "it was asked for")


def _in_utc(table: Table, calendar: Calendar, own: str | int) -> Dates:
    """The rows' times in UTC; a time without a zone is on the exchange's clock, or in UTC if only that fits."""
    local = table.dates.astype("datetime64[s]")
    if table.offsets is not None:
        utc: Dates = local - table.offsets.astype("timedelta64[s]")
        return utc
    name = own if isinstance(own, str) and own in INTERVALS else "1m"
    if calendars.zone_of_naive(calendar, local, name) == "utc":
        return local
    utc = calendars.to_utc(local, calendar.zone)
    if np.isnat(utc).any():
        raise DataError(
            f"{table.origin} has the time {local[np.isnat(utc)][0]}, which the clocks of {calendar.zone} skip or show "
            "twice; write times with their offset from UTC"
        )
    return utc


def _days(table: Table, utc: Dates, calendar: Calendar) -> Dates:
    """The days of rows of a day or longer: as they are written, but the exchange's where the source writes UTC."""
    if table.offsets is None or table.offsets.any() or calendar.zone == "UTC":
        return table.dates.astype("datetime64[D]")
    return calendars.to_zone(utc, calendar.zone).astype("datetime64[D]")


def _days_of(
    written: Dates, stamps: Dates, matrix: Values, columns: Sequence[str], calendar: Calendar, zoned: bool
) -> tuple[Dates, Values]:
    """Days and their values from shorter bars."""
    order = np.argsort(stamps, kind="stable")
    days = calendars.to_zone(stamps, calendar.zone) if zoned else written
    frame = pd.DataFrame(matrix[order])
    groups = frame.groupby(days[order].astype("datetime64[D]").astype(np.int64))
    found = groups.nth(-1)
    dates = np.unique(days.astype("datetime64[D]"))
    values = found.to_numpy(copy=True)
    for at, column in enumerate(columns):
        if (how := OF_A_DAY.get(plain_name(column))) is not None:
            values[:, at] = groups[at].agg(how).to_numpy()
    return dates, values


def _require_one_row_each(dates: Dates, matrix: Values, origin: str, interval: str) -> None:
    """Refuse a table with several rows for many dates: rows of several symbols, or shorter bars without times."""
    order = np.argsort(dates, kind="stable")
    dates, matrix = dates[order], matrix[order]
    same = dates[1:] == dates[:-1]
    disagree = same & ((matrix[1:] != matrix[:-1]) & ~np.isnan(matrix[1:]) & ~np.isnan(matrix[:-1])).any(
        axis=1
    )
    repeated = len(np.unique(dates[1:][disagree]))
    if repeated > MOST_REPEATED * len(np.unique(dates)):
        first = dates[1:][disagree][0]
        raise DataError(
            f"{origin} has several rows with different prices for {repeated} of its dates (the first is {first}), "
            f"where bars of {interval} allow one; if it holds several symbols, name their column with `symbol_column`"
        )
