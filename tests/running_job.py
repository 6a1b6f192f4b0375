"""Run the tuning command in a separate process, and read its study."""

import json
import os
import subprocess
import sys
import time

import optuna


def study_of(directory):
    """Open the study in a job's output directory."""
    return optuna.load_study(
        study_name="stock_lstm_optuna", storage=f"sqlite:///{directory / 'optuna_study.db'}"
    )


def write_summary(directory, *front, pick=0, **changes):
    """Write the parts of an earlier job's summary that a warm start reads.

    Each of ``front`` has the number of its trial, its MAE, its MAPE, and its hyperparameters.
    """
    points = [
        {"trial_number": number, "objectives": {"MAE": mae, "MAPE": mape}, "params": params}
        for number, mae, mape, params in front
    ]
    summary = {
        "pick": next((point for point in points if point["trial_number"] == pick), None),
        "front": points,
        "strategy": "min_mape",
        "objectives_on": "validation",
        "persistence": {"validation": {"MAE": 1.0, "MAPE": 1.0}},
        "data": {"first_date": "2015-01-01", "last_date": "2019-12-31"},
        "options": {},
    }
    (directory / "summary.json").write_text(json.dumps(summary | changes))
    return directory


def start_job(directory, *arguments, address="local"):
    """Start the command on the snapshot and the small space, with one network for the pick and without a report."""
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "tune_jobs.pareto", "--source", "snapshot", "--space", "small"]
    command += ["--members", "1", "--no-report"]
    return subprocess.Popen(
        [*command, "--output-dir", str(directory), "--address", address, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def wait_until(happened, process, seconds=120):
    """Wait until ``happened()`` while a job runs."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if happened():
            return
        time.sleep(0.2)
    process.kill()
    raise AssertionError(process.communicate(timeout=10))


def wait_for_finished(directory, count, process, seconds=120):
    """Wait until that many trials of a running job have finished."""
    wait_until(lambda: len(list((directory / "checkpoints").glob("trial_*.pt"))) >= count, process, seconds)


def wait_for_end(process, seconds=200):
    """Wait until the command ends by itself, and return its exit code and its messages."""
    try:
        _, errors = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return process.returncode, errors
