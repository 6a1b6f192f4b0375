"""Start servers as people start them, and put load on them; the serving and resilience benchmarks share this."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx2 as httpx
import psutil
import torch

from forecast import TrainConfig, load_series, save_checkpoint
from forecast.model.checkpoint import Checkpoint
from forecast.model.windows import prepare
from serve_app.flags import SERVE_FLAGS

PORT = 8000
START_S = 120.0
AS_JSON = {"content-type": "application/json"}
REPLICA = "ServeReplica:"
"""How the command line of a replica's process begins, after ``ray::``."""

REPLICA_PORTS = range(30_000, 31_001)

WRK_SCRIPT = """\
wrk.method = "POST"
wrk.path = "%s"
wrk.headers["Content-Type"] = "application/json"
local file = io.open("%s"); wrk.body = file:read("*a"); file:close()
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    "\\nRESULT {\\"requests\\": %%d, \\"seconds\\": %%f, \\"p50_ms\\": %%f, \\"p99_ms\\": %%f, " ..
    "\\"broken\\": %%d, \\"refused\\": %%d}\\n",
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    e.connect + e.read + e.write + e.timeout, e.status))
end
"""


def make_checkpoint(
    path: Path,
    hidden_size: int = 64,
    num_layers: int = 2,
    sequence_length: int = 60,
    seed: int = 0,
    target: str = "level",
) -> Checkpoint:
    """Write a checkpoint with the initial weights of its network: a server's speed does not depend on training."""
    config = TrainConfig(
        source="snapshot",
        likelihood="mse",
        hidden_size=hidden_size,
        num_layers=num_layers,
        sequence_length=sequence_length,
        target=target,
        log_prices=target != "level",
        members=1,
    )
    series = load_series("BTC-USD", source="snapshot")
    checkpoint = Checkpoint.create(
        model_state=random_weights(hidden_size, num_layers, seed),
        config=config,
        prepared=prepare(series, config),
        val_loss_best=0.0,
        best_epoch=1,
        device="cpu",
        provenance={},
    )
    save_checkpoint(checkpoint, path)
    return checkpoint


def random_weights(hidden_size: int, num_layers: int, seed: int) -> dict[str, torch.Tensor]:
    from forecast.model.lstm import LSTMForecaster

    torch.manual_seed(seed)
    return LSTMForecaster(hidden_size, num_layers, zero_head=False).state_dict()


@dataclass(frozen=True)
class Server:
    """A running server."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def workers(self) -> list[psutil.Process]:
        """Return the processes that compute: replicas, or the one process of a plain server."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        replicas = [one for one in family if _title(one).startswith(f"ray::{REPLICA}")]
        return replicas or [psutil.Process(self.process.pid)]

    def answering_replicas(self) -> set[int]:
        """Return the process ids of the replicas that answer on their own ports."""
        answering = set()
        for replica in self.workers():
            with contextlib.suppress(psutil.Error, httpx.TransportError):
                ports = [
                    one.laddr.port for one in replica.net_connections() if one.status == psutil.CONN_LISTEN
                ]
                urls = [f"http://127.0.0.1:{port}/healthz" for port in ports if port in REPLICA_PORTS]
                if any(httpx.get(url, timeout=2).json() == {"ok": True} for url in urls):
                    answering.add(replica.pid)
        return answering

    def memory_mb(self) -> float:
        """Return the resident memory of the processes that compute, in MB."""
        return sum(worker.memory_info().rss for worker in self.workers()) / 1e6

    def cpu_seconds(self) -> tuple[float, float]:
        """Return the CPU seconds that the processes that run now have used: all of them, and those that compute."""
        root = psutil.Process(self.process.pid)
        return _cpu_seconds([root, *root.children(recursive=True)]), _cpu_seconds(self.workers())

    def proportional_memory_mb(self) -> float:
        """Return the memory of the processes that compute, each page divided by the processes that share it, in MB."""
        return sum(worker.memory_full_info().pss for worker in self.workers()) / 1e6

    def gcs_address(self) -> str:
        """Return the address of the Ray cluster that ``serve run`` started."""
        for one in psutil.Process(self.process.pid).children(recursive=True):
            for word in _words(one):
                if word.startswith("--gcs-address="):
                    return word.removeprefix("--gcs-address=")
        raise LookupError("no Ray cluster under this server")


def _cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    seconds = 0.0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            seconds += times.user + times.system
    return seconds


def _words(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


def _title(process: psutil.Process) -> str:
    return " ".join(_words(process))


@contextlib.contextmanager
def serve_run(
    checkpoint: Path,
    *options: str,
    environment: Mapping[str, str] | None = None,
    replicas: int = 1,
    programs: Path | None = None,
) -> Iterator[Server]:
    """Run ``serve run serve_app:app`` on a new local cluster, with this environment's or other ``programs``."""
    kept = {name: value for name, value in os.environ.items() if name not in SERVE_FLAGS}
    found = programs or Path(sys.executable).parent
    kept["PATH"] = f"{found}{os.pathsep}{kept['PATH']}"
    command = [str(found / "serve"), "run", "serve_app:app"]
    command += [f"checkpoint={checkpoint}", f"replicas={replicas}", *options]
    with _running(command, PORT, {**kept, "RAY_ADDRESS": "local", **(environment or {})}) as server:
        deadline = time.monotonic() + START_S
        while len(server.answering_replicas()) < replicas and time.monotonic() < deadline:
            time.sleep(0.2)
        yield server


@contextlib.contextmanager
def serve_app_run(
    model: Path, programs: Path = Path(sys.executable).parent, tree: Path | None = None
) -> Iterator[Server]:
    """Run ``python -m serve_app run`` on a new local cluster, with other ``programs``, or the code in ``tree``."""
    out = {"RAY_ADDRESS", "PYTHONPATH", *SERVE_FLAGS}
    kept = {name: value for name, value in os.environ.items() if name not in out}
    if tree:
        kept["PYTHONPATH"] = str(tree)
    command = [str(programs / "python"), "-m", "serve_app", "run", "--checkpoint", str(model)]
    with _running(command, PORT, kept) as server:
        yield server


@contextlib.contextmanager
def original_server(checkpoint: Path, processes: int = 1) -> Iterator[Server]:
    """Run the design that this project replaces, on its port; it had one process."""
    command = [sys.executable, "-m", "benchmarks.original_server", str(checkpoint), "9010", str(processes)]
    with _running(command, 9010, dict(os.environ)) as server:
        yield server


@contextlib.contextmanager
def _running(command: Sequence[str], port: int, environment: Mapping[str, str]) -> Iterator[Server]:
    # A process that a shell starts in the background ignores SIGINT, and so would its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as name:
        log = Path(name) / "log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command, stdout=stream, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
        server = Server(f"http://127.0.0.1:{port}", process, log)
        try:
            _wait_until_it_answers(server)
            yield server
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def _wait_until_it_answers(server: Server) -> None:
    deadline = time.monotonic() + START_S
    while True:
        if server.process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the server did not start:\n{server.log.read_text()}")
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{server.url}/healthz").status_code == 200:
                return
        time.sleep(0.3)


@dataclass(frozen=True)
class Load:
    """A load generator's result: ``broken`` connections and timeouts, and ``refused`` requests (4xx or 5xx)."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    broken: int
    refused: int

    @property
    def failures(self) -> int:
        return self.broken + self.refused

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds


def wrk(
    url: str, route: str, body: str, connections: int, seconds: float, pause_ms: float | None = None
) -> Load:
    """Put load on a server with ``wrk`` (https://github.com/wg/wrk).

    Each connection sends its next request as soon as the last one is answered, or after a pause.
    """
    binary = shutil.which("wrk")
    if binary is None:
        raise SystemExit("error: wrk is not installed; install it (apt-get install wrk)")
    with tempfile.TemporaryDirectory() as name:
        asked, script = Path(name) / "body.json", Path(name) / "post.lua"
        asked.write_text(body)
        pause = f"function delay() return {pause_ms:.0f} end\n" if pause_ms else ""
        script.write_text(WRK_SCRIPT % (route, asked) + pause)
        command = [binary, "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "30s"]
        done = subprocess.run(
            [*command, "-s", str(script), url],
            capture_output=True,
            text=True,
            check=True,
            timeout=seconds + 60,
        )
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    return Load(**json.loads(line.removeprefix("RESULT ")))
