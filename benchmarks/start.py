"""Starts beside those of version 0.1.0: a whole job of two small trials, or a server until its first answer.

    git worktree add ../version-0.1.0 6682ccb
    python -m benchmarks.start ../version-0.1.0
    python -m benchmarks.start ../version-0.1.0 --servers

Rounds alternate. The jobs, mostly start and end with hardly any training, are version 0.1.0's; this one's with the same
work, one network and no training after the search; and this one's as it is, which trains the pick's networks after the
search. The servers are ``python -m serve_app run`` of version 0.1.0 with a checkpoint, and of this one with a
checkpoint and, in the environment of the slim image (``make image-steps``), with the exported model.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2 as httpx
import psutil

from benchmarks.served import AS_JSON, serve_app_run
from forecast import load_checkpoint, load_series
from forecast.model.export import exported_model

HERE = Path(__file__).parents[1]
JOB = ("--num-samples", "2", "--space", "small", "--source", "snapshot", "--no-report", "--quiet")
SAME_WORK = ("--members", "1", "--no-retrain")
BEFORE = "version 0.1.0"
WITH_BARS = ("same work", "exported, without torch")
BAR = 0.6
"""Largest wall time of these, as a multiple of version 0.1.0's."""
LOOK_EVERY = 0.05
"""Seconds between two looks at the job's processes; work of a process after the last look is not counted."""
Start = Callable[[], tuple[float, float]]
"""Starts a job or a server, and returns wall seconds and CPU seconds."""


def job_seconds(tree: Path, more: Sequence[str] = ()) -> tuple[float, float]:
    """Wall seconds of a job with the code in ``tree``, and CPU seconds of all its processes."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with tempfile.TemporaryDirectory() as output:
        started = time.perf_counter()
        job = psutil.Popen(
            [sys.executable, "-m", "tune_jobs.pareto", *JOB, *more, "--output-dir", output],
            cwd=tree,
            env={**environment, "PYTHONPATH": str(tree)},
        )
        processors: dict[int, float] = {}
        while job.poll() is None:
            with contextlib.suppress(psutil.Error):
                for process in [job, *job.children(recursive=True)]:
                    with contextlib.suppress(psutil.Error):
                        times = process.cpu_times()
                        processors[process.pid] = times.user + times.system
            time.sleep(LOOK_EVERY)
        wall = time.perf_counter() - started
    if job.returncode:
        raise subprocess.CalledProcessError(job.returncode, "tune_jobs.pareto")
    return wall, sum(processors.values())


def server_seconds(model: Path, body: str, **where: Any) -> tuple[float, float]:
    """Wall seconds from a server's start to its first answer, and CPU seconds of all its processes until then."""
    started = time.perf_counter()
    # Elsewhere than this checkout, whose modules would hide those of another environment.
    with contextlib.chdir(model.parent), serve_app_run(model, **where) as server:
        answer = httpx.post(f"{server.url}/predict", content=body, headers=AS_JSON)
        wall = time.perf_counter() - started
        answer.raise_for_status()
        return wall, server.cpu_seconds()[0]


def trained(tree: Path, model: Path) -> Path:
    """Train a checkpoint for one epoch with the code in ``tree``, and return its path."""
    more = ("train", "--source", "snapshot", "--max-epochs", "1", "--checkpoint", str(model))
    subprocess.run(
        [sys.executable, "-m", "forecast", *more],
        check=True,
        capture_output=True,
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
    )
    return model


def main() -> int:
    """Run the rounds, and print medians and ratios; fail if what has a bar takes too long."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("before", type=Path, help="a checkout of version 0.1.0")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--servers", action="store_true", help="start servers instead of jobs")
    parser.add_argument(
        "--slim", type=Path, default=Path("build/image-slim/venv"), help="environment without torch"
    )
    options = parser.parse_args()
    before = options.before.resolve()
    with tempfile.TemporaryDirectory() as place:
        slim = options.slim.absolute() / "bin"
        starts = servers(before, slim, Path(place)) if options.servers else jobs(before)
        return compare(starts, options.rounds)


def jobs(before: Path) -> dict[str, Start]:
    """The jobs by name."""
    return {
        BEFORE: lambda: job_seconds(before),
        "same work": lambda: job_seconds(HERE, SAME_WORK),
        "as it is": lambda: job_seconds(HERE),
    }


def servers(before: Path, slim: Path, place: Path) -> dict[str, Start]:
    """Make the models that the servers need, and return the servers by name."""
    window = load_series("BTC-USD", source="snapshot").values[600:800]
    body = json.dumps({"values": [round(float(value), 2) for value in window]})
    old, new, model = trained(before, place / "old.pt"), trained(HERE, place / "new.pt"), place / "new.onnx"
    model.write_bytes(exported_model(load_checkpoint(new)).SerializeToString())
    return {
        BEFORE: lambda: server_seconds(old, body, tree=before),
        "checkpoint": lambda: server_seconds(new, body, tree=HERE),
        "exported, without torch": lambda: server_seconds(model, body, programs=slim),
    }


def compare(starts: Mapping[str, Start], rounds: int) -> int:
    """Run each start in each round, print medians and ratios, and return 1 if one with a bar takes too long."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in starts}
    for number in range(rounds):
        for name, start in starts.items():
            seconds[name].append(start())
            wall, processors = seconds[name][-1]
            print(
                f"round {number + 1}, {name}: {wall:.1f} s, {processors:.1f} CPU s",
                file=sys.stderr,
                flush=True,
            )
    medians = {
        name: [statistics.median(column) for column in zip(*rows, strict=True)]
        for name, rows in seconds.items()
    }
    base = medians[BEFORE]
    print("| start | wall s | of 0.1.0's | CPU s | of 0.1.0's |\n|---|---|---|---|---|")
    for name, (wall, processors) in medians.items():
        print(
            f"| {name} | {wall:.1f} | {wall / base[0]:.2f} | {processors:.1f} | {processors / base[1]:.2f} |"
        )
    return int(any(medians[name][0] > BAR * base[0] for name in WITH_BARS if name in medians))


if __name__ == "__main__":
    sys.exit(main())
