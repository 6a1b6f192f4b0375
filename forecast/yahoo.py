"""Daily prices from Yahoo Finance, through the yfinance client."""

from __future__ import annotations

import datetime as dt
import logging
import re
import threading
import time
import warnings
from typing import Any
from zoneinfo import ZoneInfo

from forecast.errors import SourceUnavailable, UnknownSymbol
from forecast.table import Table

ATTEMPTS = 3
"""Times Yahoo is asked before it counts as unreachable."""
FIRST_WAIT = 0.5
"""Seconds before the second attempt; doubled before each further one."""
REQUEST_TIMEOUT = 10.0
"""Seconds one request may take."""
TOTAL_TIMEOUT = 30.0
"""Seconds after which Yahoo counts as unreachable whatever its client is doing."""


def fetch(symbol: str) -> Table:
    """The whole daily history of ``symbol``, prices not adjusted for dividends.

    Raises:
        UnknownSymbol: when Yahoo answers that it has no prices under that symbol.
        SourceUnavailable: when Yahoo does not answer, limits the rate, or answers with something else.
    """
    result: list[Table | BaseException] = []

    def work() -> None:
        try:
            result.append(_fetch_with_retries(symbol))
        except BaseException as error:
            result.append(error)

    # The client makes requests of its own (cookies, crumbs) with time limits we do not set: the thread
    # bounds them all.
    thread = threading.Thread(target=work, name="yahoo", daemon=True)
    thread.start()
    thread.join(TOTAL_TIMEOUT)
    if not result:
        raise SourceUnavailable(f"Yahoo Finance did not answer within {TOTAL_TIMEOUT:g} s")
    if isinstance(result[0], BaseException):
        raise result[0]
    return result[0]


def _fetch_with_retries(symbol: str) -> Table:
    deadline = time.monotonic() + TOTAL_TIMEOUT
    wait = FIRST_WAIT
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _fetch_once(symbol)
        except SourceUnavailable:
            if attempt == ATTEMPTS or time.monotonic() + wait > deadline:
                raise
            time.sleep(wait)
            wait *= 2
    raise AssertionError("every attempt returns or raises")


def _fetch_once(symbol: str) -> Table:
    import yfinance as yf
    from yfinance.exceptions import YFRateLimitError, YFTickerMissingError

    # Failures come as exceptions, not as log lines and an empty frame.
    yf.config.debug.hide_exceptions = False
    logging.getLogger("yfinance").setLevel(logging.CRITICAL)
    ticker = yf.Ticker(symbol)
    try:
        with warnings.catch_warnings():
            # The client's own use of pandas; nothing of it is ours or the user's to mend.
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            frame = ticker.history(
                period="max", interval="1d", auto_adjust=False, actions=False, timeout=REQUEST_TIMEOUT
            )
        meta: dict[str, Any] = ticker.get_history_metadata() or {}
    except YFTickerMissingError as error:
        raise UnknownSymbol(
            f"Yahoo Finance has no prices for {symbol!r} ({error.rationale}); check the symbol's spelling"
        ) from error
    except YFRateLimitError as error:
        raise SourceUnavailable("Yahoo Finance limits the rate of requests; try again later") from error
    except Exception as error:  # whatever the client's network and parsing layers raise
        raise SourceUnavailable(f"Yahoo Finance could not be read ({_short(error)})") from error
    if frame.empty:
        raise UnknownSymbol(f"Yahoo Finance has no prices for {symbol!r}; check the symbol's spelling")
    days = frame.index.tz_localize(None).to_numpy().astype("datetime64[D]")
    now = dt.datetime.now(dt.UTC)
    return Table(
        dates=days,
        columns=frame.reset_index(drop=True),
        as_of=first_incomplete_day(meta, now),
        origin="Yahoo Finance",
        retrieved=now.date(),
    )


def first_incomplete_day(meta: dict[str, Any], now: dt.datetime) -> dt.date:
    """The exchange's current day, or the next one once today's session has ended.

    Args:
        meta: the chart's metadata, with ``exchangeTimezoneName`` and ``currentTradingPeriod``.
        now: an aware time.
    """
    try:
        zone: dt.tzinfo = ZoneInfo(str(meta["exchangeTimezoneName"]))
    except (KeyError, ValueError, OSError):
        zone = dt.UTC
    today = now.astimezone(zone).date()
    try:
        end = meta["currentTradingPeriod"]["regular"]["end"]
        ended = dt.datetime.fromtimestamp(float(getattr(end, "timestamp", lambda: end)()), zone)
    except (KeyError, TypeError, ValueError):
        return today
    return today + dt.timedelta(days=1) if ended.date() == today and now >= ended else today


def _short(error: Exception) -> str:
    """The gist of a client's error: curl's own words without their preamble, at most a line."""
    text = " ".join(str(error).split())
    curl = re.search(r"curl: \(\d+\) (.+?)(?:\. See https?:|$)", text)
    return curl.group(1) if curl else f"{type(error).__name__}: {text[:160]}"
