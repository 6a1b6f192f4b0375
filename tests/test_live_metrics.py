"""What Prometheus gets of the ledger."""

import asyncio
import time

import pytest
from gauges import recorded_gauges
from live_ledger import live
from serving_here import build

from forecast.live.record import Record
from serve_app.live import LiveLedger
from serve_app.metrics import MANY, MOST_SYMBOLS, Publisher


@pytest.fixture
def shown(monkeypatch):
    return recorded_gauges(monkeypatch)


@pytest.fixture
def record(tmp_path):
    opened = Record(tmp_path / "ledger.db")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def models(tiny_checkpoint):
    return build(tiny_checkpoint)[1].models


def look(publisher, models, record):
    asyncio.run(publisher.read(LiveLedger(models, str(record.path))))
    publisher.show_live()


def of(shown, metric):
    """The values of a metric by its labels."""
    found = {tuple(labels): value for (name, *labels), value in shown.items() if name == metric}
    return {labels if len(labels) > 1 else labels[0]: value for labels, value in found.items()}


def test_the_live_record_of_each_name_is_shown(shown, models, record):
    live(record, "many", ["A", "B"], [("a", 2), ("b", 5)])
    live(record, "C", ["C"], [("c", 1)])
    for kind, alarm in (("alarm", "calibration"), ("alarm", "model_old"), ("alarm_over", "calibration")):
        record.add_event("many", kind, details={"alarm": alarm})
    look(Publisher(), models, record)
    (_, many), _ = record.live()
    assert of(shown, "forecast_live_crps_ratio") == {
        ("many", skill.baseline): skill.ratio for skill in many.skill if skill.horizon == 1
    }
    assert of(shown, "forecast_live_coverage") == {
        ("many", f"{covered.level:g}"): pytest.approx(covered.coverage) for covered in many.coverage
    }
    assert of(shown, "forecast_live_sessions") == {"C": 0, "many": 4}
    assert of(shown, "forecast_live_alarm") == {("many", "calibration"): False, ("many", "model_old"): True}
    # The made-up sessions are of 2024, and the last forecasts were issued just now.
    ages = {name: record.forecast(name[:1].replace("m", "A"), []).age_sessions for name in ("C", "many")}
    assert min(ages.values()) > 300
    assert of(shown, "forecast_live_age_sessions") == ages
    assert set(of(shown, "forecast_live_age_seconds")) == {"C", "many"}
    assert all(0 <= age < 100 for age in of(shown, "forecast_live_age_seconds").values())
    assert shown["forecast_ledger_refused",] is False


def test_the_ledger_is_read_again_only_when_it_has_changed(shown, models, record, monkeypatch):
    live(record, "A", ["A"], [("a", 2)])
    publisher, reads, read = Publisher(), [], Record.live

    def counted(self, **chosen):
        reads.append(chosen)
        return read(self, **chosen)

    monkeypatch.setattr(Record, "live", counted)
    look(publisher, models, record)
    look(publisher, models, record)
    assert len(reads) == 1
    record.add_event("A", "alarm", details={"alarm": "model_old"})
    look(publisher, models, record)
    assert (len(reads), shown["forecast_live_alarm", "A", "model_old"]) == (2, True)
    live(record, "A", ["A"], [("b", 1)], first=22)
    look(publisher, models, record)
    assert (len(reads), shown["forecast_live_sessions", "A"]) == (3, 0)


def test_many_names_share_one_label(shown, models, record):
    names = [f"N{number}" for number in range(MOST_SYMBOLS + 1)]
    for number, name in enumerate(names):
        live(record, name, [name], [("a", 2 if number else 3)], horizons=(1,))
    record.add_event("N7", "alarm", details={"alarm": "model_old"})
    record.add_event("N8", "alarm", details={"alarm": "model_old"})
    record.add_event("N8", "alarm_over", details={"alarm": "model_old"})
    look(Publisher(), models, record)
    found, _ = record.live()
    skills = [skill for each in found for skill in each.skill if skill.baseline == "GARCH"]
    ratio = sum(skill.crps for skill in skills) / sum(skill.baseline_crps for skill in skills)
    assert of(shown, "forecast_live_crps_ratio")[MANY, "GARCH"] == pytest.approx(ratio)
    inside = sum(covered.inside for each in found for covered in each.coverage if covered.level == 0.9)
    assert of(shown, "forecast_live_coverage")[MANY, "0.9"] == pytest.approx(inside / (len(names) + 1))
    assert of(shown, "forecast_live_sessions") == {MANY: 1}
    assert of(shown, "forecast_live_alarm") == {(MANY, "model_old"): True}


def test_a_ledger_that_cannot_be_read_is_told_and_does_not_end_the_looks(shown, models, record, tmp_path):
    live(record, "A", ["A"], [("a", 2)])
    publisher = Publisher()
    damaged = tmp_path / "damaged.db"
    damaged.write_text("this is no database")
    ledger = LiveLedger(models, str(damaged))
    asyncio.run(publisher.read(ledger))
    publisher.show_live()
    assert shown["forecast_ledger_refused",] is True
    damaged.unlink()
    asyncio.run(publisher.read(ledger))
    publisher.show_live()
    assert shown["forecast_ledger_refused",] is False
    look(publisher, models, record)
    assert shown["forecast_live_sessions", "A"] == 1


def test_a_slow_ledger_does_not_hold_up_the_event_loop(shown, models, record, monkeypatch):
    monkeypatch.setattr(Record, "stamp", lambda self: time.sleep(0.5))

    async def turns():
        reading = asyncio.create_task(Publisher().read(LiveLedger(models, str(record.path))))
        count = 0
        while not reading.done():
            await asyncio.sleep(0.01)
            count += 1
        return count

    assert asyncio.run(turns()) > 3
