"""Prices from databases: SQLite, and a real PostgreSQL."""

import datetime as dt
import socket
import sqlite3
import sys
from contextlib import closing
from decimal import Decimal

import pytest
from postgres import running_server

from forecast import load_series
from forecast.errors import DataError, SourceUnavailable, UsageError
from forecast.prices import database, locations
from forecast.prices.panel import load_panel

CLOSES = [10.0, 11.0, 12.5, 12.0, 13.0, 14.25]
DAYS = [dt.date(2024, 1, 10 + day) for day in range(6)]
PASSWORD = "p@ss/word:1"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "prices.db"
    with sqlite3.connect(path) as connection:
        connection.execute("create table prices (ticker text, day date, close numeric)")
        connection.execute("create table alone (day date, close real)")
        connection.execute("create view acme as select day, close from prices where ticker = 'ACME'")
        connection.execute("create table empty (day date, close real)")
        for day, close in zip(DAYS, CLOSES, strict=True):
            connection.execute("insert into prices values ('ACME', ?, ?)", (str(day), close))
            connection.execute("insert into prices values ('ZINC', ?, ?)", (str(day), 900))
            connection.execute("insert into alone values (?, ?)", (str(day), close))
    connection.close()
    return path


@pytest.mark.parametrize(
    "query",
    [
        "table=prices",
        "table=alone",
        "table=acme",
        "query=SELECT day, close FROM prices WHERE ticker = 'ACME' AND day LIKE '%25-01-%25'",
        "query=with a as (select * from prices) select * from a",
    ],
)
def test_sqlite_gives_the_rows_of_the_symbol(file, query):
    series = load_series("ACME", source=f"sqlite:///{file}?{query}")
    assert series.values.tolist() == CLOSES
    assert [str(day) for day in series.dates] == [str(day) for day in DAYS]
    assert series.provenance.source == f"sqlite:///{file}?{query}"


def test_only_the_rows_of_the_symbols_are_fetched_in_one_query(file, monkeypatch):
    fetched = []
    frame = database._frame
    monkeypatch.setattr(database, "_frame", lambda result: fetched.append(frame(result)) or fetched[-1])
    load_series("ACME", source=f"sqlite:///{file}?table=prices")
    for names in (["ACME"], ["ACME", "LEAD"], ["all"], ["ACME", "ZINC"]):
        panel = load_panel(names, source=f"sqlite:///{file}?table=prices")
        assert panel.series["ACME"].values.tolist() == CLOSES
        assert list(panel.left_out) == [name for name in names if name == "LEAD"]
    assert [len(rows) for rows in fetched] == [len(DAYS)] * 3 + [2 * len(DAYS)] * 2
    with pytest.raises(DataError, match="holds ACME, ZINC, not LEAD"):
        load_panel(["LEAD", "TIN"], source=f"sqlite:///{file}?table=prices")


def test_a_symbol_that_a_table_writes_in_two_ways_is_not_read_in_halves(file):
    source = f"sqlite:///{file}?table=prices"
    with pytest.raises(DataError, match="holds ACME, ZINC, not acme"):
        load_series("acme", source=source)
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE prices SET ticker = 'Acme' WHERE day > '2024-01-12' AND ticker = 'ACME'")
    panel = load_panel(["ACME", "ZINC"], source=source)
    assert list(panel.series) == ["ZINC"]
    assert panel.left_out["ACME"].endswith("has ACME and Acme; write the symbol in one way")
    with pytest.raises(DataError, match="has ACME and Acme"):
        load_series("ACME", source=source)


@pytest.mark.parametrize(
    ("query", "kind", "message"),
    [
        ("", UsageError, r"no table is named; add \?table= with one of: alone, empty, prices, acme"),
        ("?table=price", UsageError, "no table price; add .* alone, empty, prices, acme"),
        ("?table=prices&query=select 1", UsageError, "one table or one query"),
        ("?query=drop table prices", UsageError, "no SELECT"),
        ("?query=with a as (select 1) delete from prices", DataError, "attempt to write a readonly database"),
        ("?query=select cost from prices", DataError, "no such column: cost.*check the `table`"),
        ("?table=empty", DataError, "has no rows"),
    ],
)
def test_a_wrong_table_or_query_is_refused(file, query, kind, message):
    with pytest.raises(kind, match=message) as caught:
        load_series("ACME", source=f"sqlite:///{file}{query}")
    assert "\n" not in str(caught.value)


def test_a_symbol_that_the_table_lacks_is_refused_with_those_it_has(file):
    with pytest.raises(DataError, match=r"holds ACME, ZINC, not LEAD; choose one of these with `symbol`"):
        load_series("LEAD", source=f"sqlite:///{file}?table=prices")


def test_a_missing_sqlite_file_is_refused_and_not_made(tmp_path):
    for address in (
        f"sqlite:///{tmp_path}/none.db?table=p",
        "sqlite://?table=p",
        "sqlite:///:memory:?table=p",
    ):
        with pytest.raises(DataError, match="no database at"):
            load_series("ACME", source=address)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "p.db").write_text("Date,Close\n" * 100)
    with pytest.raises(DataError, match="file is not a database"):
        load_series("ACME", source=f"sqlite:///{tmp_path}/p.db?table=p")


def test_a_missing_driver_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(
        UsageError, match=r"needs psycopg; run `pip install pareto-price-forecaster\[postgresql\]`"
    ):
        load_series("ACME", source="postgresql://joe@db/market?table=prices")


@pytest.fixture(scope="module")
def server():
    """The host and the port of a PostgreSQL server whose user joe has a password."""
    with running_server("joe", PASSWORD) as running:
        yield running.address


@pytest.fixture(scope="module")
def market(server):
    """The address of a database on the server, without a password."""
    import psycopg

    host, port = server.split(":")
    with psycopg.connect(
        host=host, port=port, user="joe", password=PASSWORD, dbname="postgres"
    ) as connection:
        connection.execute("create schema daily")
        connection.execute(
            "create table daily.prices (ticker varchar(12), company text, day date, close numeric(12, 4), "
            "at timestamp, zoned timestamptz, volume bigint, padded char(8), id int)"
        )
        connection.execute("create table bars (at timestamptz, close numeric)")
        with connection.cursor() as cursor:
            for day, close in zip(DAYS, CLOSES, strict=True):
                midnight = dt.datetime.combine(day, dt.time())
                rows = ("ACME", Decimal(str(close))), ("ZINC", Decimal(900)), ("NUL", None)
                for number, (ticker, price) in enumerate(rows):
                    company = f"{ticker.title()} Inc"
                    cursor.execute(
                        "insert into daily.prices values (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
                        (
                            ticker,
                            company,
                            day,
                            price,
                            midnight,
                            midnight.replace(tzinfo=dt.UTC),
                            5,
                            ticker,
                            number,
                        ),
                    )
            begin = dt.datetime(2024, 3, 8, 14, 30, tzinfo=dt.UTC)
            for hour in range(96):
                cursor.execute(
                    "insert into bars values (%s, %s)", (begin + dt.timedelta(hours=hour), 100 + hour)
                )
    return f"postgresql://joe@{server}/postgres"


@pytest.fixture
def _password(monkeypatch):
    monkeypatch.setenv("PGPASSWORD", PASSWORD)


@pytest.mark.usefixtures("_password")
@pytest.mark.parametrize(
    ("query", "date_column"),
    [
        ("table=daily.prices", None),
        ("table=daily.prices", "at"),
        ("table=daily.prices", "zoned"),
        ("query=SELECT day, close FROM daily.prices WHERE ticker LIKE 'ACM%25'", None),
    ],
)
def test_postgresql_types_arrive_right(market, query, date_column):
    from forecast.config import DataConfig
    from forecast.prices.source import series_from_config

    config = DataConfig(
        symbol="ACME", source=f"{market}?{query}", date_column=date_column or "day", input_columns=()
    )
    series = series_from_config(config)
    assert series.values.tolist() == CLOSES
    assert [str(day) for day in series.dates] == [str(day) for day in DAYS]


@pytest.mark.usefixtures("_password")
@pytest.mark.parametrize("symbol_column", ["ticker", "padded", "company", "id"])
def test_the_named_column_of_symbols_is_used(market, symbol_column):
    from forecast.config import DataConfig
    from forecast.prices.source import series_from_config

    symbol = {"company": "Acme Inc", "id": "0"}.get(symbol_column, "ACME")
    config = DataConfig(
        symbol=symbol, source=f"{market}?table=daily.prices", date_column="day", symbol_column=symbol_column
    )
    assert series_from_config(config).values.tolist() == CLOSES


@pytest.mark.usefixtures("_password")
def test_times_with_a_zone_are_the_same_in_every_session(market, monkeypatch):
    hashes = set()
    for zone in ("UTC", "America/New_York", "Asia/Tokyo"):
        monkeypatch.setenv("PGTZ", zone)
        hashes.add(load_series("X", source=f"{market}?table=bars").provenance.sha256)
    assert len(hashes) == 1


@pytest.mark.usefixtures("_password")
def test_postgresql_cannot_be_written_by_a_query(market):
    with pytest.raises(DataError, match="read-only transaction"):
        load_series("ACME", source=f"{market}?query=with d as (delete from bars returning *) select * from d")


@pytest.mark.usefixtures("_password")
def test_postgresql_tables_are_listed(market):
    with pytest.raises(UsageError, match=r"no table is named; add .*bars"):
        load_series("ACME", source=market)
    with pytest.raises(UsageError, match=r"no table daily\.none; add"):
        load_series("ACME", source=f"{market}?table=daily.none")
    with pytest.raises(DataError, match="holds ACME, NUL, ZINC, not LEAD"):
        load_series("LEAD", source=f"{market}?table=daily.prices")


def test_a_password_in_a_variable_is_used_and_never_shown(market, monkeypatch):
    monkeypatch.setenv("DB_PASSWORD", PASSWORD)
    source = market.replace("joe@", "joe:${DB_PASSWORD}@") + "?table=daily.prices"
    series = load_series("ACME", source=source)
    assert series.values.tolist() == CLOSES
    assert series.provenance.source == series.provenance.requested == source
    monkeypatch.setenv("MARKET", market.replace("joe@", "joe:p%40ss%2Fword%3A1@"))
    assert load_series("ACME", source="${MARKET}?table=daily.prices").values.tolist() == CLOSES
    monkeypatch.setenv("DB_PASSWORD", "hunter2")
    with pytest.raises(SourceUnavailable, match="password authentication failed") as caught:
        load_series("ACME", source=source)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="PGPASSWORD") as caught:
        load_series("ACME", source=market.replace("joe@", "joe:hunter2@"))
    assert "hunter2" not in str(caught.value)


def test_a_database_that_does_not_answer_is_an_unavailable_source():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        source = f"postgresql://joe@127.0.0.1:{free.getsockname()[1]}/market?table=prices"
        with pytest.raises(SourceUnavailable, match=r"cannot be read .*refused") as caught:
            load_series("ACME", source=source)
    assert "\n" not in str(caught.value)


def test_a_database_that_is_silent_is_given_up(monkeypatch):
    monkeypatch.setattr(locations, "TIME_LIMIT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        source = f"postgresql://joe@127.0.0.1:{silent.getsockname()[1]}/market?table=prices"
        with pytest.raises(SourceUnavailable, match=r"table=prices did not answer within 0\.3 s"):
            load_series("ACME", source=source)


def test_a_message_about_a_query_of_several_lines_is_one_line(file):
    with pytest.raises(DataError, match="cost FROM prices cannot be read") as caught:
        load_series("ACME", source=f"sqlite:///{file}?query=SELECT day, cost\nFROM prices")
    assert "\n" not in str(caught.value)
