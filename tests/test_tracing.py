"""OpenTelemetry's spans of the application, as a collector gets them over OTLP/HTTP."""

import asyncio
import logging
import os
import re
import sys
from pathlib import Path

import httpx2 as httpx
import pytest
from collector import collecting, plain
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from serving_here import build

from forecast import Predictor
from forecast.version import installed_version
from serve_app import tracing
from serve_app.batching import Batcher
from serve_app.gateway import WebApp
from serve_app.metrics import short_version

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
KEY = "correct-horse"
IMPORTS = re.compile(r"^\s*(from|import) opentelemetry", re.M)


@pytest.fixture(scope="module")
def predictor(tiny_checkpoint):
    return Predictor(tiny_checkpoint, "cpu", "auto")


@pytest.fixture(scope="module")
def window(predictor):
    return predictor.typical_window()


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    """Nothing from the machine's environment."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def traced(monkeypatch, tiny_checkpoint):
    """Returns a function that sends requests to the traced application, and then gives the answers and the spans."""

    def send(*requests, environment=None, **options):
        for name, value in (environment or {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint}).items():
            monkeypatch.setenv(name, value)
        tracing.spans.cache_clear()
        web, _ = build(tiny_checkpoint, **options)

        async def answers():
            async with httpx.AsyncClient(transport=httpx.ASGITransport(web), base_url="http://here") as http:
                return await asyncio.gather(*(http.request(*args, **more) for args, more in requests))

        answered = asyncio.run(answers())
        if (made := tracing.spans()) is not None:
            made.provider.shutdown()
        return answered, collector

    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
        yield send
        tracing.spans.cache_clear()


def request(method, path, **more):
    return (method, path), more


def children(spans, parent):
    return [span for span in spans if span.parent_span_id == parent.span_id]


def test_the_trace_of_a_request_goes_from_the_client_to_the_batch_and_the_network(traced, window, predictor):
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-api-key": KEY}
    ask = request("POST", "/predict", json={"values": window, "levels": [0.9]}, headers=headers)
    (answer,), collector = traced(ask, api_key=KEY)
    assert answer.status_code == 200
    (root,) = collector.named("POST /predict")
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
    assert (root.parent_span_id.hex(), root.kind) == (PARENT, Span.SPAN_KIND_SERVER)
    assert plain(root.attributes) == {
        "http.request.method": "POST",
        "http.route": "/predict",
        "http.response.status_code": 200,
        "url.path": "/predict",
        "url.scheme": "http",
    }
    wait, batch = children(collector.spans, root)
    (network,) = children(collector.spans, batch)
    assert (wait.name, batch.name, network.name) == ("wait", "batch", "network")
    assert plain(network.attributes) == {
        "forecast.batch.size": 1,
        "forecast.device": "cpu",
        "forecast.engine": predictor.engine.name,
        "forecast.model.version": short_version(predictor.checkpoint.sha256),
        "forecast.symbol": "BTC-USD",
    }
    assert wait.end_time_unix_nano <= network.start_time_unix_nano
    assert network.end_time_unix_nano <= batch.end_time_unix_nano <= root.end_time_unix_nano
    (resource,) = collector.resources
    assert (resource["service.name"], resource["service.version"]) == (
        "price-forecaster",
        installed_version(),
    )


def test_neither_prices_nor_keys_are_sent(traced, window):
    broken = [*window[:-1], -123456.789]
    _, collector = traced(
        *(
            request(
                "POST", path, json=body, headers={"authorization": f"Bearer {KEY}"}, params={"q": "secret"}
            )
            for path, body in (
                ("/predict", {"values": broken}),
                ("/predict", {"values": broken, "horizon": 2}),
                ("/predict/batch", {"windows": [window, broken]}),
            )
        ),
        api_key=KEY,
    )
    assert len(collector.spans) >= 6
    for secret in ("123456", KEY, "secret", *map(repr, window[-3:])):
        assert not any(secret.encode() in body for body in collector.bodies), secret


def test_requests_that_share_a_batch_are_linked_to_it(traced, window):
    asks = [request("POST", "/predict", json={"values": window}) for _ in range(3)]
    _, collector = traced(*asks, batch_wait_ms=200)
    roots, waits = collector.named("POST /predict"), collector.named("wait")
    (batch,), (network,) = collector.named("batch"), collector.named("network")
    assert len({span.trace_id for span in roots}) == 3
    assert {(link.trace_id, link.span_id) for link in batch.links} == {
        (span.trace_id, span.span_id) for span in roots
    }
    assert batch.parent_span_id in {span.span_id for span in roots}
    assert [link.span_id for span in waits for link in span.links] == [batch.span_id] * 3
    assert plain(network.attributes)["forecast.batch.size"] == 3


def test_computations_without_a_batch_are_networks_of_their_request(traced, window):
    asks = [
        request("POST", "/predict", json={"values": window, "horizon": 3, "levels": [0.9]}),
        request("POST", "/predict/batch", json={"windows": [window] * 5}),
        request("POST", "/predict/batch", json={"series": [{"symbol": "BTC-USD", "values": window}] * 2}),
    ]
    answers, collector = traced(*asks)
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    sizes = [
        [plain(span.attributes)["forecast.batch.size"] for span in children(collector.spans, root)]
        for root in (*collector.named("POST /predict"), *collector.named("POST /predict/batch"))
    ]
    assert sizes == [[1, 1], [5], [2]]  # steps, then their intervals
    assert {span.name for span in collector.spans if span.parent_span_id} == {"network"}


def test_errors_mark_the_spans_they_belong_to(traced, window):
    bad = request("POST", "/predict", json={"values": [*window[:-1], -1.0]})
    late = {"request_timeout_s": 0.1, "batch_wait_ms": 1000}
    (refused,), collector = traced(bad)
    assert refused.status_code == 422
    (root,), (network,) = collector.named("POST /predict"), collector.named("network")
    assert root.status.code == Status.STATUS_CODE_UNSET  # it is the client's
    assert plain(root.attributes)["http.response.status_code"] == 422
    assert (network.status.code, network.status.message) == (Status.STATUS_CODE_ERROR, "")
    assert plain(network.attributes)["error.type"] == "WindowError"

    collector.bodies.clear()
    (timed_out,), _ = traced(request("POST", "/predict", json={"values": window}), **late)
    assert timed_out.status_code == 503
    kinds = {span.name: plain(span.attributes)["error.type"] for span in collector.spans}
    assert kinds == {"POST /predict": "503", "wait": "CancelledError"}
    assert all(span.status.code == Status.STATUS_CODE_ERROR for span in collector.spans)


def test_routes_have_names_of_few_kinds_and_health_checks_no_spans(traced):
    paths = ("/model", "/models/", "/forecast/BTC%2FUSD", "/no/such/place", "/healthz")
    _, collector = traced(*(request("GET", path) for path in paths))
    names = {"GET /model", "GET /models", "GET /forecast/{symbol}", "GET other"}
    assert {span.name for span in collector.spans} == names


@pytest.mark.parametrize(
    ("environment", "sampled", "expected"),
    [
        ({"OTEL_TRACES_SAMPLER": "always_off"}, "01", 0),
        ({"OTEL_TRACES_SAMPLER": "parentbased_always_off"}, "01", 4),
        ({"OTEL_SERVICE_NAME": "ours"}, "00", 0),
        ({"OTEL_SDK_DISABLED": "true"}, "01", 0),
        ({"OTEL_TRACES_EXPORTER": "none"}, "01", 0),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, "01", 4),
    ],
)
def test_the_environment_and_the_client_say_what_is_sampled(traced, window, environment, sampled, expected):
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-{sampled}"}
    (answer,), collector = traced(
        request("POST", "/predict", json={"values": window}, headers=headers), environment=environment
    )
    assert answer.status_code == 200
    assert len(collector.spans) == expected


@pytest.mark.parametrize(
    ("environment", "asked"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_SERVICE_NAME": "ours"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "console"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, False),
        ({"OTEL_SDK_DISABLED": "TRUE", "OTEL_TRACES_EXPORTER": "otlp"}, False),
    ],
)
def test_only_the_standard_variables_ask_for_traces(environment, asked):
    assert tracing.is_asked_for(environment) is asked


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"OTEL_TRACES_EXPORTER": "no_such_exporter"}, "install pareto-price-forecaster[tracing]"),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_BSP_MAX_QUEUE_SIZE": "256"}, "max_queue_size"),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_BSP_SCHEDULE_DELAY": "0"}, "must be positive"),
    ],
)
def test_what_cannot_be_traced_is_one_line_and_requests_are_answered(traced, window, environment, reason):
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger("ray.serve").addHandler(handler)
    try:
        sent = request("POST", "/predict", json={"values": window})
        answers, _ = traced(sent, sent, environment=environment)
    finally:
        logging.getLogger("ray.serve").removeHandler(handler)
    assert [answer.status_code for answer in answers] == [200, 200]
    (line,) = lines
    assert line.startswith("requests are not traced: ")
    assert reason in line


def test_a_collector_that_does_not_answer_is_said_in_the_log_of_the_replica(traced, window):
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger("ray.serve").addHandler(handler)
    try:
        nowhere = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
        }
        answers, _ = traced(request("POST", "/predict", json={"values": window}), environment=nowhere)
    finally:
        for name in ("ray.serve", "opentelemetry"):
            logging.getLogger(name).removeHandler(handler)
    assert [answer.status_code for answer in answers] == [200]
    assert any("127.0.0.1" in line or "export" in line for line in lines), lines


def test_without_the_variables_nothing_is_imported_or_wrapped(monkeypatch, tiny_checkpoint):
    # FastAPI and Ray Serve import OpenTelemetry's API and SDK themselves; here, only this module does.
    monkeypatch.delitem(sys.modules, "serve_app.spans", raising=False)
    tracing.spans.cache_clear()
    web, service = build(tiny_checkpoint)
    (model,) = service.models.loaded
    assert type(web) is WebApp
    assert type(model.prices) is type(model.predictions) is Batcher
    assert tracing.traced_network(len, [model.predictor], 1) is len
    assert "serve_app.spans" not in sys.modules
    packages = (Path(tracing.__file__).parents[1] / name for name in ("forecast", "serve_app", "tune_jobs"))
    importing = [
        file.stem for each in packages for file in each.rglob("*.py") if IMPORTS.search(file.read_text())
    ]
    assert importing == ["spans"]
