"""One tuning job from prices to pick: what ``python -m tune_jobs.pareto`` does."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import optuna
import ray
from forecast.source import series_from_config
from rich.console import Console

from forecast.checkpoint import library_versions, save_checkpoint
from forecast.describe import series_lines
from forecast.errors import StudyError
from forecast.evaluation import evaluate_forecasts
from forecast.series import Series
from forecast.split import require_rows
from forecast.windows import PreparedSeries, prepare
from tune_jobs import study as studies
from tune_jobs.options import TuneOptions
from tune_jobs.progress import SearchProgress
from tune_jobs.report import (
    FRONT_FILE,
    PICK_FILE,
    SUMMARY_FILE,
    count_states,
    describe_point,
    front_table,
    write_front,
    write_summary,
)
from tune_jobs.search import Resources, SearchInput, Stop, plan_resources, run_search
from tune_jobs.selection import FrontPoint, pareto_front, pick, score_on_test
from tune_jobs.space import SPACES

CHECKPOINT_DIR = "checkpoints"
TUNE_STATE_DIR = ".tune_state"
LOCK_FILE = ".lock"

SEARCHED_ON_TEST = (
    "  objectives are computed on the test rows: the search sees them, and its test metrics are no estimate of "
    "new data"
)


@dataclass(frozen=True)
class Outcome:
    """How a job ended: its summary, and whether it was told to stop before its last trial."""

    summary: dict[str, Any]
    interrupted: bool


def run_job(options: TuneOptions) -> Outcome:
    """Search, pick and report.

    Raises:
        ForecastError: in one line, when data, options, study or cluster do not allow it.
        OSError: when the output directory cannot be written; everything finished before is safe.
    """
    started = time.perf_counter()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    console = Console(quiet=options.quiet or options.json_output)
    errors = Console(stderr=True)
    output = options.output_dir.absolute()
    database = output / studies.STUDY_FILE
    space = SPACES[options.space]

    series = series_from_config(options, notify=lambda line: _say(errors, line, "yellow"))
    require_rows(len(series), space.longest_window, options.train_ratio, options.val_ratio_within_train)
    prepared = prepare(series, options)
    searched = prepared if options.objectives_on == "test" else prepared.without_test()
    persistence = {part: persistence_metrics(prepared, part) for part in ("validation", "test")}
    _say(console, "\n".join(series_lines(series, options)))
    if options.objectives_on == "test":
        _say(errors, SEARCHED_ON_TEST, "yellow")

    with _only_job_in(output):
        storage = studies.open_storage(database)
        study = studies.open_study(
            storage, options.study_name, path=database, resume=options.resume, basis=_basis(options, series)
        )
        with studies.study_errors(database):
            put_back = studies.put_back_running(study)
            samples = studies.remaining(study, options.num_samples)
        _describe_resume(console, options, study, put_back, samples)

        stop = Stop()
        progress = SearchProgress(errors, samples, persistence[options.objectives_on], quiet=options.quiet)
        search_seconds, resources = 0.0, None
        if samples:
            with _cluster(options.address):
                resources = plan_resources(
                    options.cpus_per_trial, options.gpus_per_trial, options.max_concurrent
                )
                _describe_cluster(console, resources, samples, options)
                if options.time_budget:
                    stop.deadline = time.monotonic() + options.time_budget
                with progress, studies.study_errors(database), _tune_state(options, output) as storage_path:
                    search_seconds = run_search(
                        SearchInput(
                            searched, options, series.provenance.to_dict(), space, options.objectives_on
                        ),
                        study,
                        storage,
                        samples=samples,
                        resources=resources,
                        checkpoint_dir=output / CHECKPOINT_DIR,
                        storage_path=storage_path,
                        stop=stop,
                        on_finished=progress.finished,
                        on_event=progress.tick,
                    )

        with studies.study_errors(database):
            front, problems = pareto_front(study, output / CHECKPOINT_DIR)
            states = count_states(study)
        for problem in problems:
            _say(errors, f"warning: {problem}", "yellow")
        front = [score_on_test(point, prepared) for point in front]
        picked = None
        if front:
            picked = pick(
                front,
                options.strategy,
                persistence=persistence[options.objectives_on],
                weights=options.weights,
            )
            write_front(front, output / FRONT_FILE)
            save_checkpoint(picked.checkpoint, output / PICK_FILE)
        studies.close_storage(storage, database)

    summary = {
        "study": options.study_name,
        "trials": {"asked": options.num_samples, **states},
        "stopped_by": stop.reason,
        "objectives_on": options.objectives_on,
        "strategy": options.strategy,
        "pick": describe_point(picked) if picked else None,
        "front": [describe_point(point) for point in front],
        "persistence": persistence,
        "search": {
            "trials": progress.done + progress.failed,
            "wall_seconds": search_seconds,
            "training_seconds": progress.seconds,
            "workers": resources.max_concurrent if resources else 0,
            "cores": resources.cluster_cpus if resources else 0,
            "gpus": resources.cluster_gpus if resources else 0,
            "efficiency": (
                progress.seconds / (resources.cluster_cpus * search_seconds) if resources else None
            ),
        },
        "total_seconds": time.perf_counter() - started,
        "data": series.provenance.to_dict(),
        "integrity": series.integrity.to_dict(),
        "options": options.model_dump(mode="json"),
        "versions": {**library_versions(), **{name: version(name) for name in ("ray", "optuna")}},
    }
    write_summary(summary, output / SUMMARY_FILE)
    if options.json_output:
        print(json.dumps(summary, indent=2, allow_nan=False, default=str))
    interrupted = stop.reason is not None
    if interrupted:
        _say(errors, _ended_early(stop, states), "yellow")
    if picked is None:
        if interrupted:
            return Outcome(summary, interrupted)
        raise StudyError(
            f"no trial finished with usable metrics ({states.get('FAIL', 0)} failed); the reasons are in {database}"
        )
    _describe_result(console, front, picked, options, summary)
    return Outcome(summary, interrupted)


def persistence_metrics(prepared: PreparedSeries, part: Any) -> dict[str, float]:
    """Persistence's metrics on the rows of ``part``, which are the same for every window length."""
    windows = prepared.windows(part, 2, "level")
    return evaluate_forecasts(windows.actual, windows.previous, windows.previous).persistence


def _basis(options: TuneOptions, series: Series) -> dict[str, Any]:
    """What the metrics of a study's trials depend on beside their hyperparameters."""
    shared = ("symbol", "feature", "train_ratio", "val_ratio_within_train", "log_prices", "target")
    return {
        "rows": f"{series.provenance.first_date} to {series.provenance.last_date} "
        f"(sha256 {series.provenance.sha256[:12]})",
        **{name: getattr(options, name) for name in shared},
        "objectives_on": options.objectives_on,
        "space": options.space,
    }


@contextlib.contextmanager
def _only_job_in(output: Path) -> Iterator[None]:
    """Hold the output directory: a second job would take this one's running trials for dead."""
    output.mkdir(parents=True, exist_ok=True)
    with (output / LOCK_FILE).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StudyError(
                f"another job is working in {output}; wait for it, or choose another --output-dir"
            ) from None
        # The lock ends with the process, however it dies; the empty file stays.
        yield


@contextlib.contextmanager
def _cluster(address: str | None) -> Iterator[None]:
    """Connect to a Ray cluster, or start a local one, and let go of it at the end."""
    if ray.is_initialized():
        yield
        return
    # Tune's own tables are replaced by ours, its log files by the study.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    # The job has its own signal handling, which the study takes part in.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    wanted = address or os.environ.get("RAY_ADDRESS")
    try:
        ray.init(
            address=wanted,
            include_dashboard=None if wanted and wanted != "local" else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise StudyError(
            f"no Ray cluster at {wanted or 'this machine'} ({reason}); start one with `ray start --head`, or leave "
            "--address out for a local one"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _tune_state(options: TuneOptions, output: Path) -> Iterator[str]:
    """Where trials keep their state while the search runs; a directory of ours is removed after it."""
    if options.storage_path:
        yield options.storage_path
        return
    directory = output / TUNE_STATE_DIR
    shutil.rmtree(directory, ignore_errors=True)
    try:
        yield str(directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _say(console: Console, text: str, style: str | None = None) -> None:
    """Print text as it is: no markup, no highlighting, no line broken by us."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def _describe_resume(
    console: Console, options: TuneOptions, study: optuna.Study, put_back: int, samples: int
) -> None:
    if not options.resume:
        return
    done = len(studies.completed(study)) + len(studies.failed(study))
    if not done and not put_back:
        _say(console, "Nothing to resume in this directory: starting afresh.")
    else:
        _say(
            console,
            f"Resuming: {done} of {options.num_samples} trials are finished, {put_back} that were running are queued "
            f"again, {samples} to go.",
        )


def _describe_cluster(console: Console, resources: Resources, samples: int, options: TuneOptions) -> None:
    gpus = f" and {resources.gpus_per_trial:g} GPU" if resources.gpus_per_trial else ""
    nodes = f"{resources.nodes} node{'s' if resources.nodes > 1 else ''}"
    _say(
        console,
        f"Searching with {samples} trials ({options.space} space) on {nodes}, {resources.cluster_cpus:g} CPUs, "
        f"{resources.cluster_gpus:g} GPUs: {resources.max_concurrent} at a time, each with "
        f"{resources.cpus_per_trial:g} CPU{gpus}",
    )


def _ended_early(stop: Stop, states: dict[str, int]) -> str:
    return (
        f"stopped by {stop.reason} with {states.get('COMPLETE', 0)} trials finished and kept; continue with the same "
        f"command and --resume"
    )


def _describe_result(
    console: Console,
    front: list[FrontPoint],
    picked: FrontPoint,
    options: TuneOptions,
    summary: dict[str, Any],
) -> None:
    # A pipe or a file has no width of its own: never cut a table there.
    wide = console if console.is_terminal else Console(width=160, quiet=console.quiet, file=sys.stdout)
    wide.print(front_table(front, picked, options.objectives_on))
    search, pick_path = summary["search"], options.output_dir / PICK_FILE
    if search["wall_seconds"]:
        _say(
            console,
            f"{search['trials']} trials in {search['wall_seconds']:.0f} s; training took "
            f"{100 * search['efficiency']:.0f} % of {search['cores']:g} cores",
        )
    _say(
        console,
        f"Pick by {options.strategy}: trial {picked.number}, kept as {pick_path}\n"
        f"  forecast  python -m forecast infer --checkpoint {pick_path}\n"
        f"  serve     serve run serve_app:app checkpoint={pick_path}\n"
        f"  look      optuna-dashboard sqlite:///{options.output_dir / studies.STUDY_FILE}",
    )
