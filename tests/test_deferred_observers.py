"""Ray's dashboard and monitor start once the application answers, and never keep a server from its work."""

import logging
import threading
import time

import pytest

from forecast.errors import ForecastError
from serve_app import ray_internals
from serve_app.ray_internals import require_proxies


class Node:
    """Ray's node, which only records what starts."""

    webui_url = None

    def __init__(self):
        self.started, self.all = [], threading.Event()

    def start_monitor(self):
        self.started.append("monitor")

    def start_api_server(self, **options):
        self.started.append(options)
        self.webui_url = "127.0.0.1:8265"
        self.all.set()

    def get_logs_dir_path(self):
        return "the logs"

    def start(self):
        self.start_monitor()
        self.start_api_server(include_dashboard=None)
        return self


BOTH = ["monitor", {"include_dashboard": None}]


@pytest.fixture(autouse=True)
def _fake_node(monkeypatch):
    monkeypatch.setattr(ray_internals, "Node", Node)
    starts = Node.start_monitor, Node.start_api_server
    monkeypatch.setattr(ray_internals, "OBSERVERS", dict(zip(("monitor", "dashboard"), starts, strict=True)))
    monkeypatch.setattr(ray_internals, "LOOK_EVERY_S", 0.01)
    yield
    Node.start_monitor, Node.start_api_server = starts


@pytest.fixture
def defer():
    """``defer_observers``, whose threads end with the test."""
    ends = []

    def defer_(until):
        ends.append(ray_internals.defer_observers(until))
        return ends[-1]

    yield defer_
    for end in ends:
        end()


def test_they_start_in_order_once_the_application_answers_and_not_before(defer):
    answered, asked = threading.Event(), threading.Event()

    def answers():
        asked.set()
        return answered.is_set()

    defer(until=answers)
    node = Node().start()
    assert asked.wait(10)
    assert not node.all.wait(0.2)
    assert node.started == []
    answered.set()
    assert node.all.wait(10)
    assert node.started == BOTH


def test_they_start_without_an_answer_after_a_while(defer, monkeypatch):
    monkeypatch.setattr(ray_internals, "OBSERVERS_WAIT_S", 0.05)
    defer(until=lambda: False)
    node = Node().start()
    assert node.all.wait(10)
    assert node.started == BOTH


def test_a_server_that_ends_starts_none(defer):
    end = defer(until=lambda: False)
    before = set(threading.enumerate())
    node = Node().start()
    (thread,) = set(threading.enumerate()) - before
    end()
    thread.join(10)
    assert not thread.is_alive()
    assert node.started == []


def test_only_the_next_cluster_of_the_process_waits_however_often_it_is_prepared(defer):
    for _ in range(2):
        defer(until=lambda: False)
    assert Node().start().started == []
    assert Node().start().started == BOTH


def test_a_monitor_that_does_not_start_is_one_line_and_the_dashboard_starts(defer, caplog):
    def fail(_):
        raise AssertionError("no store")

    ray_internals.OBSERVERS["monitor"] = fail
    defer(until=lambda: True)
    with caplog.at_level(logging.WARNING, "ray.serve"):
        node = Node().start()
        assert node.all.wait(10)
    assert caplog.messages == ["Ray's monitor did not start (no store)"]


def test_a_dashboard_that_does_not_start_is_one_line_with_the_place_of_its_log(defer, caplog):
    ray_internals.OBSERVERS["dashboard"] = lambda _, **__: None  # Ray's returns without an address
    defer(until=lambda: True)
    with caplog.at_level(logging.WARNING, "ray.serve"):
        Node().start()
        deadline = time.monotonic() + 10
        while not caplog.messages and time.monotonic() < deadline:
            time.sleep(0.01)
    assert caplog.messages == ["Ray's dashboard did not start (its log is in the logs)"]


@pytest.mark.slow
def test_a_proxy_that_has_not_started_is_one_line_with_its_reason(cluster):
    import ray

    @ray.remote
    def ready():
        raise OSError("no file descriptor is left")

    with pytest.raises(
        ForecastError, match=r"a proxy of Ray Serve did not start \(.*no file descriptor is left\)"
    ):
        require_proxies([ready.remote()])
