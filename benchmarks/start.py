"""A whole job of two small trials beside version 0.1.0's: mostly start and end, hardly any training.

    git worktree add ../version-0.1.0 6682ccb
    python -m benchmarks.start ../version-0.1.0

Rounds alternate between three jobs: version 0.1.0's; this one's with the same work, one network and no training after
the search; and this one's as it is, which trains the pick's networks after the search.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

HERE = Path(__file__).parents[1]
JOB = ("--num-samples", "2", "--space", "small", "--source", "snapshot", "--no-report", "--quiet")
SAME_WORK = ("--members", "1", "--no-retrain")
BAR = 0.6
"""Largest wall time with the same work, as a multiple of version 0.1.0's."""
LOOK_EVERY = 0.05
"""Seconds between two looks at the job's processes; work of a process after the last look is not counted."""


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


def main() -> int:
    """Run the rounds, and print medians and ratios; fail if the same work takes too long."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("before", type=Path, help="a checkout of version 0.1.0")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    before = options.before.resolve()
    jobs = {
        "version 0.1.0": lambda: job_seconds(before),
        "same work": lambda: job_seconds(HERE, SAME_WORK),
        "as it is": lambda: job_seconds(HERE),
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in jobs}
    for number in range(options.rounds):
        for name, job in jobs.items():
            seconds[name].append(job())
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
    base = medians["version 0.1.0"]
    print("| job | wall s | of 0.1.0's | CPU s | of 0.1.0's |\n|---|---|---|---|---|")
    for name, (wall, processors) in medians.items():
        print(
            f"| {name} | {wall:.1f} | {wall / base[0]:.2f} | {processors:.1f} | {processors / base[1]:.2f} |"
        )
    return int(medians["same work"][0] > BAR * base[0])


if __name__ == "__main__":
    sys.exit(main())
