"""The contents of the containers, as far as they can be checked without Docker."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2 as httpx
import pytest
import yaml
from constraints import pythons
from image import ROOT, VENV, build, instructions, is_made_of_this, last, settings, stages

from forecast import Predictor
from forecast.__main__ import main as forecast_main
from forecast.config import parse_settings
from serve_app.__main__ import build_parser
from serve_app.options import RunOptions
from tune_jobs.pareto import build_parser as tuning
from tune_jobs.update import build_parser as updating
from tune_jobs.update_options import UpdateOptions

MADE_BEFORE = {"serve": ROOT / "build" / "image", "serve-slim": ROOT / "build" / "image-slim"}
"""Where ``make image-steps`` leaves the environment of each target, if it was run."""
BUILT_BY = {"serve": "build", "serve-slim": "build-slim"}
"""The stage that makes the environment of each target."""
PORT = 9010


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((ROOT / "compose.yaml").read_text())


def test_it_serves_on_port_9010_with_the_models_mounted_read_only_where_the_original_had_them(compose):
    serve = compose["services"]["serve"]
    assert serve["ports"] == [f"{PORT}:{PORT}"]
    assert "${MODEL_DIR:-./artifacts}:/app/model:ro" in serve["volumes"]
    served = settings("serve")["FORECAST_CHECKPOINT"]
    assert served == "/app/model/best_pareto_lstm.pt"
    assert serve["environment"]["FORECAST_CHECKPOINT"] == f"${{FORECAST_CHECKPOINT:-{served}}}"
    arguments = vars(build_parser().parse_args(json.loads(last("serve", "CMD"))[3:]))
    assert arguments.pop("command") == "run"
    assert parse_settings(RunOptions, arguments).port == PORT
    assert last("serve", "EXPOSE") == str(PORT)


def test_nothing_runs_as_root_and_the_dashboard_is_for_this_machine_alone(compose):
    assert {last(name, "USER") for name in ("serve", "serve-slim", "runtime", "dashboard")} == {"1000:1000"}
    for service in compose["services"].values():
        assert service["user"] == "${UID:-1000}:${GID:-1000}"
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
    assert compose["services"]["dashboard"]["ports"] == ["127.0.0.1:8080:8080"]


def test_ray_s_object_store_fits_its_shared_memory(compose):
    gigabytes = {int(service["shm_size"].removesuffix("gb")) for service in compose["services"].values()}
    assert min(gigabytes) * 10**9 > int(settings("runtime")["RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES"])


def test_haproxy_may_open_as_many_files_as_it_asks_for(compose):
    # Two per connection, and some for itself.
    assert all(service["ulimits"]["nofile"] > 10_500 for service in compose["services"].values())


def test_the_tuning_service_runs_a_command_that_there_is(compose):
    command = compose["services"]["tune"]["command"]
    assert command[:3] == ["python", "-m", "tune_jobs.pareto"]
    assert vars(tuning().parse_args(command[3:]))["resume"]


def test_the_update_keeps_the_models_in_a_volume_that_the_server_may_serve(compose):
    update, serve = compose["services"]["update"], compose["services"]["serve"]
    assert update["command"][:3] == ["python", "-m", "tune_jobs.update"]
    options = parse_settings(UpdateOptions, vars(updating().parse_args(update["command"][3:])))
    # Another source falls back on prices that are years old.
    assert options.source == "yahoo"
    (volume,) = update["volumes"]
    assert volume == f"models:{options.models}"
    # Not read-only: even readers of the ledger write to a file next to it.
    assert volume in serve["volumes"]
    assert "models" in compose["volumes"]
    # A new volume has the mode of the image's directory, and `user` may be anybody.
    made = [rest for word, rest in instructions("runtime") if word == "RUN"]
    assert f"install --directory --mode=1777 {options.models}" in made


def test_a_checkout_s_models_prices_and_secrets_stay_out_of_the_image():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copied = {
        name
        for stage in stages().values()
        for word, rest in stage.instructions
        if word == "COPY" and not rest.startswith("--from")
        for name in rest.split()[:-1]
    }
    assert "*" in lines
    assert copied == allowed


def test_docker_compose_accepts_it():
    done = subprocess.run(["docker", "compose", "version"], capture_output=True) if _has_docker() else None
    if done is None or done.returncode:
        pytest.skip("Docker's compose plugin is not installed")
    command = [
        "docker",
        "compose",
        "--profile",
        "tune",
        "--profile",
        "dashboard",
        "--profile",
        "update",
        "config",
        "--format",
        "json",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    services = json.loads(done.stdout)["services"]
    assert set(services) == {"serve", "tune", "dashboard", "update"}
    assert services["dashboard"]["build"]["args"] == services["serve"]["build"]["args"]


def _has_docker():
    return any((Path(place) / "docker").exists() for place in os.environ["PATH"].split(os.pathsep))


def test_the_image_has_a_python_that_the_tests_run_on():
    assert re.search(r"ARG PYTHON_VERSION=(\S+)", (ROOT / "Dockerfile").read_text())[1] in pythons()


@pytest.fixture(scope="module")
def exported(tiny_checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "best_pareto_lstm.onnx"
    assert forecast_main(["export", str(tiny_checkpoint), str(path)]) == 0
    return path


@pytest.mark.slow
@pytest.mark.timeout(500)
@pytest.mark.parametrize("target", BUILT_BY)
def test_its_steps_make_an_environment_that_serves_is_healthy_and_ends_in_time(
    target, tiny_checkpoint, exported, tmp_path
):
    venv = MADE_BEFORE[target] / "venv"
    if not is_made_of_this(venv, BUILT_BY[target]):
        venv = build(tmp_path / "image", BUILT_BY[target])
    has_torch = list(venv.glob("lib/python*/site-packages/torch"))
    assert bool(has_torch) == (target == "serve")
    model = tiny_checkpoint if has_torch else exported
    assert Path(settings(target)["FORECAST_CHECKPOINT"]).suffix == model.suffix
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", PORT)) != 0, f"port {PORT} is taken: stop what listens there"
    environment = {name: value.replace(VENV, str(venv)) for name, value in settings(target).items()}
    environment |= {
        "PATH": environment["PATH"].replace("$PATH", os.environ["PATH"]),
        "FORECAST_CHECKPOINT": str(model),
        "HOME": str(tmp_path),
        "RAY_ADDRESS": "local",
    }
    log = tmp_path / "log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            json.loads(last(target, "CMD")),
            cwd=tmp_path,
            env=environment,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    health = json.loads(last(target, "HEALTHCHECK").partition("CMD ")[2])
    try:
        deadline = time.monotonic() + 120
        while subprocess.run(health, env=environment, capture_output=True).returncode:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(1)
        window = [1000.0 + row for row in range(20)]
        answer = httpx.post(f"http://127.0.0.1:{PORT}/predict", json={"values": window}).json()
        assert answer["prediction"] == pytest.approx(
            Predictor(tiny_checkpoint, "cpu").predict_next(window), rel=1e-6
        )
        process.send_signal(signal.SIGTERM)
        grace = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["serve"]["stop_grace_period"]
        assert process.wait(int(grace.removesuffix("s"))) == 0, log.read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def test_without_a_checkpoint_the_container_s_command_ends_in_one_line(tmp_path):
    command = [sys.executable, *json.loads(last("serve", "CMD"))[1:]]
    missing = tmp_path / "best_pareto_lstm.pt"
    environment = {**os.environ, "FORECAST_CHECKPOINT": str(missing), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: no checkpoint at {missing}; make one with"), shlex.join(command)
