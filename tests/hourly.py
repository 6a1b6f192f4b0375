"""Hourly series made for tests: a market that never closes, and one with sessions, half days and clock changes."""

import warnings

import exchange_calendars
import numpy as np
import pandas as pd


def walk(stamps, start, seed):
    """Prices of a random walk, rounded to cents, whose spread changes."""
    generator = np.random.default_rng(seed)
    size = 0.004 * np.exp(0.5 * np.sin(np.arange(len(stamps)) / 200))
    return np.round(start * np.exp(np.cumsum(size * generator.standard_t(5, len(stamps)))), 2)


def crypto(rows=2400, start="2024-01-01"):
    """Hours of a market that never closes, in UTC."""
    stamps = pd.date_range(start, periods=rows, freq="h", tz="UTC")
    return pd.DataFrame({"Datetime": stamps, "Close": walk(stamps, 42_000, 1)})


def stock(first="2023-10-02", last="2024-12-31"):
    """Hours of New York's sessions as Yahoo labels them, 9:30 to 15:30, fewer on half days, with their offsets."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the library's use of pandas
        schedule = exchange_calendars.get_calendar("XNYS", start=first, end=last).schedule
    stamps = pd.DatetimeIndex(
        [
            stamp
            for opens, closes in zip(schedule["open"].tolist(), schedule["close"].tolist(), strict=True)
            for stamp in pd.date_range(opens, closes, freq="h", inclusive="left")
        ]
    ).tz_convert("America/New_York")
    return pd.DataFrame({"Datetime": stamps, "Close": walk(stamps, 170, 2)})
