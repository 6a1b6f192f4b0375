"""``serve run`` for real: HAProxy in front, a real HTTP client, and a missing checkpoint."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2 as httpx
import psutil
import pytest
from bodies import BAD_BODIES
from processes import family, replicas

from forecast import Predictor, save_checkpoint
from forecast.__main__ import main as forecast_main
from forecast.errors import ForecastError
from serve_app import foreground
from serve_app.flags import SERVE_FLAGS
from serve_app.options import RunOptions

pytestmark = pytest.mark.slow

URL = "http://127.0.0.1:8000"
SERVE = str(Path(sys.executable).with_name("serve"))


def environment():
    kept = {name: value for name, value in os.environ.items() if name not in SERVE_FLAGS}
    return {**kept, "RAY_ADDRESS": "local"}


def wait_for_answer(process, url, log):
    deadline = time.monotonic() + 120
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/healthz").status_code == 200:
                return
        time.sleep(0.5)


@pytest.fixture(scope="module")
def server(tiny_checkpoint, tmp_path_factory):
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", 8000)) != 0, "port 8000 is taken: stop what listens there"
    log = tmp_path_factory.mktemp("serve") / "log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [SERVE, "run", "serve_app:app", f"checkpoint={tiny_checkpoint}"],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment(),
            start_new_session=True,
        )
    try:
        wait_for_answer(process, URL, log)
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def test_it_answers_as_the_predictor_and_the_command_line_do(server, tiny_checkpoint, capsys):
    assert forecast_main(["infer", "--checkpoint", str(tiny_checkpoint), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    answer = httpx.post(f"{URL}/predict", json={"values": printed["values"]}).json()
    predictor = Predictor(tiny_checkpoint, "cpu")
    assert len(printed["values"]) == 251
    assert answer == {
        "ok": True,
        "prediction": pytest.approx(printed["prediction"], rel=1e-6),
        "checkpoint_path": str(tiny_checkpoint),
        "sequence_length": 20,
        "symbol": "BTC-USD",
        "feature": "Close",
        "model_age": predictor.dating.age(),
    }
    assert answer["prediction"] == pytest.approx(predictor.predict_next(printed["values"]), rel=1e-6)


@pytest.mark.parametrize("name", BAD_BODIES)
def test_it_refuses_bad_bodies(server, name):
    assert httpx.post(f"{URL}/predict", content=BAD_BODIES[name]).status_code == 422


def test_it_refuses_a_body_of_100_mb_and_goes_on(server):
    chunk = b"1.0," * 250_000

    def hundred_megabytes():
        yield b'{"values": ['
        for _ in range(100):
            yield chunk

    assert httpx.post(f"{URL}/predict", content=hundred_megabytes(), timeout=60).status_code == 413
    length = {"content-length": str(100 * len(chunk))}
    sized = httpx.post(f"{URL}/predict", content=(chunk for _ in range(100)), headers=length, timeout=60)
    assert sized.status_code == 413
    assert httpx.get(f"{URL}/healthz").json() == {"ok": True}


def test_it_describes_its_model_and_its_interface(server):
    assert httpx.get(f"{URL}/model").json()["symbol"] == "BTC-USD"
    assert "/predict" in httpx.get(f"{URL}/openapi.json").json()["paths"]
    assert httpx.get(f"{URL}/docs").status_code == 200


def test_an_answer_has_the_clients_request_id_or_one_of_its_own(server):
    given = httpx.get(f"{URL}/model", headers={"x-request-id": "one-of-mine"})
    assert given.headers["x-request-id"] == "one-of-mine"
    assert len(httpx.get(f"{URL}/model").headers["x-request-id"]) >= 32


def running(*arguments):
    """Return the command of a server in the foreground on the default port, or on that of ``arguments``."""
    return [sys.executable, "-m", "serve_app", "run", *map(str, arguments)]


@pytest.mark.parametrize("command", [[SERVE, "run", "serve_app:app"], running()])
def test_a_taken_port_is_named_in_one_line_with_what_holds_it_and_the_remedy(
    server, tiny_checkpoint, command
):
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**environment(), "FORECAST_CHECKPOINT": str(tiny_checkpoint)},
        timeout=100,
    )
    (haproxy,) = [process.pid for process, _ in family(server.pid) if process.name() == "haproxy"]
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].lower() == (
        f"error: port 8000 is taken by haproxy (pid {haproxy}) of a running server; stop it, or use another port: "
        "python -m serve_app run --port n"
    )


def test_a_ray_that_does_not_start_is_one_line_that_names_its_logs(monkeypatch):
    def fail(*_, **__):
        raise Exception("the node timed out\nand more lines")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(foreground, "build", lambda _: None)
    monkeypatch.setattr(foreground, "prepare_cluster", lambda *_: None)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", fail)
    with pytest.raises(
        ForecastError, match=r"Ray could not start on this machine \(the node timed out\); its logs"
    ):
        foreground.serve_until_stopped(RunOptions())


def test_two_servers_on_one_machine_answer_with_their_own_models_on_ports_of_their_own(
    server, tiny_checkpoint, tiny_result, tmp_path
):
    state = {name: value.clone() for name, value in tiny_result.checkpoint.model_state.items()}
    state["regressor.bias"] += 0.5
    changed, other = tmp_path / "other.pt", tmp_path / "other.onnx"
    save_checkpoint(tiny_result.checkpoint.model_copy(update={"model_state": state}), changed)
    assert forecast_main(["export", str(changed), str(other)]) == 0
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path / "log"
    with log.open("w") as stream:
        second = subprocess.Popen(
            running("--port", port, "--checkpoint", other),
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment(),
            start_new_session=True,
        )
    try:
        wait_for_answer(second, f"http://127.0.0.1:{port}", log)
        window = {"values": [1000.0 + row for row in range(20)]}
        for _ in range(10):
            for url, path in ((URL, tiny_checkpoint), (f"http://127.0.0.1:{port}", other)):
                answer = httpx.post(f"{url}/predict", json=window).json()
                assert answer["checkpoint_path"] == str(path)
        assert answer["prediction"] == pytest.approx(Predictor(changed).predict_next(window["values"]))
        # An exported model needs no torch: 150 MB of its libraries stay out of the replica.
        with_torch = [
            any("libtorch" in Path(f"/proc/{pid}/maps").read_text() for pid in replicas(process.pid))
            for process in (server, second)
        ]
        assert with_torch == [True, False]
        listening = [
            {
                connection.laddr.port
                for process, title in family(pid)
                if process.name() == "haproxy" or title.startswith(("ray::ServeReplica", "ray::ProxyActor"))
                for connection in process.net_connections("tcp4")
                if connection.status == psutil.CONN_LISTEN
            }
            for pid in (server.pid, second.pid)
        ]
        assert {8000, 8404, 9101, 8500} <= listening[0]
        assert port in listening[1]
        assert not listening[0] & listening[1]
    finally:
        second.send_signal(signal.SIGTERM)
        assert second.wait(60) == 0, log.read_text()
    assert httpx.get(f"{URL}/healthz").status_code == 200


@pytest.mark.parametrize(
    ("number", "reached"),
    [
        (signal.SIGTERM, ""),
        (signal.SIGINT, "is not set"),
        (signal.SIGINT, "Started a local Ray instance"),
        (signal.SIGTERM, "Started Serve"),
        (signal.SIGTERM, "is ready"),
    ],
)
def test_a_signal_while_it_starts_ends_it_without_a_traceback(tiny_checkpoint, tmp_path, number, reached):
    log = tmp_path / "log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            running("--port", 8123, "--checkpoint", tiny_checkpoint),
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={name: value for name, value in environment().items() if name != "FORECAST_API_KEY"},
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 120
        while reached not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        time.sleep(1)  # then it imports torch, or starts Ray, Serve, the replica or Ray's dashboard
        process.send_signal(number)
        code, lines = process.wait(60), log.read_text().splitlines()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    # Ray sees a signal up to two seconds late; a server that answers by then ends as one that runs.
    answered = any("Deleting app" in line for line in lines)
    assert answered or reached != "is ready"
    assert code == (0 if answered else 130), lines
    assert answered or lines[-1] == "interrupted"
    assert not any("Traceback" in line for line in lines)


def address_of(server):
    # The tests' own cluster runs on this machine too.
    (address,) = {
        found[1] for _, words in family(server.pid) if (found := re.search(r"--gcs-address=(\S+)", words))
    }
    return address


def test_a_second_server_on_the_same_cluster_is_refused_and_the_first_goes_on(server, tiny_checkpoint):
    done = subprocess.run(
        [sys.executable, "-m", "serve_app", "run", "--checkpoint", str(tiny_checkpoint), "--port", "8123"],
        capture_output=True,
        text=True,
        env={**environment(), "RAY_ADDRESS": address_of(server), "RAY_AUTH_MODE": "token"},
        timeout=100,
    )
    assert done.returncode == 2, done.stderr
    assert "Ray Serve runs on that cluster already" in done.stderr.splitlines()[-1]
    assert httpx.get(f"{URL}/healthz").status_code == 200


def reload(server):
    return subprocess.run(
        [sys.executable, "-m", "serve_app", "reload", "--address", address_of(server)],
        capture_output=True,
        text=True,
        env={**environment(), "RAY_ADDRESS": "", "RAY_AUTH_MODE": "token"},
        timeout=100,
    )


def test_a_changed_checkpoint_goes_live_by_reload_and_a_bad_one_is_refused(
    server, tiny_checkpoint, tiny_result
):
    whole = tiny_checkpoint.read_bytes()
    window = {"values": [1000.0 + row for row in range(20)]}
    first = httpx.post(f"{URL}/predict", json=window).json()["prediction"]
    try:
        state = {name: value.clone() for name, value in tiny_result.checkpoint.model_state.items()}
        state["regressor.bias"] += 0.5
        save_checkpoint(tiny_result.checkpoint.model_copy(update={"model_state": state}), tiny_checkpoint)
        done = reload(server)
        assert done.returncode == 0, done.stderr
        second = httpx.post(f"{URL}/predict", json=window).json()["prediction"]
        assert second > first
        tiny_checkpoint.write_bytes(whole[:1000])
        done = reload(server)
        assert done.returncode == 1
        assert "refused by 1 of 1 replicas" in done.stderr
        assert httpx.post(f"{URL}/predict", json=window).json()["prediction"] == second
        assert "damaged" in httpx.get(f"{URL}/model").json()["refused"]["reason"]
    finally:
        tiny_checkpoint.write_bytes(whole)
        reload(server)


def test_haproxys_administration_is_on_the_loopback_alone(server):
    listening = [
        line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if " 0A " in line
    ]
    by_port = {int(address.split(":")[1], 16): address.split(":")[0] for address in listening}
    assert by_port[8404] == by_port[9101] == "0100007F"


def test_haproxy_is_what_answers(server):
    assert "haproxy" in {process.name() for process, _ in family(server.pid)}


def test_a_server_has_rays_dashboard_which_tells_prometheus_where_the_metrics_are(server):
    deadline = time.monotonic() + 100
    found = None
    while not (found and found.is_file()):
        assert time.monotonic() < deadline, [title for _, title in family(server.pid)]
        time.sleep(0.5)
        for _, words in family(server.pid):
            if "dashboard.py" in words and (place := re.search(r"--session-dir=(\S+)", words)):
                found = Path(place[1], "prom_metrics_service_discovery.json")
    (job,) = json.loads(found.read_text())
    assert job["targets"]


def test_haproxy_and_a_replica_that_are_killed_come_back_by_themselves(server):
    def haproxy():
        return {process.pid for process, _ in family(server.pid) if process.name() == "haproxy"}

    for killed in (haproxy, lambda: replicas(server.pid)):
        before = killed()
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 30
        while True:
            assert time.monotonic() < deadline
            with contextlib.suppress(httpx.TransportError):
                window = {"values": [1000.0] * 20}
                if killed() - before and httpx.post(f"{URL}/predict", json=window).status_code == 200:
                    break
            time.sleep(0.2)


@pytest.mark.parametrize("kind", ["missing", "truncated"])
def test_without_a_usable_checkpoint_it_ends_within_seconds_and_says_how_to_make_one(
    tmp_path, tiny_checkpoint, kind
):
    path = tmp_path / "model.pt"
    if kind == "truncated":
        path.write_bytes(tiny_checkpoint.read_bytes()[:500])
    started = time.monotonic()
    done = subprocess.run(
        [SERVE, "run", "serve_app:app"],
        capture_output=True,
        text=True,
        env={**environment(), "FORECAST_CHECKPOINT": str(path)},
        timeout=60,
    )
    assert done.returncode == 1
    assert time.monotonic() - started < 30
    last = done.stderr.strip().splitlines()[-1]
    assert str(path) in last
    assert "python -m tune_jobs.pareto" in last
    assert "Traceback" not in done.stderr
