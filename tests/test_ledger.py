"""The ledger: what is recorded, what comes of it, and what a killed, a doubled or a wrong record does to it."""

import os
import signal
import sqlite3
import threading
import time
from dataclasses import replace

import live_ledger
import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from live_ledger import DAYS, SPREAD

from forecast.errors import LedgerError
from forecast.live import ledger as ledgers
from forecast.live.ledger import Ledger
from forecast.live.tables import METADATA
from forecast.scores.metrics import METRICS, Forecasts


def issued(symbol="A", origin=10, horizon=1, model="model", price=100.0, width=1.0):
    return live_ledger.issued(symbol, price, origin, horizon, model, width)


def session(symbols=("A",), origin=10, models=("model",), prices=None, horizons=(1,)):
    """What an update issues for one session."""
    every = [(s, h) for s in symbols for h in horizons]
    level = prices or {}
    return {
        "baseline": [issued(s, origin, h, "persistence", level.get(s, 100.0), 2.0) for s, h in every],
        "champion": [issued(s, origin, h, m, level.get(s, 100.0)) for s, h in every for m in models],
    }


def known(until, **prices):
    return {symbol: (DAYS[: until + 1], np.asarray(values)[: until + 1]) for symbol, values in prices.items()}


@pytest.fixture
def ledger(tmp_path):
    opened = Ledger(tmp_path / "models %5E" / "ledger.db")
    yield opened
    opened.close()


def count(ledger, table):
    with sqlite3.connect(ledger.path) as connection:
        return connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0]


def test_a_forecast_is_recorded_once_however_often_it_is_issued(ledger):
    assert ledger.issue("A", session(horizons=(1, 5))) == 4
    assert ledger.issue("A", session(horizons=(1, 5))) == 0
    assert count(ledger, "forecasts") == 4
    assert [row["horizon"] for row in ledger.published("A")] == [1, 5]


def test_a_promoted_shadow_is_the_champion_of_a_session_also_without_new_forecasts_of_every_symbol(ledger):
    of_both = [issued(symbol, model="shadow", width=1.1) for symbol in ("A", "B")]
    ledger.issue("many", session(("A", "B")) | {"shadow": of_both})
    ledger.issue("many", {"champion": of_both[:1]})
    prices = np.full(len(DAYS), 100.0)
    ledger.settle("many", known(11, A=prices, B=prices))
    (row,) = [row for row in ledger.sessions("many", horizon=1) if row["model"] == "shadow"]
    assert (row["role"], row["symbols"]) == ("champion", 2)


def test_a_forecast_from_a_corrected_price_supersedes_the_earlier_one_which_stays_and_is_scored(ledger):
    prices = np.full(len(DAYS), 100.0)
    ledger.settle("A", known(10, A=prices))
    ledger.issue("A", session(horizons=(1, 5)))
    assert ledger.outdated("A") == set()
    prices[10] = 104.0
    ledger.settle("A", known(10, A=prices))
    assert ledger.outdated("A") == {"A"}
    again = session(horizons=(1, 5), prices={"A": 104.0})
    assert (ledger.issue("A", again), ledger.issue("A", again)) == (4, 0)
    assert ledger.outdated("A") == set()
    assert [(row["prediction"], row["revision"]) for row in ledger.published("A")] == [(104.0, 1)] * 2
    assert ledger.settle("A", known(15, A=prices)).scored == 8
    assert count(ledger, "scores") == 8
    assert [row["prediction"] for row in ledger.settled("A", "A", 5)] == [104.0]
    for row in ledger.sessions("A", horizon=1):
        assert (row["symbols"], row["absolute_error"] > 0) == (1, True)
        assert row["absolute_error"] == pytest.approx(4 / (2 * np.log(3)), rel=1e-6)
    evidence = next(row["evidence"] for row in ledger.sessions("A", horizon=1) if row["model"] == "model")
    assert len(evidence["places"]) == 1


def test_a_session_that_the_calendar_does_not_have_supersedes_the_forecast_of_the_next_bar(ledger):
    first, later = session(prices={"A": 100.0}), session(prices={"A": 101.0})
    # Of the same bar, one step after a Saturday session that the calendar did not have.
    for role, some in later.items():
        later[role] = [replace(each, origin=f"{each.origin}T", target=some[0].target) for each in some]
    assert [ledger.issue("A", first), ledger.issue("A", later), ledger.issue("A", later)] == [2, 2, 0]
    assert [(row["prediction"], row["revision"]) for row in ledger.published("A")] == [(101.0, 1)]
    ledger.settle("A", {"A": ([first["champion"][0].target], np.array([101.0]))})
    assert [row["prediction"] for row in ledger.settled("A", "A", 5)] == [101.0]
    assert [(row["model"], row["symbols"]) for row in ledger.sessions("A")] == [
        ("model", 1),
        ("persistence", 1),
    ]


def test_a_price_that_arrives_late_and_one_in_another_unit_make_a_forecast_outdated(ledger):
    prices = 100 + np.sin(np.arange(len(DAYS)))
    gap = np.delete(np.arange(len(DAYS)), 7)
    ledger.settle("A", {"A": ([DAYS[i] for i in gap[:10]], prices[gap[:10]])})
    ledger.issue("A", session())
    ledger.settle("A", known(10, A=prices))
    assert ledger.outdated("A") == {"A"}
    ledger.issue("A", session(prices={"A": 101.0}))
    ledger.settle("A", known(10, A=prices / 2))
    assert ledger.outdated("A") == {"A"}
    # Later bars are no reason.
    ledger.issue("A", session(prices={"A": 50.0}))
    ledger.settle("A", known(11, A=prices / 2))
    assert ledger.outdated("A") == set()


def test_of_two_champions_of_a_bar_the_one_published_last_is_the_published_one(ledger):
    for models, number in ((("a",), 2), (("b",), 1), (("a",), 1), (("a",), 0)):
        assert ledger.issue("A", session(models=models)) == number
    assert [(row["model"], row["revision"]) for row in ledger.published("A")] == [("a", 1)]
    ledger.settle("A", known(11, A=np.full(len(DAYS), 100.0)))
    assert [(row["model"], row["revision"]) for row in ledger.settled("A", "A", 5)] == [("a", 1)]


@pytest.mark.parametrize("other", ["currency", "column"])
def test_prices_of_another_series_are_not_recorded(ledger, other):
    generator = np.random.default_rng(3)
    prices = 100 * np.exp(np.cumsum(generator.normal(0, 0.01, len(DAYS))))
    rate = 0.9 * np.exp(np.cumsum(generator.normal(0, 0.005, len(DAYS))))
    ledger.settle("all", known(50, A=prices, B=prices))
    wrong = prices * rate if other == "currency" else prices + generator.normal(0, 0.5, len(DAYS))
    settled = ledger.settle("all", known(51, A=wrong, B=prices))
    assert list(settled.others) == ["A"]
    assert "differ from the recorded ones" in settled.others["A"]
    assert (settled.prices, settled.corrected, count(ledger, "rescalings")) == (1, [], 0)
    assert ledger.settle("all", known(51, A=prices)).prices == 1


def test_rounded_prices_and_another_exchange_are_the_same_series(ledger):
    generator = np.random.default_rng(4)
    prices = 2 * np.exp(np.cumsum(generator.normal(0, 0.03, len(DAYS))))
    ledger.settle("A", known(50, A=prices))
    assert ledger.settle("A", known(51, A=prices.round(2))).others == {}
    assert ledger.settle("A", known(52, A=(prices / 4).round(2))).others == {}
    elsewhere = prices * np.exp(generator.normal(0, 2e-4, len(DAYS)))
    assert ledger.settle("A", known(53, A=elsewhere)).others == {}


def test_a_ledger_of_the_first_version_keeps_its_rows(tmp_path, monkeypatch):
    path = tmp_path / "ledger.db"
    monkeypatch.setattr(ledgers, "LATEST", "0001")
    Ledger(path).close()
    packed = (100 + SPREAD).astype("<f4").tobytes()
    with sqlite3.connect(path) as connection:
        for number, (target, model, role) in enumerate(
            [("2024-01-02", "persistence", "baseline"), ("2024-01-02", "a", "champion"),
             ("2024-01-03", "a", "champion"), ("2024-01-02", "b", "champion")]
        ):  # fmt: skip
            connection.execute(
                "INSERT INTO forecasts VALUES (?, 'A', 'A', ?, 1, ?, ?, '2024-01-01', 100, 100, ?, 1, '2024')",
                (number + 1, target, model, role, packed),
            )
        connection.execute("INSERT INTO prices VALUES (1, 'A', 'A', '2024-01-02', 101, '2024')")
        connection.execute("INSERT INTO published VALUES ('A', 'A', '2024-01-01', 'b')")
        for number, model in ((2, "a"), (4, "b")):
            connection.execute("INSERT INTO scores VALUES (?, ?, 1, 101, 0.5, 0.7)", (number, number))
            connection.execute(
                "INSERT INTO sessions VALUES ('A', '2024-01-02', 1, ?, 'champion', 1, 1, 1, 1, 1, NULL)",
                (model,),
            )
    connection.close()
    monkeypatch.undo()
    ledger = Ledger(path)
    assert (count(ledger, "forecasts"), count(ledger, "scores")) == (4, 2)
    assert [row["model"] for row in ledger.settled("A", "A", 5)] == ["b"]
    assert [row["model"] for row in ledger.published("A")] == ["b"]
    assert ledger.outdated("A") == set()
    assert {row["model"]: row["last_forecast_id"] for row in ledger.sessions("A")} == {"a": 2, "b": 4}
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    with pytest.raises(LedgerError, match="FOREIGN KEY"), ledger.writing() as connection:
        connection.exec_driver_sql("INSERT INTO scores VALUES (9, 99, 1, 1, 1, 1)")
    ledger.close()


def test_a_forecast_is_scored_on_its_price_as_a_backtest_scores_it(ledger):
    prices = np.full(len(DAYS), 100.0)
    prices[11] = 103.0
    ledger.settle("A", known(10, A=prices))
    ledger.issue("A", session())
    assert ledger.settle("A", known(11, A=prices)).scored == 2
    (row,) = ledger.settled("A", "A", 5)
    own = issued()
    expected = METRICS["CRPS"].losses(
        np.array([103.0]), Forecasts(np.array([100.0]), own.quantiles[np.newaxis].astype("f4"))
    )
    assert row["crps"] == pytest.approx(expected[0], rel=1e-6)
    assert row["realized"] == 103.0
    assert row["pit"] == pytest.approx(1 / (1 + np.exp(-3)), abs=0.005)
    (model, other) = sorted(ledger.sessions("A"), key=lambda each: each["model"])
    assert model["crps"] / other["crps"] == pytest.approx(row["crps"] / ledger_loss(103.0, 2.0), rel=1e-6)


def ledger_loss(price, width):
    quantiles = (100 + width * SPREAD)[np.newaxis]
    return METRICS["CRPS"].losses(np.array([price]), Forecasts(np.array([100.0]), quantiles))[0]


def test_the_same_prices_again_change_nothing(ledger):
    prices = np.linspace(100, 120, len(DAYS))
    ledger.issue("A", session())
    first = ledger.settle("A", known(40, A=prices))
    again = ledger.settle("A", known(40, A=prices))
    assert (first.scored, again.scored, again.prices) == (2, 0, 0)


def test_a_corrected_price_is_a_new_fact_and_the_later_score_counts(ledger):
    prices = np.full(len(DAYS), 100.0)
    ledger.issue("A", session())
    ledger.settle("A", known(11, A=prices))
    prices[11] = 110.0
    settled = ledger.settle("A", known(12, A=prices))
    assert settled.corrected == [("A", DAYS[11])]
    assert settled.scored == 2
    assert (count(ledger, "scores"), count(ledger, "sessions")) == (4, 2)
    assert [row["realized"] for row in ledger.settled("A", "A", 5)] == [110.0]
    model = next(row for row in ledger.sessions("A") if row["model"] == "model")
    assert model["inside_90"] == 0


def test_after_a_split_prices_are_converted_back_to_the_unit_of_the_forecast(ledger):
    prices = 100 + np.sin(np.arange(len(DAYS)))
    ledger.settle("A", known(10, A=prices))
    ledger.issue("A", session())
    settled = ledger.settle("A", known(11, A=prices / 4))
    assert settled.corrected == []
    (row,) = ledger.settled("A", "A", 5)
    assert row["realized"] == pytest.approx(prices[11])
    # Later forecasts are in the new unit.
    ledger.issue("A", session(origin=11, prices={"A": prices[11] / 4}))
    ledger.settle("A", known(12, A=prices / 4))
    assert ledger.settled("A", "A", 1)[0]["realized"] == pytest.approx(prices[12] / 4)


def test_a_split_during_a_long_absence_is_noticed(ledger):
    prices = 100 + np.sin(np.arange(len(DAYS)))
    ledger.settle("A", known(10, A=prices))
    ledger.issue("A", session())
    ledger.settle("A", known(100, A=prices / 4))
    assert ledger.settled("A", "A", 1)[0]["realized"] == pytest.approx(prices[11])


def test_a_symbol_that_comes_back_late_is_scored_on_every_session_between(ledger):
    prices = np.linspace(100, 120, len(DAYS))
    ledger.settle("all", known(10, A=prices, B=prices))
    ledger.issue("all", session(symbols=("A", "B")))
    ledger.settle("all", known(100, A=prices))
    assert ledger.settle("all", known(100, B=prices)).sessions == [DAYS[11]]
    assert [row["realized"] for row in ledger.settled("all", "B", 5)] == pytest.approx([prices[11]])


def test_more_bars_of_an_absence_than_a_query_may_have_parameters(ledger):
    def limit(connection, _record):
        connection.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 500)

    sa.event.listen(ledger._engine, "connect", limit)
    ledger._engine.dispose()
    times = [str(time) for time in np.arange("2024-01-01T00:00", "2024-01-01T20:00", dtype="datetime64[m]")]
    ledger.settle("A", {"A": (times[:10], np.ones(10))})
    assert ledger.settle("A", {"A": (times, np.ones(len(times)))}).prices == len(times) - 10


def test_a_split_that_the_source_adjusts_a_day_late_corrects_the_price_of_that_day(ledger):
    prices = 100 + np.sin(np.arange(len(DAYS)))
    ledger.settle("A", known(10, A=prices))
    ledger.issue("A", session())
    unadjusted = prices.copy()
    unadjusted[11] /= 4
    ledger.settle("A", known(11, A=unadjusted))
    settled = ledger.settle("A", known(11, A=prices / 4))
    assert settled.corrected == [("A", DAYS[11])]
    assert ledger.settled("A", "A", 1)[0]["realized"] == pytest.approx(prices[11])


def test_one_corrected_price_is_no_split(ledger):
    prices = 100 + np.sin(np.arange(len(DAYS)))
    ledger.settle("A", known(11, A=prices))
    prices[11] *= 2
    assert ledger.settle("A", known(11, A=prices)).corrected == [("A", DAYS[11])]
    assert count(ledger, "rescalings") == 0


def test_prices_that_come_after_a_week_score_every_forecast_in_between(ledger):
    prices = np.linspace(100, 120, len(DAYS))
    ledger.issue("A", session(horizons=(1, 5, 20)))
    settled = ledger.settle("A", known(40, A=prices))
    assert settled.sessions == [DAYS[11], DAYS[15], DAYS[30]]


def test_scores_of_symbols_in_other_units_weigh_the_same(ledger):
    yen = np.full(len(DAYS), 100.0)
    yen[11] = 101.0
    ledger.issue(
        "all",
        {
            "baseline": [
                issued("A", model="persistence"),
                issued("B", price=1e6, width=1e4, model="persistence"),
            ],
            "champion": [issued("A"), issued("B", price=1e6, width=1e4)],
        },
    )
    ledger.settle("all", known(11, A=yen, B=yen * 1e4))
    model = next(row for row in ledger.sessions("all") if row["model"] == "model")
    ledger.issue("one", {"baseline": [issued("A", model="persistence")], "champion": [issued("A")]})
    ledger.settle("one", known(11, A=yen))
    alone = next(row for row in ledger.sessions("one") if row["model"] == "model")
    assert model["symbols"] == 2
    assert model["crps"] == pytest.approx(alone["crps"], rel=1e-5)


def test_a_process_that_is_killed_while_it_issues_leaves_all_or_nothing(tmp_path):
    path = tmp_path / "ledger.db"
    symbols = [f"S{number}" for number in range(50)]
    for pause in (0.3, 0.6, 0.9):
        if (child := os.fork()) == 0:
            ledger = Ledger(path)
            for origin in range(100):
                ledger.issue("A", session(symbols, origin))
            os._exit(0)
        time.sleep(pause)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    Ledger(path).issue("A", session(symbols, 100))
    with sqlite3.connect(path) as connection:
        by_origin = connection.execute("SELECT origin, COUNT(*) FROM forecasts GROUP BY origin").fetchall()
        (state,) = connection.execute("PRAGMA integrity_check").fetchone()
    assert state == "ok"
    assert {number for _, number in by_origin} == {100}


def test_a_reader_does_not_wait_for_a_writer(ledger):
    ledger.issue("A", session())
    with sqlite3.connect(ledger.path, isolation_level=None) as writer:
        writer.execute("BEGIN IMMEDIATE")
        found = []
        reader = threading.Thread(target=lambda: found.append(ledger.published("A")))
        reader.start()
        reader.join(5)
        writer.execute("ROLLBACK")
    assert len(found[0]) == 1


def test_a_full_disk_is_one_line_and_the_ledger_stays_whole(ledger):
    ledger.issue("A", session())

    def limit(connection, _record):
        connection.execute("PRAGMA max_page_count=60")

    sa.event.listen(ledger._engine, "connect", limit)
    ledger._engine.dispose()
    with pytest.raises(LedgerError, match=r"full.*free disk space"):
        ledger.issue("A", session(symbols=[f"S{i}" for i in range(500)], origin=20))
    assert count(ledger, "forecasts") == 2


def test_a_file_that_is_no_ledger_is_refused_in_one_line(tmp_path):
    (tmp_path / "ledger.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(LedgerError, match=r"ledger\.db cannot be used"):
        Ledger(tmp_path / "ledger.db")


def test_a_ledger_of_a_later_version_is_refused(ledger):
    ledger.close()
    with sqlite3.connect(ledger.path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(LedgerError, match="later version"):
        Ledger(ledger.path)


def test_the_migrations_make_the_tables_that_the_code_uses(ledger):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with ledger._engine.connect() as connection:
        found = compare_metadata(MigrationContext.configure(connection), METADATA)
    ours = [each for each in found if "alembic_version" not in str(each)]
    assert ours == []


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=6, unique=True), st.integers(0, 2**16))
def test_however_the_prices_come_each_forecast_has_one_score_on_the_last_price(
    tmp_path_factory, visits, seed
):
    generator = np.random.default_rng(seed)
    prices = 100 + np.cumsum(generator.normal(size=len(DAYS)))
    ledger = Ledger(tmp_path_factory.mktemp("ledger") / "ledger.db")
    for visit in sorted(visits):
        ledger.settle("A", known(visit, A=prices))
        ledger.issue("A", session(origin=visit, horizons=(1, 5)))
    ledger.settle("A", known(100, A=prices))
    rows = ledger.settled("A", "A", 100)
    assert [row["target"] for row in rows] == [DAYS[visit + 1] for visit in sorted(visits)]
    assert [row["realized"] for row in rows] == pytest.approx([prices[visit + 1] for visit in sorted(visits)])
    assert count(ledger, "scores") == 4 * len(visits)
    ledger.close()


def test_times_of_facts_are_in_utc_and_sort_as_text():
    first = ledgers._now()
    assert first.endswith("+00:00")
    assert first < ledgers._now()
