"""The cost and the gain of the search: ``python -m benchmarks.tuning``, or one part of it by name.

``original``: the design that this project replaces against the job. ``efficiency``: the share of core time spent on
training, and where the rest goes. ``overhead``: the cost of a trial on top of its training. ``autolstm``:
neuralforecast's AutoLSTM on the same rows, if it is installed (``pip install '.[compare]'``).
"""

from __future__ import annotations

import argparse
import datetime as dt
import importlib.util
import json
import logging
import math
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import ray
from optuna.trial import TrialState

from benchmarks import original
from forecast import load_series
from forecast.config import ExperimentConfig, TrainConfig
from forecast.job_files import SUMMARY_FILE
from forecast.model.training import Trainer
from forecast.model.windows import PreparedSeries, prepare
from forecast.prices.series import Series
from forecast.scores.metrics import Forecasts, Rows, evaluate_forecasts
from tune_jobs import study as studies
from tune_jobs.databases import STUDY_FILE, SqliteFile
from tune_jobs.options import TuneOptions
from tune_jobs.placement import Placement
from tune_jobs.searcher import SearchInput
from tune_jobs.space import SPACES
from tune_jobs.states import StateStore
from tune_jobs.stopping import Stop
from tune_jobs.trial import TrainingTrial
from tune_jobs.tuner import SearchSeconds, run_search

SEED = 42
ALL_PARTS = (
    "original",
    "original --space full --samples 64 --subset 6",
    "efficiency",
    "overhead",
    "autolstm",
)


def run_command(directory: Path, source: str, space: str, samples: int) -> tuple[float, dict[str, Any]]:
    """Run the tuning command as a person does, and return its seconds from start to end and its summary."""
    started = time.perf_counter()
    options = ["--source", source, "--space", space, "--num-samples", str(samples), "--address", "local"]
    command = [sys.executable, "-m", "tune_jobs.pareto", *options, "--output-dir", str(directory), "--quiet"]
    subprocess.run(command, check=True)
    seconds = time.perf_counter() - started
    summary: dict[str, Any] = json.loads((directory / SUMMARY_FILE).read_text())
    return seconds, summary


def against_original(source: str, space: str, samples: int, subset: int | None) -> None:
    """Print wall time and test MAE of the original design and of the job.

    Args:
        source: prices.
        space: name of the search space.
        samples: trials of each.
        subset: run only this many of the original's trials, drawn at random, and extrapolate its time.
    """
    series = load_series(source=source)
    with tempfile.TemporaryDirectory() as name:
        sampler: optuna.samplers.BaseSampler = (
            optuna.samplers.RandomSampler(seed=SEED) if subset else optuna.samplers.TPESampler(seed=SEED)
        )
        trials = original.search(series, SPACES[space], subset or samples, Path(name), sampler)
    seconds = [trial.seconds for trial in trials]
    wall = statistics.mean(seconds) * samples
    said = f"{wall:.0f}"
    if subset:
        error = statistics.stdev(seconds) / math.sqrt(subset) * samples
        said = f"{wall:.0f} ± {error:.0f} (from {subset} random trials)"
    picked = min(trials, key=lambda trial: trial.test.model["MAPE"]).test
    with tempfile.TemporaryDirectory() as name:
        job, summary = run_command(Path(name), source, space, samples)
    test = summary["pick"]["test"]
    print(f"{space} space, {samples} samples, {series.symbol} from {source}")
    print("| | wall s | test MAE of the pick | persistence's |")
    print("|---|---|---|---|")
    print(f"| original design | {said} | {picked.model['MAE']:.6g} | {picked.persistence['MAE']:.6g} |")
    print(f"| this job | {job:.0f} | {test['MAE']:.6g} | {summary['persistence']['test']['MAE']:.6g} |")
    print(
        f"| ratio | {wall / job:.1f} times faster | {100 * (1 - test['MAE'] / picked.model['MAE']):.1f} % lower | |",
        flush=True,
    )


def efficiency(source: str, sizes: list[int]) -> None:
    """Print where the core time goes in searches of several sizes, in percent of cores x wall."""
    print(
        "| trials | wall s | training | start-up | ask | within trials, not training | end | other | "
        "training, of the whole command |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for samples in sizes:
        with tempfile.TemporaryDirectory() as name:
            whole, summary = run_command(Path(name), source, "full", samples)
            shares = where_time_goes(Path(name), summary)
        search = summary["search"]
        cores = search["core_seconds"] / search["wall_seconds"]
        print(
            f"| {samples} | {search['wall_seconds']:.0f} | "
            + " | ".join(f"{100 * share:.1f} %" for share in shares.values())
            + f" | {100 * search['training_seconds'] / (cores * whole):.1f} % of {whole:.0f} s |",
            flush=True,
        )


def where_time_goes(directory: Path, summary: dict[str, Any]) -> dict[str, float]:
    """Return shares of cores x wall of a finished job on one node, with one core per trial.

    ``start_up`` lasts until the first trial has a process; ``trials`` is what trials spend on results, checkpoints and
    waiting for the driver to keep them; ``end`` is idle cores when no trial is left to start.
    """
    study = optuna.load_study(study_name=summary["study"], storage=f"sqlite:///{directory / STUDY_FILE}")
    trials = study.get_trials(states=[TrialState.COMPLETE])
    spans = [
        (
            dt.datetime.fromisoformat(trial.user_attrs["started"]).timestamp(),
            trial.datetime_complete.timestamp(),
        )
        for trial in trials
        if trial.datetime_complete
    ]
    run = summary["search"]
    cores = run["core_seconds"] / run["wall_seconds"]
    last_start, finish = max(start for start, _ in spans), max(end for _, end in spans)
    seconds = {
        "training": run["training_seconds"],
        "start_up": cores * (min(start for start, _ in spans) - (finish - run["wall_seconds"])),
        "ask": run["asking_seconds"],
        "trials": sum(end - start for start, end in spans) - run["training_seconds"],
        "end": cores * (finish - last_start)
        - sum(max(0.0, end - max(start, last_start)) for start, end in spans),
    }
    shares = {name: value / run["core_seconds"] for name, value in seconds.items()}
    return {**shares, "other": 1 - sum(shares.values())}


class UntrainedModel(Trainer):
    """A trainer without the training: an epoch takes no time, and the latest one is the best."""

    def _train_batches(self, last: int) -> None:
        """Leave the weights as they are."""
        self._batches = last

    def _validate(self) -> None:
        """Produce noise whose size depends only on the configuration, so that rungs have something to compare."""
        noise = np.random.default_rng(int(self.config.learning_rate * 1e9))
        shape = self._best_outputs.shape
        self._best_outputs = noise.normal(0, noise.uniform(0.05, 0.2), shape).astype(np.float32)
        self.best_loss, self.best_epoch = float(np.mean(self._best_outputs**2)), self.position


class UntrainedTrial(TrainingTrial):
    """A trial that does not train."""

    def _new_trainer(self, prepared: PreparedSeries, config: TrainConfig) -> Trainer:
        return UntrainedModel(prepared, config)


def untrained_search(series: Series, samples: int) -> SearchSeconds:
    """Run one search whose trials do not train, on the connected cluster, in a temporary directory."""
    experiment = ExperimentConfig(source="snapshot")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        database = SqliteFile(directory / STUDY_FILE)
        storage = studies.open_storage(database)
        objectives = TuneOptions().objective_names
        study = studies.open_study(
            storage, "s", database=database, resume=False, objectives=objectives, basis={}
        )
        prepared = prepare(series, experiment).without_test()
        seconds = run_search(
            SearchInput(prepared, experiment, {}, SPACES["full"], objectives),
            study,
            storage,
            samples=samples,
            placement=Placement(),
            states=StateStore(str(directory / "states"), "s"),
            checkpoint_dir=directory / "checkpoints",
            stop=Stop(),
            trial_class=UntrainedTrial,
        )
        assert len(studies.completed(study)) == samples
        studies.close_storage(storage, database)
    return seconds


def overhead(source: str, sizes: list[int]) -> None:
    """Print the seconds that a trial costs on top of its training, for searches of several sizes."""
    series = load_series(source=source)
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    print("| trials | wall s | s / trial | ask, s / trial | keep, s / trial |")
    print("|---|---|---|---|---|")
    for samples in sizes:
        seconds = untrained_search(series, samples)
        per_trial = [value / samples for value in (seconds.wall, seconds.asking, seconds.keeping)]
        print(
            f"| {samples} | {seconds.wall:.1f} | " + " | ".join(f"{s:.3f}" for s in per_trial) + " |",
            flush=True,
        )
    ray.shutdown()


def against_autolstm(source: str, samples: int) -> None:
    """Print wall time and test MAE of neuralforecast's AutoLSTM with its Ray backend, on the same rows."""
    if importlib.util.find_spec("neuralforecast") is None:
        print("neuralforecast is not installed (pip install '.[compare]'): skipped")
        return
    import pandas as pd
    from neuralforecast import NeuralForecast
    from neuralforecast.auto import AutoLSTM
    from ray import tune

    series = load_series(source=source)
    split = prepare(series, ExperimentConfig(source="snapshot")).split
    space = SPACES["small"]
    config = {
        "input_size": tune.choice(list(range(space.sequence_length[0], space.sequence_length[1] + 1, 10))),
        "encoder_hidden_size": tune.choice(list(space.hidden_size)),
        "encoder_n_layers": tune.choice([1, 2]),
        "learning_rate": tune.loguniform(*space.learning_rate),
        "batch_size": 1,
        "windows_batch_size": tune.choice(list(space.batch_size)),
        "max_steps": tune.choice([500, 1000]),
        "scaler_type": "standard",
        "random_seed": SEED,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": False,
    }
    # neuralforecast would fill holes in the dates: number the days instead.
    frame = pd.DataFrame({"unique_id": series.symbol, "ds": np.arange(len(series)), "y": series.values})
    started = time.perf_counter()
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    forecaster = NeuralForecast([AutoLSTM(h=1, config=config, num_samples=samples, backend="ray")], freq=1)
    test_size = len(series) - split.validation_end
    answers = forecaster.cross_validation(
        frame, val_size=split.validation_end - split.train_end, test_size=test_size, n_windows=None
    )
    seconds = time.perf_counter() - started
    ray.shutdown()
    with tempfile.TemporaryDirectory() as name:
        job, summary = run_command(Path(name), source, "small", samples)
    previous = series.values[split.validation_end - 1 : -1]
    test = evaluate_forecasts(
        Rows(answers["y"].to_numpy(), previous), Forecasts(answers["AutoLSTM"].to_numpy())
    )
    print("| | wall s | test MAE | persistence's |")
    print("|---|---|---|---|")
    print(
        f"| neuralforecast {version('neuralforecast')} AutoLSTM, {samples} samples | {seconds:.0f} | "
        f"{test.model['MAE']:.6g} | {test.persistence['MAE']:.6g} |\n"
        f"| this job | {job:.0f} | {summary['pick']['test']['MAE']:.6g} | "
        f"{summary['persistence']['test']['MAE']:.6g} |",
        flush=True,
    )


def main() -> None:
    """Run the parts that the command line names, or all of them."""
    logging.disable(logging.INFO)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tuning",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--source", default="snapshot", help="prices: snapshot or a file (default: %(default)s)"
    )
    parts = parser.add_subparsers(metavar="part")
    part = parts.add_parser("original", help="the original design against the job")
    part.add_argument("--space", choices=list(SPACES), default="small")
    part.add_argument("--samples", type=int, default=16)
    part.add_argument(
        "--subset", type=int, help="run only this many of the original's trials and extrapolate its time"
    )
    part.set_defaults(run=lambda o: against_original(o.source, o.space, o.samples, o.subset))
    part = parts.add_parser("efficiency", help="the share of core time spent on training")
    part.add_argument("--sizes", type=int, nargs="+", default=[64, 256])
    part.set_defaults(run=lambda o: efficiency(o.source, o.sizes))
    part = parts.add_parser("overhead", help="the cost of a trial on top of its training")
    part.add_argument("--sizes", type=int, nargs="+", default=[64, 256, 1024])
    part.set_defaults(run=lambda o: overhead(o.source, o.sizes))
    part = parts.add_parser("autolstm", help="neuralforecast's AutoLSTM, if it is installed")
    part.add_argument("--samples", type=int, default=16)
    part.set_defaults(run=lambda o: against_autolstm(o.source, o.samples))
    given = parser.parse_args()

    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "ray", "optuna"))
    print(f"Python {platform.python_version()}, {libraries}", flush=True)
    if "run" in given:
        given.run(given)
        return
    for words in ALL_PARTS:
        options = parser.parse_args(["--source", given.source, *words.split()])
        options.run(options)


if __name__ == "__main__":
    main()
