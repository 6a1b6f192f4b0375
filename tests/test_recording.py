"""The sample of requests in the ledger: it is whole, and costs and harms no request."""

import json
import sqlite3
import threading
import time

import pytest
from bodies import GOOD
from gauges import recorded_gauges
from live_ledger import live
from serving_here import serving

from forecast.live.record import Record
from serve_app import recording
from serve_app.metrics import Publisher


@pytest.fixture
def record(tmp_path):
    opened = Record(tmp_path / "ledger.db")
    live(opened, "BTC-USD", ["BTC-USD"], [("a", 1)])
    yield opened
    opened.close()


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(recording, "COLLECT_S", 0.1)


def rows(record):
    with sqlite3.connect(record.path) as connection:
        query = "SELECT at, symbol, model, request, answer FROM requests ORDER BY id"
        return connection.execute(query).fetchall()


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def recording_threads():
    return [thread for thread in threading.enumerate() if thread.name == "recording"]


def recorder_of(client):
    return client.service._recorder


def test_requests_and_answers_are_recorded_as_they_were(tiny_checkpoint, record):
    with serving(tiny_checkpoint, ledger=str(record.path), record_share=1) as client:
        bodies = [{"values": [*GOOD, 1000.0 + number], "levels": [0.9]} for number in range(3)]
        answers = [client.post("/predict", json=body).json() for body in bodies]
        assert client.post("/predict", json={"values": []}).status_code == 422
        wait_for(lambda: len(rows(record)) == 3)
        sha256 = client.get("/model").json()["sha256"]
        for (at, symbol, model, request, answer), body, expected in zip(
            rows(record), bodies, answers, strict=True
        ):
            assert (symbol, model, json.loads(request), json.loads(answer)) == (
                "BTC-USD",
                sha256,
                body,
                expected,
            )
            assert at.endswith("+00:00")
        wait_for(lambda: recorder_of(client)._outcomes == {"recorded": 3})
        assert recorder_of(client).take() == {"recorded": 3}
        assert recorder_of(client).take() == {}


def test_without_a_share_nothing_runs(tiny_checkpoint, record):
    before = recording_threads()
    with serving(tiny_checkpoint, ledger=str(record.path)) as client:
        assert client.post("/predict", json={"values": GOOD}).status_code == 200
        assert recorder_of(client) is None
        assert recording_threads() == before


def test_a_share_of_the_requests_is_recorded(tiny_checkpoint, record):
    with serving(tiny_checkpoint, ledger=str(record.path), record_share=0.3) as client:
        for _ in range(200):
            assert client.post("/predict", json={"values": GOOD}).status_code == 200
        recorder = recorder_of(client)
        wait_for(
            lambda: recorder._waiting.empty() and sum(recorder._outcomes.values()) == len(rows(record)) > 0
        )
        assert 30 <= len(rows(record)) <= 90


def test_a_ledger_that_is_slow_or_gone_costs_requests_nothing_and_the_drops_are_counted(
    tiny_checkpoint, record, monkeypatch
):
    gate, started = threading.Event(), threading.Event()
    add = Record.add_requests

    def slow(self, requests):
        started.set()
        assert gate.wait(60)
        add(self, requests)

    monkeypatch.setattr(Record, "add_requests", slow)
    monkeypatch.setattr(recording, "MOST_WAITING", 5)
    with serving(tiny_checkpoint, ledger=str(record.path), record_share=1) as client:
        recorder = recorder_of(client)
        assert client.post("/predict", json={"values": GOOD}).status_code == 200
        assert started.wait(60)
        for _ in range(20):
            assert client.post("/predict", json={"values": GOOD}).status_code == 200
        assert recorder.take() == {"dropped": 15}
        gate.set()
        wait_for(lambda: len(rows(record)) == 6)
    with serving(tiny_checkpoint, ledger=str(record.path.with_name("none.db")), record_share=1) as client:
        assert client.post("/predict", json={"values": GOOD}).status_code == 200
        wait_for(lambda: recorder_of(client)._outcomes == {"dropped": 1})
    assert not record.path.with_name("none.db").exists()


def test_a_request_too_large_to_wait_in_memory_is_dropped(tiny_checkpoint, record, monkeypatch):
    monkeypatch.setattr(recording, "LARGEST_BYTES", 1000)
    with serving(tiny_checkpoint, ledger=str(record.path), record_share=1) as client:
        assert client.post("/predict", json={"values": GOOD}).status_code == 200
        assert recorder_of(client).take() == {"dropped": 1}


def test_the_outcomes_are_counters_of_prometheus(monkeypatch):
    shown = recorded_gauges(monkeypatch)
    publisher = Publisher()
    publisher.publish_recorded({"recorded": 3, "dropped": 1})
    publisher.publish_recorded({"recorded": 2})
    found = {key[1]: value for key, value in shown.items() if key[0] == "forecast_recorded_requests_total"}
    assert found == {"recorded": 5, "dropped": 1}
