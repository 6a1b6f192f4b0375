"""What people and machines read of a ledger, compared with what its rows say one by one."""

import datetime as dt
import subprocess
import sys

import numpy as np
import pytest
from live_ledger import DAYS, issued, live

from forecast.errors import LevelError
from forecast.live.limits import MOST_CHANGES
from forecast.live.record import Published, Record
from forecast.prices.calendars import BarGrid
from forecast.prices.timeline import Timeline
from forecast.scores.sequential import coverage_bounds


@pytest.fixture
def record(tmp_path):
    opened = Record(tmp_path / "ledger.db")
    yield opened
    opened.close()


def test_a_published_forecast_has_its_steps_with_intervals_from_its_quantiles(record):
    prices = live(record, "BTC-USD", ["BTC-USD"], [("a" * 64, 2)])
    found = record.forecast("BTC-USD", [0.5, 0.9])
    price = prices["BTC-USD"][21]
    assert (found.symbol, found.name, found.sha256) == ("BTC-USD", "BTC-USD", "a" * 64)
    assert (found.origin, found.last_price) == (DAYS[21], price)
    assert [(step.target, step.horizon, step.prediction) for step in found.steps] == [
        (DAYS[22], 1, price),
        (DAYS[24], 3, price),
    ]
    # Quantiles of the logistic distribution.
    for step in found.steps:
        for level, interval in zip((0.5, 0.9), step.intervals, strict=True):
            half = np.sqrt(step.horizon) * np.log((1 + level) / (1 - level))
            assert interval.level == level
            assert (interval.lower, interval.upper) == pytest.approx((price - half, price + half), rel=1e-6)
    assert record.forecast("ETH-USD", [0.5]) is None
    live(record, "new", ["new"], [("a", 1)])
    assert record.forecast("new", [0.5], settled=10).settled == []


@pytest.mark.parametrize("level", [0.123, 0.995, 0.001])
def test_a_level_that_no_kept_quantiles_bound_is_refused(record, level):
    live(record, "A", ["A"], [("a", 1)])
    with pytest.raises(LevelError, match=f"no interval of level {level}; choose a whole percentage"):
        record.forecast("A", [0.5, level])
    assert record.forecast("A", [0.01, 0.99]).steps


def test_earlier_forecasts_come_with_the_price_that_came(record):
    prices = live(record, "A", ["A"], [("a", 6)])["A"]
    settled = record.forecast("A", [0.9], settled=4).settled
    assert [step.target for step in settled] == DAYS[22:26]
    assert [step.realized for step in settled] == list(prices[22:26])
    assert [step.prediction for step in settled] == list(prices[21:25])
    rows = record.settled("A", "A", 4)
    inside = [step.intervals[0].lower <= step.realized <= step.intervals[0].upper for step in settled]
    assert inside == [abs(row["pit"] - 0.5) <= 0.45 for row in rows]


def test_forecasts_come_in_pages_and_by_a_part_of_their_symbol(record):
    symbols = ["^GSPC", "BTC-USD", "EUR/USD", "GC=F", "USD"]
    live(record, "many", symbols, [("a", 1)])
    live(record, "EUR/USD", ["EUR/USD"], [("b", 1)])
    found, total = record.forecasts("", 0, 4, [])
    assert ([each.symbol for each in found], total) == (["BTC-USD", "EUR/USD", "EUR/USD", "GC=F"], 6)
    assert [each.symbol for each in record.forecasts("", 4, 4, [])[0]] == ["USD", "^GSPC"]
    found, total = record.forecasts("usd", 0, 10, [0.5])
    assert ([each.symbol for each in found], total) == (["USD", "BTC-USD", "EUR/USD", "EUR/USD"], 4)
    assert {each.name for each in found[2:]} == {"many", "EUR/USD"}
    assert record.forecasts("nothing", 0, 10, []) == ([], 0)


def test_of_two_names_that_publish_a_symbol_the_later_publication_answers(record):
    live(record, "many", ["A", "B"], [("a", 1)])
    live(record, "A", ["A"], [("b", 1)])
    assert record.forecast("A", []).name == "A"
    live(record, "many", ["A", "B"], [("a", 1)], first=30)
    assert record.forecast("A", []).name == "many"


def rows_of(record, name, horizon, model=None):
    """The champion's rows of the ledger, with those of the baselines on the same sessions."""
    rows = record.sessions(name, horizon=horizon)
    own = [row for row in rows if row["role"] == "champion" and model in (None, row["model"])]
    others = {(row["target"], row["model"]): row for row in rows if row["role"] == "baseline"}
    return own, others


def test_a_live_record_is_that_of_the_model_that_publishes_now(record):
    live(record, "many", ["A", "B", "C"], [("a", 6), ("b", 9)], shadow="s")
    live(record, "D", ["D"], [("d", 3)])
    (other, found), total = record.live()
    assert ([other.name, found.name], total) == (["D", "many"], 2)
    assert (found.symbols, found.latest.sha256, found.sessions, other.sessions) == (3, "b", 8, 2)
    for horizon in (1, 3):
        own, others = rows_of(record, "many", horizon, "b")
        for baseline in ("persistence", "GARCH"):
            (skill,) = (each for each in found.skill if (each.baseline, each.horizon) == (baseline, horizon))
            theirs = [others[row["target"], baseline]["crps"] for row in own]
            assert skill.sessions == len(own)
            assert skill.ratio == pytest.approx(sum(row["crps"] for row in own) / sum(theirs))
    own, _ = rows_of(record, "many", 1, "b")
    assert (found.first, found.last) == (own[0]["target"], own[-1]["target"]) == (DAYS[27], DAYS[34])
    for covered in found.coverage:
        inside = [row[f"inside_{covered.level * 100:.0f}"] for row in own]
        assert (covered.inside, covered.prices) == (sum(inside), 3 * len(own))
        assert covered.coverage == pytest.approx(np.mean(inside) / 3)
        lower, upper = coverage_bounds(sum(inside) / 3, len(own))
        assert (covered.lower, covered.upper) == (pytest.approx(lower), pytest.approx(upper))


def test_a_number_of_sessions_reaches_back_across_versions(record):
    live(record, "A", ["A"], [("a", 8), ("b", 5)])
    ((found,), _) = record.live(sessions=9)
    assert (found.sessions, found.last) == (9, DAYS[32])
    own, others = rows_of(record, "A", 1)
    (skill,) = (each for each in found.skill if (each.baseline, each.horizon) == ("GARCH", 1))
    theirs = [others[row["target"], "GARCH"]["crps"] for row in own[-9:]]
    assert skill.ratio == pytest.approx(sum(row["crps"] for row in own[-9:]) / sum(theirs))
    ((found,), _) = record.live(sessions=400)
    assert found.sessions == 12


def test_a_model_that_was_promoted_again_has_the_record_since_then(record):
    live(record, "A", ["A"], [("a", 4), ("b", 4), ("a", 4)])
    ((found,), _) = record.live()
    assert (found.latest.sha256, found.sessions, found.first) == ("a", 3, DAYS[29])


def test_a_new_model_has_no_record_yet(record):
    live(record, "A", ["A"], [("a", 4), ("b", 1)])
    ((found,), _) = record.live()
    assert (found.latest.sha256, found.sessions, found.first, found.skill, found.coverage) == (
        "b",
        0,
        None,
        [],
        [],
    )
    assert found.latest.issued_at.startswith("20")


def test_records_are_chosen_by_name_and_symbol_and_come_in_pages(record):
    live(record, "many", ["A", "B"], [("a", 2)])
    for name in ("A", "C"):
        live(record, name, [name], [("x", 2)])

    def names(**chosen):
        found, total = record.live(**chosen)
        return [each.name for each in found], total

    assert names() == (["A", "C", "many"], 3)
    assert names(symbol="A") == (["A", "many"], 2)
    assert names(name="C") == (["C"], 1)
    assert names(name="C", symbol="A") == names(name="D") == ([], 0)
    assert names(offset=1, limit=1) == (["C"], 3)


def test_a_record_has_its_versions_and_the_alarms_that_are_on(record):
    live(record, "A", ["A"], [("a", 2)])
    for number in range(MOST_CHANGES):
        record.add_event("A", "added", version=f"v{number}")
    record.add_event("A", "promoted", version="v1", session=DAYS[3], details={"why": "better"})
    record.add_event("A", "kept", version="v2", details={"why": "worse"})
    record.add_event("A", "notified", details={"event": 1})
    record.add_event("B", "promoted", version="w")
    for kind, alarm in (
        ("alarm", "calibration"),
        ("alarm", "model_old"),
        ("alarm_over", "calibration"),
        ("alarm", "worse_than_GARCH"),
        ("alarm_over", "worse_than_GARCH"),
        ("alarm", "worse_than_GARCH"),
    ):
        record.add_event("A", kind, details={"alarm": alarm, "text": f"{alarm} it is"})
    ((found,), _) = record.live()
    assert found.version == "v1"
    assert found.since == record.events("A", "promoted")[0]["at"]
    assert [event["kind"] for event in found.history[:3]] == ["kept", "promoted", "added"]
    assert len(found.history) == MOST_CHANGES
    assert found.history[1]["details"] == {"why": "better"}
    assert [event["details"]["text"] for event in found.alarms] == [
        "model_old it is",
        "worse_than_GARCH it is",
    ]
    assert found.known_alarms == ["calibration", "model_old", "worse_than_GARCH"]


HOURS = Timeline("1h", "XNYS", BarGrid(3600))


@pytest.mark.parametrize(
    ("timeline", "origin", "now", "age"),
    [
        # A Friday; the exchange closes at 21:00 UTC, and is closed on the 15th, a holiday.
        (Timeline("1d", "XNYS"), "2024-01-05", "2024-01-08T20:59", 0),
        (Timeline("1d", "XNYS"), "2024-01-05", "2024-01-08T21:00", 1),
        (Timeline("1d", "XNYS"), "2024-01-05", "2024-01-16T22:00", 6),
        (Timeline("1d", "24/7"), "2024-01-05", "2024-01-06T23:59", 0),
        (Timeline("1d", "24/7"), "2024-01-05", "2024-03-05T00:00", 59),
        (Timeline("1wk", "XNYS"), "2024-01-01", "2024-01-12T20:59", 0),
        (Timeline("1wk", "XNYS"), "2024-01-01", "2024-01-19T22:00", 2),
        (HOURS, "2024-01-05T10:30:00-05:00", "2024-01-05T17:29", 0),
        (HOURS, "2024-01-05T10:30:00-05:00", "2024-01-05T17:30", 1),
        (HOURS, "2024-01-05T10:30:00-05:00", "2024-01-08T16:00", 6),
        (Timeline("1d", "XSHG"), "1960-01-05", "2024-01-08T21:00", None),
        (None, "2024-01-05", "2024-01-08T21:00", None),
    ],
)
def test_the_age_of_a_forecast_is_the_number_of_bars_that_have_ended_since_its_origin(
    monkeypatch, timeline, origin, now, age
):
    class Clock(dt.datetime):
        @classmethod
        def now(cls, zone=None):
            return cls.fromisoformat(now).replace(tzinfo=zone)

    monkeypatch.setattr("forecast.live.record.dt.datetime", Clock)
    forecast = Published("A", "A", "a", origin, 1.0, "2024-01-05T18:00:00+00:00", [], timeline=timeline)
    assert forecast.age_sessions == age
    assert forecast.age_seconds == (Clock.now(dt.UTC) - Clock(2024, 1, 5, 18, tzinfo=dt.UTC)).total_seconds()


def test_of_two_models_that_published_a_session_the_later_one_counts_once(record):
    prices = live(record, "A", ["A"], [("a", 5)])["A"]
    # A version that is promoted by hand forecasts the next session again.
    record.issue("A", {"champion": [issued("A", float(prices[24]), 24, 1, "b", 0.5)]})
    live(record, "A", ["A"], [("b", 2)], first=25)
    ((every,), _) = record.live(sessions=400)
    assert (every.sessions, every.last, every.coverage[0].prices) == (6, DAYS[26], 6)
    ((last,), _) = record.live(sessions=3)
    assert (last.sessions, last.first, last.last) == (3, DAYS[24], DAYS[26])
    rows = {(row["target"], row["model"]): row for row in rows_of(record, "A", 1)[0]}
    counted = [rows[DAYS[24], "a"], rows[DAYS[25], "b"], rows[DAYS[26], "b"]]
    assert last.coverage[1].inside == sum(row["inside_90"] for row in counted)
    assert [step.target for step in record.forecast("A", [0.9], settled=10).settled] == DAYS[21:27]
    assert [row["model"] for row in record.settled("A", "A", 3)] == ["a", "b", "b"]


def test_reading_a_ledger_needs_no_torch():
    code = "import forecast.live.record, sys; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)
