"""The web application without a cluster: its answers and its refusals."""

import asyncio
import gzip
import json
import os
import socket
import subprocess
import sys
import tracemalloc
from dataclasses import replace

import click
import numpy as np
import pytest
from bodies import BAD_BODIES, GOOD
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving_here import LIMIT, serving

from forecast import Predictor
from forecast.errors import ForecastError, UsageError
from forecast.model.device import DEFAULT_GPU_SHARE, device_for_share
from serve_app.deployment import app, replica_gpus
from serve_app.flags import HAPROXY_SCRIPT, HAPROXY_VARIABLE, SERVE_FLAGS
from serve_app.gateway import DRAIN_FACTOR, BodyTooLarge, decode
from serve_app.ports import INTERNAL_PORTS, require_free_port, set_internal_ports


@pytest.fixture(scope="module")
def predictor(tiny_checkpoint):
    return Predictor(tiny_checkpoint, "cpu")


@pytest.fixture(scope="module")
def client(tiny_checkpoint):
    with serving(tiny_checkpoint) as client:
        yield client


def test_a_forecast_has_the_originals_six_fields_the_models_age_and_the_predictors_number(client, predictor):
    answer = client.post("/predict", json={"values": GOOD})
    assert answer.status_code == 200
    assert answer.json() == {
        "ok": True,
        "prediction": pytest.approx(predictor.predict_next(GOOD), rel=1e-6),
        "checkpoint_path": predictor.path,
        "sequence_length": 20,
        "symbol": "BTC-USD",
        "feature": "Close",
        "model_age": predictor.dating.age(),
    }
    assert answer.headers["x-model-version"] == predictor.checkpoint.sha256[:12]


def test_integers_are_numbers_and_unknown_fields_are_ignored(client):
    body = {"values": [int(value) for value in GOOD], "comment": None}
    assert client.post("/predict", json=body).json()["prediction"] == pytest.approx(
        client.post("/predict", json={"values": GOOD}).json()["prediction"]
    )


@pytest.mark.parametrize("name", BAD_BODIES)
def test_a_bad_body_is_refused_with_what_where_and_the_remedy(client, name):
    answer = client.post("/predict", content=BAD_BODIES[name])
    assert answer.status_code == 422
    refusal = answer.json()
    assert refusal["ok"] is False
    problem = refusal["detail"][0]
    assert problem["loc"][0] == "body"
    assert len(problem["msg"]) > 10


def test_a_refusal_names_the_place_of_the_bad_value(client):
    problem = client.post("/predict", content=BAD_BODIES["null"]).json()["detail"][0]
    assert problem["loc"] == ["body", "values", 19]
    few = client.post("/predict", content=BAD_BODIES["too few values"]).json()["detail"][0]
    assert few["msg"] == "2 values are too few: this model needs at least 20, oldest first"


def test_a_body_over_the_limit_gets_413_whatever_its_headers_say(client):
    large = json.dumps({"values": [1.0] * LIMIT}).encode()
    assert client.post("/predict", content=large).status_code == 413

    def chunks():
        for start in range(0, len(large), 1000):
            yield large[start : start + 1000]

    refused = client.post("/predict", content=chunks())
    assert refused.status_code == 413
    assert "send fewer values" in refused.json()["detail"][0]["msg"]
    assert client.post("/predict", content=b" " * (LIMIT * DRAIN_FACTOR + 1)).status_code == 413


json_values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=True) | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=25) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=30,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=200), json_values, st.fixed_dictionaries({"values": json_values})))
def test_no_body_whatever_makes_the_server_fail(client, body):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = client.post("/predict", content=content)
    assert answer.status_code in (200, 422)
    json.loads(answer.text, parse_constant=lambda word: pytest.fail(f"{word} in an answer"))


@given(st.lists(st.floats(1e-3, 1e9), min_size=20, max_size=40))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_window_of_positive_prices_gets_a_finite_forecast_or_a_clear_refusal(client, values):
    answer = client.post("/predict", json={"values": values})
    if answer.status_code == 200:
        assert 0 < answer.json()["prediction"] < float("inf")
    else:
        assert answer.status_code == 422
        assert "training range" in answer.json()["detail"][0]["msg"]


def test_the_model_is_described_beside_persistence(client, tiny_result):
    about = client.get("/model").json()
    assert (about["symbol"], about["feature"], about["sequence_length"]) == ("BTC-USD", "Close", 20)
    assert about["metrics_test"] == tiny_result.test.model
    assert about["persistence"]["test"] == tiny_result.test.persistence
    assert about["trained_on"]["last_date"] == "2020-01-16"


def test_health_and_documentation_answer(client):
    assert client.get("/healthz").json() == {"ok": True}
    assert client.get("/docs").status_code == 200
    schema = client.get("/openapi.json").json()
    body = schema["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    kinds = [schema["components"]["schemas"][kind["$ref"].rpartition("/")[2]] for kind in body["anyOf"]]
    assert [kind["properties"]["values"]["items"]["type"] for kind in kinds] == ["number", "array"]


def test_what_is_no_route_is_refused_in_the_form_of_every_refusal(client):
    wrong_method, nowhere = client.get("/predict"), client.get("/nowhere")
    assert (wrong_method.status_code, wrong_method.headers["allow"]) == (405, "POST")
    assert (nowhere.status_code, client.get("/assets/nothing.js").status_code) == (404, 404)
    for answer, loc, message in (
        (wrong_method, "method", "/predict does not take GET; use POST"),
        (nowhere, "path", "there is no /nowhere; GET /docs lists the routes"),
    ):
        (problem,) = answer.json()["detail"]
        assert answer.json()["ok"] is False
        assert (problem["loc"], problem["msg"]) == ([loc], message)


def test_a_replica_asks_for_a_gpu_only_where_there_is_one():
    assert replica_gpus(None, 0) == 0
    assert replica_gpus(None, 4) == DEFAULT_GPU_SHARE
    assert replica_gpus(0.5, 1) == 0.5
    with pytest.raises(UsageError, match="num_gpus=1: the cluster has 0 GPUs"):
        replica_gpus(1, 0)


@pytest.mark.parametrize(
    ("gpu_ids", "visible", "device"),
    [(["0"], True, "cuda"), (["0"], False, "cpu"), ([], True, "cpu"), (None, True, "cpu")],
)
def test_a_process_uses_a_gpu_only_with_a_share_of_one_that_torch_can_see(
    monkeypatch, gpu_ids, visible, device
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: visible)
    assert device_for_share(gpu_ids) == device


def test_the_checkpoint_comes_from_the_argument_then_the_environment_then_the_default(monkeypatch):
    def message(**args):
        with pytest.raises(click.ClickException) as caught:
            app(args)
        return caught.value.message

    monkeypatch.setenv("FORECAST_CHECKPOINT", "from/environment.pt")
    assert "/given.pt" in message(checkpoint="given.pt")
    assert "/from/environment.pt" in message()
    monkeypatch.delenv("FORECAST_CHECKPOINT")
    assert "/artifacts/best_pareto_lstm.pt" in message()
    monkeypatch.setenv("FORECAST_REPLICAS", "few")
    assert message() == "FORECAST_REPLICAS few: give a whole number"


def test_importing_the_application_sets_the_flags_and_keeps_those_already_set():
    code = "import os, serve_app; print({n: os.environ[n] for n in serve_app.flags.SERVE_FLAGS})"
    environment = {name: value for name, value in os.environ.items() if name not in SERVE_FLAGS}
    environment["RAY_SERVE_HAPROXY_NBTHREAD"] = "3"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True, timeout=100
    )
    assert done.stdout.strip() == str({**SERVE_FLAGS, "RAY_SERVE_HAPROXY_NBTHREAD": "3"})


def test_the_flags_command_prepares_a_shell_for_the_start_of_a_cluster():
    shell = 'eval "$("$0" -m serve_app flags)"; env'
    environment = {name: value for name, value in os.environ.items() if name not in SERVE_FLAGS}
    environment.pop(HAPROXY_VARIABLE, None)
    done = subprocess.run(
        ["sh", "-c", shell, sys.executable],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
        timeout=100,
    )
    exported = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    assert SERVE_FLAGS.items() <= exported.items()
    assert exported[HAPROXY_VARIABLE].endswith(f"/{HAPROXY_SCRIPT}")


def test_a_forecast_beyond_all_numbers_is_refused_and_not_answered_with_infinity(client, monkeypatch):
    model = asyncio.run(client.service.models.choose(None))
    forecaster = replace(
        model.predictor._forecaster, run=lambda inputs: np.full((len(inputs[0]), 1, 1), 1e30)
    )
    monkeypatch.setattr(model.predictor, "_forecaster", forecaster)
    answer = client.post("/predict", json={"values": GOOD})
    assert answer.status_code == 422
    assert "not a finite number" in answer.json()["detail"][0]["msg"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"replicas": "0"}, "option replicas 0: give at least 1"),
        ({"nonsense": "1"}, "option nonsense: no such option"),
    ],
)
def test_a_wrong_option_of_the_application_is_one_line_in_the_words_of_serve_run(arguments, message):
    with pytest.raises(click.ClickException) as caught:
        app(arguments)
    assert caught.value.message == message


def packed(body, **changes):
    return {"content": gzip.compress(body), "headers": {"content-encoding": "gzip", **changes}}


@pytest.mark.parametrize("route", ["/predict", "/predict/batch", "/model", "/models", "/healthz"])
def test_a_slash_at_the_end_of_a_route_changes_nothing(tiny_checkpoint, route):
    with serving(tiny_checkpoint, api_key="open sesame") as client:
        client.follow_redirects = False
        method = "POST" if route.startswith("/predict") else "GET"
        body = {"values": GOOD, "windows": [GOOD]} if method == "POST" else None
        for key in ("open sesame", "wrong"):
            without, with_slash = (
                client.request(method, path, json=body, headers={"x-api-key": key})
                for path in (route, f"{route}/")
            )
            status = 200 if key == "open sesame" or route == "/healthz" else 401
            assert without.status_code == with_slash.status_code == status
            assert (without.content, without.headers) == (with_slash.content, with_slash.headers)
        counted = client.service.measurements.requests
        assert sum(counted.values()) == sum(n for (known, _), n in counted.items() if known == route) == 4


@pytest.mark.parametrize("route", ["/", "/healthz", "/model", "/models", "/docs", "/openapi.json"])
def test_head_is_answered_as_get_without_the_body(client, route):
    asked, got = client.head(route), client.get(route)
    assert (asked.status_code, asked.content) == (200, b"")
    assert asked.headers == got.headers
    assert got.content


def test_head_of_a_forecast_route_is_refused_and_no_operation_is_described_for_it(client):
    assert client.head("/predict").status_code == 405
    operations = client.get("/openapi.json").json()["paths"]
    assert {path: list(methods) for path, methods in operations.items()} == {
        "/predict": ["post"],
        "/predict/batch": ["post"],
        "/model": ["get"],
        "/models": ["get"],
        "/forecast": ["get"],
        "/forecast/{symbol}": ["get"],
        "/scores": ["get"],
        "/healthz": ["get"],
    }


def test_a_body_in_utf_8_may_begin_with_a_byte_order_mark(client):
    body = json.dumps({"values": GOOD})
    plain = client.post("/predict", content=body)
    marked = client.post("/predict", content=body.encode("utf-8-sig"))
    assert (marked.status_code, marked.content) == (200, plain.content)
    assert client.post("/predict", **packed(body.encode("utf-8-sig"))).content == plain.content


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_body_in_another_encoding_is_told_to_be_utf_8(client, encoding):
    answer = client.post("/predict", content=json.dumps({"values": GOOD}).encode(encoding))
    assert answer.status_code == 422
    (problem,) = answer.json()["detail"]
    assert (problem["loc"], problem["type"]) == (["body"], "encoding")
    assert problem["msg"] == f"the body looks like {encoding.upper()} text; send JSON in UTF-8"


@pytest.mark.parametrize("coding", ["gzip", "GZip", "x-gzip"])
@pytest.mark.parametrize("route", ["/predict", "/predict/batch"])
def test_a_body_packed_with_gzip_is_answered_as_the_plain_body(client, route, coding):
    body = json.dumps({"values": GOOD, "windows": [GOOD]}).encode()
    plain = client.post(route, content=body, headers={"content-encoding": "identity"})
    answer = client.post(route, **packed(body, **{"content-encoding": coding}))
    assert (answer.status_code, answer.content) == (200, plain.content)


def test_a_packed_body_is_unpacked_up_to_the_limit_and_no_further(client):
    body = json.dumps({"values": GOOD}).encode()
    assert client.post("/predict", **packed(body.ljust(LIMIT))).status_code == 200
    refused = client.post("/predict", **packed(body.ljust(LIMIT + 1)))
    assert (refused.status_code, refused.json()["detail"][0]["type"]) == (413, "body_too_large")
    bomb = gzip.compress(bytes(100 * LIMIT))
    tracemalloc.start()
    try:
        with pytest.raises(BodyTooLarge):
            decode(bomb, b"gzip", LIMIT)
        assert tracemalloc.get_traced_memory()[1] < 10 * LIMIT
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda whole: b'{"values": []}', "incorrect header check"),
        (lambda whole: b"", "its end is missing"),
        (lambda whole: whole[:-3], "its end is missing"),
        (lambda whole: whole + whole, "something follows its end"),
        (lambda whole: whole[:-8] + bytes(8), "incorrect data check"),
    ],
)
def test_a_damaged_gzip_body_is_refused_as_such(client, damage, reason):
    request = packed(json.dumps({"values": GOOD}).encode())
    answer = client.post("/predict", **{**request, "content": damage(request["content"])})
    assert answer.status_code == 422
    (problem,) = answer.json()["detail"]
    assert (problem["loc"], problem["type"]) == (["body"], "gzip")
    assert reason in problem["msg"]
    assert problem["msg"].endswith("pack it again, or send plain JSON")


@pytest.mark.parametrize("coding", ["br", "deflate", "zstd", "gzip, gzip"])
def test_another_content_encoding_is_refused_with_those_that_are_accepted(client, coding):
    answer = client.post("/predict", **packed(b"{}", **{"content-encoding": coding}))
    assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "gzip, identity")
    (problem,) = answer.json()["detail"]
    assert problem["loc"] == ["header", "content-encoding"]
    assert problem["msg"].startswith(f"the content encoding {coding} is not accepted; send gzip")


def test_a_port_that_cannot_be_used_is_refused_with_the_reason():
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        for host in ("127.0.0.1", "0.0.0.0"):
            with pytest.raises(
                ForecastError, match=rf"^port {port} is taken by .+ \(pid {os.getpid()}\); stop"
            ):
                require_free_port(host, port)
    require_free_port("127.0.0.1", port)
    with pytest.raises(
        ForecastError, match=r"port 80 of 203\.0\.113\.1: cannot assign requested address; use"
    ):
        require_free_port("203.0.113.1", 80)


def test_servers_on_other_ports_get_internal_ports_that_none_shares(monkeypatch):
    chosen = []
    for port in (8001, 8002, 8500, 65535):
        for name in INTERNAL_PORTS:
            monkeypatch.setenv(name, "")
            monkeypatch.delenv(name)
        set_internal_ports(port)
        chosen += [os.environ[name] for name in INTERNAL_PORTS]
    assert len(set(chosen)) == 4 * len(INTERNAL_PORTS)
    taken = int(os.environ["RAY_SERVE_HAPROXY_STATS_PORT"])
    with socket.create_server(("127.0.0.1", taken)):
        monkeypatch.delenv("RAY_SERVE_HAPROXY_STATS_PORT")
        monkeypatch.setenv("RAY_SERVE_HAPROXY_METRICS_PORT", "9999")
        set_internal_ports(65535)
    assert os.environ["RAY_SERVE_HAPROXY_METRICS_PORT"] == "9999"
    assert int(os.environ["RAY_SERVE_HAPROXY_STATS_PORT"]) != taken
