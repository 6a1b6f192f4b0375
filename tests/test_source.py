"""Sources: the real Yahoo client against a local server, the cache, and the rule of ``auto``."""

import datetime as dt
import logging
import socket
import subprocess
import sys
import textwrap
import threading
import time
from email.utils import format_datetime

import numpy as np
import pandas as pd
import pytest
import yfinance
from yahoo_server import DAY, serving

from forecast import load_series
from forecast.config import DataConfig
from forecast.errors import DataError, SourceStopped, SourceUnavailable, UnknownSymbol, UsageError
from forecast.prices import cache, many, yahoo
from forecast.prices.panel import load_panel
from forecast.prices.table import Table


@pytest.fixture(autouse=True)
def _fast_and_clean_client(monkeypatch, tmp_path_factory):
    monkeypatch.setattr(yahoo, "FIRST_WAIT", 0.01)
    # The client remembers time zones in a file and in the process; each test starts with neither.
    yfinance.set_tz_cache_location(str(tmp_path_factory.mktemp("yfinance")))
    monkeypatch.setattr(yfinance.cache._TzCacheManager, "_tz_cache", None)
    # Cookies and crumbs come from other addresses; the chart needs neither.
    monkeypatch.setattr(
        yfinance.data.YfData, "_get_cookie_and_crumb", lambda self, timeout=30: (None, "basic")
    )


@pytest.fixture
def yahoo_at(monkeypatch):
    """Point the client at an address."""

    def point(url):
        for module in (yfinance.const, yfinance.base, yfinance.scrapers.history, yfinance.scrapers.quote):
            monkeypatch.setattr(module, "_BASE_URL_", url)
        for module in (yfinance.const, yfinance.base, yfinance.scrapers.quote):
            monkeypatch.setattr(module, "_QUERY1_URL_", url)
        monkeypatch.setattr(yfinance.scrapers.quote, "_QUOTE_SUMMARY_URL_", f"{url}/v10/finance/quoteSummary")

    return point


@pytest.fixture
def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{probe.getsockname()[1]}"


def test_yahoo_gives_closes_by_calendar_day(yahoo_at):
    with serving() as server:
        yahoo_at(server.url)
        series = load_series(source="yahoo")
    assert series.values.tolist() == [100.0 + row for row in range(50)]
    assert str(series.dates[0]) == "2023-11-15"
    assert series.provenance.source == series.provenance.requested == "yahoo"
    assert series.provenance.retrieved == str(dt.datetime.now(dt.UTC).date())


def test_hours_from_yahoo_and_from_their_cached_copy_are_the_same_and_yahoos_limit_is_said(
    yahoo_at, closed_port
):
    said = []
    with serving() as server:
        yahoo_at(server.url)
        server.step = 3600
        hours = load_series(interval="1h", notify=said.append)
    assert any("Yahoo Finance gives bars of 1h for the last 730 days only" in line for line in said)
    assert (hours.timeline.interval, hours.timeline.calendar_name, len(hours)) == ("1h", "24/7", 50)
    yahoo_at(closed_port)
    kept = load_series(interval="1h", notify=None)
    assert kept.provenance.source == "cache"
    assert kept.provenance.sha256 == hours.provenance.sha256


def test_a_missing_price_from_yahoo_is_dropped_and_counted(yahoo_at):
    with serving() as server:
        yahoo_at(server.url)
        server.closes[7] = None
        series = load_series(source="yahoo")
    assert len(series) == 49
    assert {rule.rule: rule.found for rule in series.integrity.rules if rule.found} == {
        "non_finite": 1,
        "holes": 1,
    }


@pytest.mark.parametrize(("session_ended", "rows"), [(False, 49), (True, 50)])
def test_todays_row_counts_only_once_its_session_has_ended(yahoo_at, session_ended, rows):
    today = int(dt.datetime.combine(dt.datetime.now(dt.UTC).date(), dt.time(), dt.UTC).timestamp())
    with serving() as server:
        yahoo_at(server.url)
        server.first = today - 49 * DAY
        server.session_end = today + 1 if session_ended else today + DAY - 1
        assert len(load_series(source="yahoo")) == rows


@pytest.mark.parametrize(
    ("mode", "error", "message"),
    [
        ("unknown", UnknownSymbol, "has no prices for 'BTC-USD'"),
        ("empty", UnknownSymbol, "has no prices for 'BTC-USD'"),
        ("rate_limit", SourceUnavailable, "limits the rate"),
        ("refusal", SourceUnavailable, r"could not be read \(it answered: An internal error\)"),
        ("garbage", SourceUnavailable, "could not be read"),
    ],
)
def test_each_failure_of_yahoo_is_told_apart_in_one_line(yahoo_at, mode, error, message):
    with serving(mode) as server:
        yahoo_at(server.url)
        with pytest.raises(error, match=message) as caught:
            load_series(source="yahoo")
    assert "\n" not in str(caught.value)


def test_no_network_is_said_as_such(yahoo_at, closed_port):
    yahoo_at(closed_port)
    with pytest.raises(SourceUnavailable, match=r"could not be read \(Failed to connect"):
        load_series(source="yahoo")


def test_a_server_that_never_answers_is_given_up_on(yahoo_at, monkeypatch):
    monkeypatch.setattr(yahoo, "TOTAL_TIMEOUT", 0.5)
    with serving("slow") as server:
        yahoo_at(server.url)
        started = time.monotonic()
        with pytest.raises(SourceUnavailable, match=r"did not answer within 0\.5 s"):
            load_series(source="yahoo")
        assert time.monotonic() - started < 4


@pytest.mark.parametrize(("mode", "asked"), [("garbage", yahoo.ATTEMPTS), ("unknown", 1)])
def test_an_unreachable_yahoo_is_asked_again_and_an_unknown_symbol_is_not(yahoo_at, monkeypatch, mode, asked):
    attempts = []
    real = yahoo._fetch_once
    monkeypatch.setattr(yahoo, "_fetch_once", lambda *asked: attempts.append(asked) or real(*asked))
    with serving(mode) as server:
        yahoo_at(server.url)
        with pytest.raises(DataError):
            load_series(source="yahoo")
    assert len(attempts) == asked


def test_a_short_outage_of_yahoo_is_outlasted(yahoo_at):
    with serving() as server:
        yahoo_at(server.url)
        server.garbage_first = 2  # the client itself asks twice
        assert len(load_series(source="yahoo")) == 50


def test_the_clients_settings_are_left_as_they_were(yahoo_at):
    assert yfinance.config.debug.hide_exceptions
    level = logging.getLogger("yfinance").level
    with serving("garbage") as server:
        yahoo_at(server.url)
        with pytest.raises(SourceUnavailable):
            load_series(source="yahoo")
    assert yfinance.config.debug.hide_exceptions
    assert logging.getLogger("yfinance").level == level


def test_auto_uses_yahoo_and_then_its_own_copy_of_it_saying_so(yahoo_at, closed_port):
    lines = []
    with serving() as server:
        yahoo_at(server.url)
        fresh = load_series(notify=lines.append)
    assert lines == []
    assert fresh.provenance.fallback is None
    yahoo_at(closed_port)
    copy = load_series(notify=lines.append)
    assert np.array_equal(copy.values, fresh.values)
    assert copy.provenance.source == "cache"
    assert copy.provenance.sha256 == fresh.provenance.sha256
    assert len(lines) == 1
    assert "Failed to connect" in lines[0]
    assert "the local cache of BTC-USD instead, 2023-11-15 to 2024-01-03" in lines[0]


def test_auto_falls_back_to_the_snapshot_and_records_why(yahoo_at, closed_port, capsys):
    lines = []
    yahoo_at(closed_port)
    series = load_series(notify=lines.append)
    assert series.provenance.source == "snapshot"
    assert series.provenance.fallback in lines[0]
    assert "the bundled snapshot of BTC-USD instead, 2014-11-28 to 2020-01-17" in lines[0]
    load_series(notify=None)
    assert capsys.readouterr().err == ""


def test_auto_never_answers_with_another_symbols_prices(yahoo_at, closed_port):
    with serving() as server:
        yahoo_at(server.url)
        load_series("BTC-USD")
        with pytest.raises(DataError, match=r"no cached copy or snapshot of 'ETH-USD'.*`source`"):
            load_series("ETH-USD")
    # Even if a copy is stored under the other symbol's name.
    cache.cache_path("BTC-USD").rename(cache.cache_path("ETH-USD"))
    yahoo_at(closed_port)
    with pytest.raises(DataError, match="no cached copy or snapshot of 'ETH-USD'"):
        load_series("ETH-USD")


def test_source_yahoo_never_falls_back(yahoo_at, closed_port):
    with serving() as server:
        yahoo_at(server.url)
        load_series(source="yahoo")
    yahoo_at(closed_port)
    with pytest.raises(SourceUnavailable):
        load_series(source="yahoo")


def test_a_copy_with_any_one_bit_changed_is_as_none_or_whole(snapshot):
    prices = pd.DataFrame({"Close": snapshot.values[:100], "Volume": np.full(100, np.nan)})
    kept = Table(snapshot.dates[:100], prices, dt.date(2020, 1, 17), "Yahoo", dt.date(2020, 1, 17))
    assert cache.store("BTC-USD", kept) is None
    path = cache.cache_path("BTC-USD")
    content = path.read_bytes()
    refused = 0
    for position in range(0, len(content), 37):
        path.write_bytes(
            content[:position] + bytes([content[position] ^ 1 << position % 8]) + content[position + 1 :]
        )
        copy = cache.load("BTC-USD")
        refused += copy is None
        assert copy is None or (copy.columns.equals(prices) and (copy.dates == kept.dates).all())
    path.write_bytes(content[: len(content) // 2])
    assert cache.load("BTC-USD") is None
    assert refused > 10


def test_a_cache_that_cannot_be_written_is_said_and_not_fatal(yahoo_at, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("FORECAST_CACHE_DIR", str(tmp_path / "file"))
    lines = []
    with serving() as server:
        yahoo_at(server.url)
        assert len(load_series(notify=lines.append)) == 50
    assert "could not be kept in the cache" in lines[0]


@pytest.mark.parametrize("symbol", ["^GSPC", "BTC-USD", "a/b", "../x", "BRK.B", "é"])
def test_every_symbol_has_its_own_file_inside_the_cache(symbol):
    path = cache.cache_path(symbol)
    assert path.parent == cache.cache_path("X").parent
    assert len({cache.cache_path(s) for s in ("a/b", "a_b", "a%2Fb")}) == 3


def test_the_snapshot_is_the_whole_file_but_its_partial_last_day(snapshot):
    assert (len(snapshot), str(snapshot.dates[0]), str(snapshot.dates[-1])) == (
        1864,
        "2014-11-28",
        "2020-01-16",
    )
    found = {rule.rule: rule for rule in snapshot.integrity.rules if rule.found}
    assert set(found) == {"partial_last_day", "holes", "stale_runs"}
    assert found["holes"].detail == "12 sessions missing, the longest between 2019-03-19 and 2019-04-01"


def test_start_is_included_and_end_is_not():
    series = load_series(source="snapshot", start="2019-01-01", end=dt.date(2019, 1, 4))
    assert [str(day) for day in series.dates] == ["2019-01-01", "2019-01-02", "2019-01-03"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"start": "2020-01-01", "end": "2019-01-01"},
            UsageError,
            "2020-01-01 is not before `end` 2019-01-01",
        ),
        ({"start": "yesterday"}, UsageError, "`start` yesterday"),
        (
            {"start": "2030-01-01"},
            DataError,
            "from 2014-11-28 to 2020-01-16, but nothing from 2030-01-01; change",
        ),
        (
            {"feature": "Price"},
            DataError,
            "no feature 'Price'; choose one of: Open, High, Low, Close, Volume",
        ),
        ({"symbol": "ETH-USD"}, DataError, "no snapshot of 'ETH-USD', only of BTC-USD"),
    ],
)
def test_what_cannot_be_had_is_refused_with_what_can(arguments, error, message):
    with pytest.raises(error) as caught:
        load_series(**({"source": "snapshot"} | arguments))
    assert message in str(caught.value)


def test_an_unknown_source_lists_the_known_ones():
    with pytest.raises(
        UsageError, match="`source` bloomberg: give auto, yahoo, snapshot, the path of a file"
    ):
        load_series(source="bloomberg")


def test_another_feature_of_the_snapshot_is_read():
    high = load_series(feature="high", source="snapshot")
    assert high.values[0] == 381.34


def test_load_series_and_the_configuration_have_the_same_defaults():
    import inspect

    parameters = inspect.signature(load_series).parameters
    for name in ("symbol", "feature", "source", "start", "end", "keep_non_positive"):
        assert parameters[name].default == DataConfig.model_fields[name].default


UNIVERSE = {f"S{number:02}-USD": 1.0 + number for number in range(12)}
"""Symbols, and the factor of their prices."""


@pytest.fixture
def universe(yahoo_at, monkeypatch):
    """A server that knows the symbols of ``UNIVERSE``, and pauses of tenths of a second."""
    monkeypatch.setattr(many, "FIRST_PAUSE", 0.3)
    with serving() as server:
        yahoo_at(server.url)
        server.symbols = dict(UNIVERSE)
        yield server


def closes_of(panel):
    return {symbol: series.values[0] / 100 for symbol, series in panel.series.items()}


def test_many_symbols_are_fetched_at_the_same_time_each_with_its_own_prices(universe):
    panel = load_panel([*UNIVERSE, "NOPE-USD"], source="yahoo")
    assert closes_of(panel) == UNIVERSE
    assert list(panel.series) == list(UNIVERSE)
    assert list(panel.left_out) == ["NOPE-USD"]
    assert "has no prices for 'NOPE-USD'" in panel.left_out["NOPE-USD"]
    assert {series.provenance.source for series in panel.series.values()} == {"yahoo"}
    assert yfinance.config.debug.hide_exceptions


@pytest.mark.parametrize("retry_after", [None, "1", "date"])
def test_a_limit_of_the_rate_is_waited_for_and_said_in_one_line(universe, retry_after):
    if retry_after == "date":
        at = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=2)
        retry_after = format_datetime(at.replace(microsecond=0), usegmt=True)
    universe.retry_after, universe.limited = retry_after, range(10, 20)
    said = []
    panel = load_panel([*UNIVERSE], source="yahoo", notify=said.append)
    assert closes_of(panel) == UNIVERSE
    assert said
    for line in said:
        assert line.startswith("Yahoo Finance limits the rate of requests; waiting ")
        assert line.endswith(" of 12 symbols fetched)")
    # Requests that were under way when a pause began fall into it.
    assert max(np.diff(universe.times)) > (0.5 if retry_after else 0.15)


def test_pauses_grow_and_end_and_a_second_run_asks_only_for_what_is_missing(universe, monkeypatch):
    monkeypatch.setattr(many, "LONGEST_PAUSES", 2.0)
    universe.limited = range(10, 10_000)
    said = []
    with pytest.raises(
        SourceUnavailable, match=r"limits the rate .* is kept \(prices of (\d+) of 12 symbols fetched\)"
    ) as caught:
        load_panel([*UNIVERSE], source="yahoo", notify=said.append)
    fetched = int(str(caught.value).partition("prices of ")[2].split()[0])
    assert 0 < fetched < 12
    assert 2 <= len(said) <= 4
    before = len(universe.requests)
    universe.limited = range(0)
    again = []
    panel = load_panel([*UNIVERSE], source="yahoo", notify=again.append)
    assert closes_of(panel) == UNIVERSE
    assert len(universe.asked(before)) == 12 - fetched
    (line,) = again
    assert line.startswith(
        f"prices of {fetched} of 12 symbols were fetched before, and no bar has ended since"
    )


def test_what_was_fetched_before_a_kill_is_not_asked_for_again(universe):
    universe.limited = range(10, 10_000)
    code = f"""
        import yfinance
        yfinance.set_tz_cache_location({yfinance.cache._TzDBManager.get_location()!r})
        yfinance.data.YfData._get_cookie_and_crumb = lambda self, timeout=30: (None, "basic")
        for module in (yfinance.const, yfinance.base, yfinance.scrapers.history, yfinance.scrapers.quote):
            module._BASE_URL_ = {universe.url!r}
        from forecast.prices.panel import load_panel
        load_panel({[*UNIVERSE]!r}, source="yahoo")
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stderr=subprocess.PIPE, text=True
    ) as program:
        assert "waiting" in program.stderr.readline()
        program.kill()
    kept = [symbol for symbol in UNIVERSE if cache.load(symbol) is not None]
    assert kept
    before = len(universe.requests)
    universe.limited = range(0)
    assert closes_of(load_panel([*UNIVERSE], source="yahoo")) == UNIVERSE
    assert universe.asked(before) == set(UNIVERSE) - set(kept)


def test_auto_uses_the_copies_of_many_symbols_in_one_line_and_stops_for_one_without(
    universe, closed_port, yahoo_at, monkeypatch
):
    load_panel([*UNIVERSE], notify=None)
    monkeypatch.setattr(cache, "load_current", lambda *asked: None)
    yahoo_at(closed_port)
    said = []
    panel = load_panel([*UNIVERSE], notify=said.append)
    assert closes_of(panel) == UNIVERSE
    assert {series.provenance.source for series in panel.series.values()} == {"cache"}
    assert len(said) == 1
    assert "Failed to connect" in said[0]
    assert "the oldest copy ends on 2024-01-03" in said[0]
    with pytest.raises(SourceUnavailable, match="no cached copy or snapshot of 'NEW-USD'"):
        load_panel([*UNIVERSE, "NEW-USD"], notify=None)


@pytest.mark.parametrize(
    ("symbol", "exchange", "interval", "taken", "current_until"),
    [
        ("A", "NMS", "1d", dt.date(2024, 1, 5), "2024-01-05 20:59"),
        ("A", "NMS", "1d", dt.date(2024, 1, 6), "2024-01-08 20:59"),
        ("BTC-USD", "CCC", "1d", dt.date(2024, 1, 5), "2024-01-05 23:59"),
        ("7203.T", None, "1d", dt.date(2024, 1, 5), "2024-01-05 05:59"),
        ("A", "NMS", "1wk", dt.datetime(2024, 1, 5, 18, tzinfo=dt.UTC), "2024-01-05 20:59"),
        ("A", "NMS", "15m", dt.datetime(2024, 1, 5, 16, 31, tzinfo=dt.UTC), "2024-01-05 16:44"),
        ("A", "NMS", "1h", dt.datetime(2024, 1, 5, 21, 1, tzinfo=dt.UTC), "2024-01-08 14:59"),
    ],
)
def test_a_copy_is_current_until_the_next_bar_ends(symbol, exchange, interval, taken, current_until):
    prices = pd.DataFrame({"Close": [1.0, 2.0]})
    intraday = interval not in ("1d", "1wk")
    dates = np.array(["2024-01-03", "2024-01-04"], "datetime64[s]" if intraday else "datetime64[D]")
    offsets = np.zeros(2, np.int64) if intraday else None
    table = Table(dates, prices, taken, "Yahoo", dt.date(2024, 1, 5), offsets=offsets, exchange=exchange)
    assert cache.store(symbol, table, interval) is None
    last = dt.datetime.fromisoformat(current_until).replace(tzinfo=dt.UTC)
    assert cache.load_current(symbol, interval, last) is not None
    assert cache.load_current(symbol, interval, last + dt.timedelta(minutes=1)) is None
    assert cache.load_current("OTHER", interval, last) is None


def test_a_symbol_of_no_known_calendar_is_always_asked_for():
    dates, prices = np.array(["2024-01-03"], "datetime64[D]"), pd.DataFrame({"Close": [1.0]})
    noon = dt.datetime(2024, 1, 5, 12, tzinfo=dt.UTC)
    for exchange in ("NMS", None):
        cache.store("X", Table(dates, prices, noon.date(), "Yahoo", exchange=exchange))
        assert (cache.load_current("X", "1d", noon) is None) == (exchange is None)


def test_a_source_of_many_symbols_that_does_not_answer_is_not_asked_for_all():
    asked = []

    def ask(symbol):
        asked.append(threading.get_ident())
        raise SourceUnavailable("no answer; try again")

    answers = many.ask_for_many([f"S{number}" for number in range(100)], ask, print)
    # A source that is asked for one symbol at a time may keep a connection that is of its thread alone.
    assert asked == [threading.get_ident()] * many.MOST_UNANSWERED
    assert len(answers) == 100
    assert all(isinstance(answer, SourceStopped) for answer in answers.values())
    assert str(answers["S99"]) == "no answer; try again (prices of 0 of 100 symbols fetched)"


def test_symbols_that_are_asked_for_side_by_side_get_one_reason_when_their_source_stops():
    def ask(symbol):
        time.sleep(0.01)
        raise SourceUnavailable(f"no answer to {symbol} after {time.monotonic()} s")

    answers = many.ask_for_many([f"S{number}" for number in range(100)], ask, print, at_a_time=4)
    assert len(answers) == 100
    assert len({str(answer) for answer in answers.values()}) == 1


def test_progress_of_many_symbols_is_a_line_now_and_then_and_a_bug_is_raised(monkeypatch):
    monkeypatch.setattr(many, "PROGRESS_SECONDS", 0.0)
    table, said = Table(np.array([], "datetime64[D]"), pd.DataFrame(), dt.date(2024, 1, 1), "x"), []
    assert many.ask_for_many(["A", "B"], lambda symbol: table, said.append) == {"A": table, "B": table}
    assert said == [f"prices of {number} of 2 symbols fetched" for number in (1, 2)]
    with pytest.raises(ZeroDivisionError):
        many.ask_for_many(["A"], lambda symbol: 1 / 0, said.append)
