"""Trading calendars against the schedules of ``exchange_calendars``: ``python -m benchmarks.calendars``.

For ten years of each exchange, every session: the session that follows it, its close, and its hourly bars, which are
computed here from the schedule's open, break and close one by one. It exits with code 1 when any differs.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterator

import numpy as np
import pandas as pd

from forecast.prices.calendars import BarGrid, get

FIRST, LAST = np.datetime64("2015-01-01"), np.datetime64("2024-12-31")
EXCHANGES = (
    "XNYS", "XNAS", "XLON", "XETR", "XPAR", "XAMS", "XMIL", "XMAD", "XSWX", "XSTO",
    "XHKG", "XTKS", "XSHG", "XKRX", "XBOM", "XASX", "XTSE", "BVMF", "XJSE", "CMES", "24/7",
)  # fmt: skip
HOUR = BarGrid(3600)


def main() -> None:
    """Print a line per exchange, and the total."""
    checked = wrong = 0
    print("| exchange | sessions checked | wrong | bars checked | seconds |")
    print("|---|---|---|---|---|")
    for name in EXCHANGES:
        started = time.perf_counter()
        sessions, bars, differing = check(name)
        checked, wrong = checked + sessions, wrong + differing
        print(
            f"| {name} | {sessions} | {differing} | {bars} | {time.perf_counter() - started:.1f} |",
            flush=True,
        )
    print(f"| total | {checked} | {wrong} | | |")
    sys.exit(1 if wrong else 0)


def check(name: str) -> tuple[int, int, int]:
    """The number of sessions and bars of ten years, and how many sessions differ in any way."""
    schedule = read_schedule(name)
    calendar = get(name)
    sessions = schedule.index.to_numpy().astype("datetime64[D]")
    known = int((sessions <= LAST).sum())
    closes = calendar.closes(sessions[:known], "1d")
    bars = wrong = 0
    for number, session in enumerate(sessions[:known]):
        row = schedule.iloc[number]
        following = calendar.next_bars(session, "1d", 1)
        expected = list(hours(row))
        stamps = calendar.bars(session, session, HOUR)
        bars += len(expected)
        right = (
            following is not None
            and following[0] == sessions[number + 1]
            and closes[number] == seconds(row["close"])
            and len(stamps) == len(expected)
            and bool((stamps == np.array(expected)).all())
        )
        wrong += not right
    return known, bars, wrong


def read_schedule(name: str) -> pd.DataFrame:
    """The library's schedule of ten years and some days."""
    import exchange_calendars

    with warnings.catch_warnings(action="ignore"):
        return exchange_calendars.get_calendar(name, start=str(FIRST), end=str(LAST + 60)).schedule


def hours(row: pd.Series) -> Iterator[np.datetime64]:
    """The starts of a session's hourly bars, from its open and from the end of its break."""
    halves = [(row["open"], row["close"])]
    if not pd.isna(row["break_start"]):
        halves = [(row["open"], row["break_start"]), (row["break_end"], row["close"])]
    for start, end in halves:
        while start < end:
            yield seconds(start)
            start += pd.Timedelta(hours=1)


def seconds(moment: pd.Timestamp) -> np.datetime64:
    return np.datetime64(int(moment.timestamp()), "s")


if __name__ == "__main__":
    main()
