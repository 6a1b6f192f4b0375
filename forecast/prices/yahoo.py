"""Prices from Yahoo Finance, through the yfinance client."""

from __future__ import annotations

import datetime as dt
import logging
import re
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from email.utils import parsedate_to_datetime
from typing import Any
from zoneinfo import ZoneInfo

import pandas as pd

from forecast.errors import RateLimited, SourceUnavailable, UnknownSymbol
from forecast.prices.dates import parse_dates
from forecast.prices.table import Table

AT_A_TIME = 4
"""Number of symbols that are fetched at a time."""
ATTEMPTS = 3
"""Number of attempts before Yahoo counts as unreachable."""
FIRST_WAIT = 0.5
"""Seconds before the second attempt; doubled before each later one."""
REQUEST_TIMEOUT = 10.0
"""Seconds one request may take."""
TOTAL_TIMEOUT = 30.0
"""Seconds after which Yahoo counts as unreachable, whatever its client is doing."""
NO_SUCH_SYMBOL = re.compile(r"no data found|not found|delisted|data doesn't exist", re.IGNORECASE)
"""Yahoo's words for a symbol without prices; every other reason is a failure on Yahoo's side."""


PERIODS = {"1m": "7d", "5m": "60d", "15m": "60d", "30m": "60d", "1h": "730d"}
"""The longest history that Yahoo gives of intraday bars; of longer bars it gives all."""


def fetch(symbol: str, interval: str = "1d") -> Table:
    """Fetch the bars of ``symbol`` as far back as Yahoo gives them, prices not adjusted for dividends.

    Several threads may fetch at the same time.

    Raises:
        UnknownSymbol: when Yahoo answers that it has no prices under that symbol.
        RateLimited: when Yahoo limits the rate of requests.
        SourceUnavailable: when Yahoo does not answer, or gives any other answer.
    """
    result: list[Table | BaseException] = []

    def work() -> None:
        try:
            result.append(_fetch_with_retries(symbol, interval))
        except BaseException as error:
            result.append(error)

    # The client also makes requests (cookies, crumbs) with time limits that we do not set: the thread bounds
    # them all.
    thread = threading.Thread(target=work, name="yahoo", daemon=True)
    with _exceptions_shown():
        thread.start()
        thread.join(TOTAL_TIMEOUT)
    if not result:
        raise SourceUnavailable(f"Yahoo Finance did not answer within {TOTAL_TIMEOUT:g} s")
    if isinstance(result[0], BaseException):
        raise result[0]
    return result[0]


_client_lock = threading.Lock()
_client_users = 0
_client_settings = ExitStack()
"""Undoes our settings of the client, which apply to the whole process."""


@contextmanager
def _exceptions_shown() -> Iterator[None]:
    """While any thread asks, let the client raise its failures instead of logging them and returning an empty frame."""
    global _client_users
    with _client_lock:
        _client_users += 1
        if _client_users == 1:
            _client_settings.enter_context(_changed_settings())
    try:
        yield
    finally:
        with _client_lock:
            _client_users -= 1
            if not _client_users:
                _client_settings.close()


@contextmanager
def _changed_settings() -> Iterator[None]:
    import yfinance

    debug, log = yfinance.config.debug, logging.getLogger("yfinance")
    hidden, level = debug.hide_exceptions, log.level
    debug.hide_exceptions = False
    log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            # The client's use of pandas causes these warnings; neither we nor the user can fix them.
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        debug.hide_exceptions = hidden
        log.setLevel(level)


def _fetch_with_retries(symbol: str, interval: str) -> Table:
    deadline = time.monotonic() + TOTAL_TIMEOUT
    wait = FIRST_WAIT
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _fetch_once(symbol, interval)
        except RateLimited:
            raise  # asking again at once would prolong the limit
        except SourceUnavailable:
            if attempt == ATTEMPTS or time.monotonic() + wait > deadline:
                raise
            time.sleep(wait)
            wait *= 2
    raise AssertionError("every attempt returns or raises")


def _fetch_once(symbol: str, interval: str) -> Table:
    from yfinance.exceptions import YFRateLimitError, YFTickerMissingError

    try:
        frame, meta = _history(symbol, interval)
    except YFTickerMissingError as error:
        reason = str(error.rationale)
        # The client calls every refusal a missing symbol, even an outage at Yahoo; Yahoo's words differ.
        if getattr(error, "yahoo_reason", None) and not NO_SUCH_SYMBOL.search(reason):
            raise SourceUnavailable(f"Yahoo Finance could not be read (it answered: {reason})") from error
        raise UnknownSymbol(
            f"Yahoo Finance has no prices for {symbol!r} ({reason}); check the symbol's spelling"
        ) from error
    except YFRateLimitError as error:
        raise RateLimited(
            "Yahoo Finance limits the rate of requests; try again later, what was fetched is kept",
            _retry_after(error),
        ) from error
    except Exception as error:  # whatever the client's network and parsing layers raise
        raise SourceUnavailable(f"Yahoo Finance could not be read ({_short(error)})") from error
    if frame.empty:
        raise UnknownSymbol(f"Yahoo Finance has no prices for {symbol!r}; check the symbol's spelling")
    stamps = parse_dates(frame.index.to_series(), "Yahoo Finance, row {}".format)
    now, intraday = dt.datetime.now(dt.UTC), interval in PERIODS
    limit = (
        f"Yahoo Finance gives bars of {interval} for the last {PERIODS[interval][:-1]} days only"
        if intraday
        else ""
    )
    return Table(
        dates=stamps.local if intraday else stamps.days,
        columns=frame.reset_index(drop=True),
        as_of=first_incomplete_day(meta, now) if interval == "1d" else now,
        origin="Yahoo Finance",
        retrieved=now.date(),
        offsets=stamps.offsets if intraday else None,
        exchange=str(meta["exchangeName"]) if "exchangeName" in meta else None,
        notes=(limit,) if limit else (),
    )


def _history(symbol: str, interval: str) -> tuple[pd.DataFrame, Mapping[str, Any]]:
    """Prices and the chart's metadata; raises what the client raises."""
    import yfinance
    from yfinance.exceptions import YFTzMissingError

    # The client caches time zones without an expiry, which would give a second attempt the first one's bad
    # answer.
    yfinance.data.YfData.cache_get.cache_clear()
    ticker = yfinance.Ticker(symbol)
    try:
        # Rows without a price are kept here, so that the integrity rules count them.
        frame = ticker.history(
            period=PERIODS.get(interval, "max"),
            interval=interval,
            auto_adjust=False,
            actions=False,
            keepna=True,
            timeout=REQUEST_TIMEOUT,
        )
    except YFTzMissingError:
        # This error gives no reason. A short chart needs no time zone, and its failure carries Yahoo's reason.
        ticker.history(period="5d", timeout=REQUEST_TIMEOUT)
        raise ValueError(f"no time zone for {symbol!r}") from None
    return frame, ticker.get_history_metadata() or {}


def _retry_after(error: Exception) -> float | None:
    """The seconds that Yahoo's answer asks to wait; None where it does not say.

    The client's error does not hold the answer; only the frames of its traceback do.
    """
    answers = (frame.f_locals.get("response") for frame, _ in traceback.walk_tb(error.__traceback__))
    given = next((answer.headers.get("Retry-After") for answer in answers if answer is not None), None)
    if given is None or given.isdigit():
        return given and float(given)
    try:
        return (parsedate_to_datetime(given) - dt.datetime.now(dt.UTC)).total_seconds()
    except (ValueError, TypeError):  # no date, or one without a zone
        return None


def first_incomplete_day(meta: Mapping[str, Any], now: dt.datetime) -> dt.date:
    """The exchange's current day, or the next one once today's session has ended.

    Args:
        meta: the chart's metadata, with ``exchangeTimezoneName`` and ``currentTradingPeriod``.
        now: the current time, with a time zone.
    """
    try:
        zone: dt.tzinfo = ZoneInfo(str(meta["exchangeTimezoneName"]))
    except (KeyError, ValueError, OSError):
        zone = dt.UTC
    today = now.astimezone(zone).date()
    try:
        end = meta["currentTradingPeriod"]["regular"]["end"]
        ended = dt.datetime.fromtimestamp(float(getattr(end, "timestamp", lambda: end)()), zone)
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        return today
    return today + dt.timedelta(days=1) if ended.date() == today and now >= ended else today


def _short(error: Exception) -> str:
    """Shorten a client's error to one line: curl's message without its preamble, or the error's type and text."""
    text = " ".join(str(error).split())
    curl = re.search(r"curl: \(\d+\) (.+?)(?:\. See https?:|$)", text)
    return curl.group(1) if curl else f"{type(error).__name__}: {text[:160]}"
