"""Sources: the real Yahoo client against a local server, the cache, and the rule of ``auto``."""

import datetime as dt
import logging
import socket
import time

import numpy as np
import pandas as pd
import pytest
import yfinance
from yahoo_server import DAY, serving

from forecast import load_series
from forecast.config import DataConfig
from forecast.errors import DataError, SourceUnavailable, UnknownSymbol, UsageError
from forecast.prices import cache, yahoo
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
