"""``serve deploy serve_config.yaml``, unchanged, on a running cluster, and changes while it serves."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import httpx2 as httpx
import psutil
import pytest
import yaml
from processes import family, replicas

from forecast import Predictor, save_checkpoint
from serve_app.flags import SERVE_FLAGS, current_flags

pytestmark = pytest.mark.slow

CONFIG = Path(__file__).parents[1] / "serve_config.yaml"
URL = "http://127.0.0.1:9010"
BIN = Path(sys.executable).parent
KEY = "open sesame"
client = httpx.Client(headers={"authorization": f"Bearer {KEY}"}, timeout=30)
WINDOW = [1000.0 + row for row in range(20)]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Deployed:
    """A Ray cluster started in a checkpoint's directory, and ``serve deploy`` on it."""

    def __init__(self, place):
        self.place = place
        self.gcs, self.dashboard = f"127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}"
        clean = {name: value for name, value in os.environ.items() if name not in SERVE_FLAGS}
        secret = {"RAY_AUTH_MODE": "token", "FORECAST_API_KEY": KEY}
        subprocess.run(
            [BIN / "ray", "get-auth-token", "--generate"],
            env={**clean, **secret},
            check=True,
            capture_output=True,
        )
        self.environment = {**clean, **current_flags(), **secret, "RAY_ADDRESS": self.gcs}
        command = [BIN / "ray", "start", "--head", "--block", "--num-cpus=3", "--disable-usage-stats"]
        command += [
            f"--port={self.gcs.split(':')[1]}",
            f"--dashboard-port={self.dashboard.rsplit(':', 1)[1]}",
        ]
        metrics_port = free_port()
        self.agent = f"http://127.0.0.1:{metrics_port}/metrics"
        # A separate directory: if it stays behind, later starts of Ray on the machine do not look for this cluster.
        self.temp_dir = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
        command += [f"--metrics-export-port={metrics_port}", f"--temp-dir={self.temp_dir}"]
        self.log = place / "ray.log"
        with self.log.open("w") as stream:
            self.head = subprocess.Popen(
                [*command, "--node-ip-address=127.0.0.1"],
                cwd=place,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={name: value for name, value in self.environment.items() if name != "RAY_ADDRESS"},
            )

    def deploy(self, config):
        path = self.place / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        deadline = time.monotonic() + 60
        while True:
            done = subprocess.run(
                [BIN / "serve", "deploy", path, "--address", self.dashboard],
                capture_output=True,
                text=True,
                cwd=self.place,
                env=self.environment,
                timeout=100,
            )
            if done.returncode == 0:
                return
            # The dashboard starts some seconds after the cluster.
            assert time.monotonic() < deadline, done.stderr + self.log.read_text()
            time.sleep(1)

    def wait_for(self, holds, seconds=90):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError, KeyError, json.JSONDecodeError):
                if holds():
                    return
            time.sleep(0.3)
        raise AssertionError(self.status())

    def status(self):
        return subprocess.run(
            [BIN / "serve", "status", "--address", self.dashboard],
            capture_output=True,
            text=True,
            env=self.environment,
            timeout=60,
        ).stdout

    def replicas(self):
        return replicas(self.head.pid)

    def metrics(self):
        """Return what the node's agent reports to Prometheus."""
        return httpx.get(self.agent).text

    def stop(self):
        started = [process for process, _ in family(self.head.pid)]
        self.head.send_signal(signal.SIGTERM)
        psutil.wait_procs(started, 20)
        for process in started:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.head.wait(20)
        shutil.rmtree(self.temp_dir, ignore_errors=True)


@pytest.fixture(scope="module")
def models(tiny_checkpoint, tiny_result, tmp_path_factory):
    """A directory as a job leaves it, with a second model whose forecast differs."""
    place = tmp_path_factory.mktemp("deploy")
    (place / "artifacts").mkdir()
    shutil.copy(tiny_checkpoint, place / "artifacts" / "best_pareto_lstm.pt")
    state = {name: value.clone() for name, value in tiny_result.checkpoint.model_state.items()}
    state["regressor.bias"] += 0.5
    save_checkpoint(tiny_result.checkpoint.model_copy(update={"model_state": state}), place / "other.pt")
    return place


@pytest.fixture(scope="module")
def deployed(models):
    deployed = Deployed(models)
    try:
        deployed.deploy(yaml.safe_load(CONFIG.read_text()))
        deployed.wait_for(lambda: client.get(f"{URL}/healthz").json() == {"ok": True}, 120)
        yield deployed
    finally:
        deployed.stop()


@contextlib.contextmanager
def asking():
    """Let two clients send requests all the time, and count their answers by status and forecast."""
    seen, stop = Counter(), threading.Event()

    def ask():
        while not stop.is_set():
            try:
                answer = client.post(f"{URL}/predict", json={"values": WINDOW})
                seen[answer.status_code, round(answer.json().get("prediction", 0), 2)] += 1
            except httpx.TransportError as error:
                seen[type(error).__name__, 0] += 1

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def forecast_of(path):
    return round(Predictor(path, "cpu").predict_next(WINDOW), 2)


def test_it_serves_on_port_9010_as_it_stands(deployed, models):
    assert client.get(f"{URL}/model").json()["checkpoint_path"] == str(
        models / "artifacts/best_pareto_lstm.pt"
    )
    assert httpx.post(f"{URL}/predict", json={"values": WINDOW}).status_code == 401
    names = {process.name() for process, _ in family(deployed.head.pid)}
    assert "haproxy" in names, names


def test_user_config_swaps_the_model_in_the_running_replica_without_a_failed_request(deployed, models):
    config = yaml.safe_load(CONFIG.read_text())
    (application,) = config["applications"]
    old, new = forecast_of(models / "artifacts/best_pareto_lstm.pt"), forecast_of(models / "other.pt")
    before = deployed.replicas()
    with asking() as seen:
        user_config = {"checkpoint": str(models / "other.pt")}
        application["deployments"] = [{"name": "Forecaster", "user_config": user_config}]
        deployed.deploy(config)
        deployed.wait_for(lambda: seen[200, new])
        (models / "damaged.pt").write_bytes((models / "other.pt").read_bytes()[:500])
        user_config["checkpoint"] = str(models / "damaged.pt")
        deployed.deploy(config)
        deployed.wait_for(lambda: client.get(f"{URL}/model").json()["refused"])
        refused = client.get(f"{URL}/model").json()
    assert "damaged.pt" in refused["refused"]["reason"]
    assert refused["checkpoint_path"] == str(models / "other.pt")
    assert set(seen) == {(200, old), (200, new)}
    assert deployed.replicas() == before


def test_new_options_replace_the_replica_without_a_failed_request(deployed):
    config = yaml.safe_load(CONFIG.read_text())
    before = deployed.replicas()
    with asking() as seen:
        config["applications"][0]["args"]["max_batch_size"] = 8
        deployed.deploy(config)
        deployed.wait_for(lambda: (now := deployed.replicas()) and not now & before)
        time.sleep(1)
    assert {status for status, _ in seen} == {200}


def test_prometheus_finds_the_fields_metrics_at_rays_agent(deployed):
    client.post(f"{URL}/predict", json={"values": [1e6] * 20})
    client.post(f"{URL}/predict", json={"values": []})
    ours = (
        r'(?m)^ray_forecast_requests_total\{.*route="/predict".*status="200"',
        r'(?m)^ray_forecast_requests_total\{.*route="/predict".*status="422"',
        r'(?m)^ray_forecast_request_duration_seconds_bucket\{.*le="0.001".*route="/predict"',
        r'(?m)^ray_forecast_out_of_range_inputs_total\{.*symbol="BTC-USD"',
        r'(?m)^ray_forecast_model_info\{.*symbol="BTC-USD".*version="[0-9a-f]{12}"',
    )
    deployed.wait_for(lambda: all(re.search(name, deployed.metrics()) for name in ours), 60)
