"""One tuning job from prices to pick: what ``python -m tune_jobs.pareto`` does."""

from __future__ import annotations

import contextlib
import fcntl
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial
from rich.console import Console

from forecast.atomic import require_writable, write_json
from forecast.checkpoint import library_versions, save_checkpoint
from forecast.describe import series_lines
from forecast.errors import StudyError
from forecast.evaluation import evaluate_forecasts
from forecast.series import Provenance
from forecast.source import series_from_config
from forecast.split import require_rows
from forecast.windows import PreparedSeries, prepare
from tune_jobs import study as studies
from tune_jobs.cluster import connected
from tune_jobs.options import TuneOptions
from tune_jobs.placement import Placement
from tune_jobs.progress import SearchProgress
from tune_jobs.report import (
    FRONT_FILE,
    PICK_FILE,
    REPORT_FILE,
    SUMMARY_FILE,
    describe_point,
    front_table,
    next_lines,
    score_lines,
    search_lines,
    strategy_line,
    write_front,
)
from tune_jobs.report_page import Findings, write_report
from tune_jobs.search import run_search
from tune_jobs.searcher import SearchInput, put_back_running
from tune_jobs.selection import (
    FrontPoint,
    Preference,
    pareto_front,
    pick,
    pick_within_one_se,
    score_on_test,
)
from tune_jobs.space import SPACES
from tune_jobs.states import StateStore
from tune_jobs.stopping import Stop

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


@dataclass(frozen=True)
class Found:
    """What a search left: the front and the pick, none of them scored on the test rows yet.

    ``front`` is empty and ``picked`` None when no trial finished.
    """

    front: list[FrontPoint]
    picked: FrontPoint | None
    trials: list[FrozenTrial]
    stopped_by: str | None
    """What ended the search before its last trial, None when nothing did."""
    run: dict[str, Any]
    """This run's share: trials, seconds, workers, cores, efficiency."""

    @property
    def states(self) -> dict[str, int]:
        """Number of trials by state, ``COMPLETE``, ``FAIL`` and so on."""
        return dict(Counter(trial.state.name for trial in self.trials))


def run_job(options: TuneOptions) -> Outcome:
    """Search, pick and report.

    Raises:
        ForecastError: in one line, when data, options, study or cluster do not allow it.
        OSError: when the output directory cannot be written; everything finished before is safe.
    """
    started = time.perf_counter()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    console, errors = Console(quiet=options.quiet or options.json_output), Console(stderr=True)
    series = series_from_config(options, notify=lambda line: _say(errors, line, "yellow"))
    longest = SPACES[options.space].longest_window
    require_rows(len(series), longest, options.train_ratio, options.val_ratio_within_train)
    prepared = prepare(series, options)
    persistence = {part: persistence_metrics(prepared, part) for part in ("validation", "test")}
    _say(console, "\n".join(series_lines(series, options)))
    if options.objectives_on == "test":
        _say(errors, SEARCHED_ON_TEST, "yellow")

    with _only_job_in(options.output_dir):
        found = search_and_pick(
            series.provenance, prepared, options, persistence[options.objectives_on], console, errors
        )
        tried = found.states.get("COMPLETE", 0)
        front = [score_on_test(point, prepared, tried) for point in found.front]
        picked = next(
            (point for point in front if found.picked and point.number == found.picked.number), None
        )
        if picked:
            write_front(front, options.output_dir / FRONT_FILE)
            save_checkpoint(picked.checkpoint, options.output_dir / PICK_FILE)
        summary = {
            "study": options.study_name,
            "trials": {"asked": options.num_samples, **found.states},
            "stopped_by": found.stopped_by,
            "objectives": options.objective_names,
            "objectives_on": options.objectives_on,
            "strategy": options.strategy,
            "pick": describe_point(picked) if picked else None,
            "front": [describe_point(point) for point in front],
            "persistence": persistence,
            "search": found.run,
            "total_seconds": time.perf_counter() - started,
            "data": series.provenance.to_dict(),
            "integrity": series.integrity.to_dict(),
            "options": options.model_dump(mode="json"),
            "versions": {**library_versions(), **{name: version(name) for name in ("ray", "optuna")}},
        }
        write_json(summary, options.output_dir / SUMMARY_FILE)
        (options.output_dir / REPORT_FILE).unlink(missing_ok=True)  # an earlier run's is of another pick
        if options.json_output:
            print(json.dumps(summary, indent=2, allow_nan=False, default=str))
        interrupted = found.stopped_by is not None
        early = [_ended_early(found)] if interrupted else []
        for line in early:
            _say(errors, line, "yellow")
        if picked:
            _describe_result(console, front, picked, options, found)
        if picked and options.report:
            findings = Findings(
                series=series,
                prepared=prepared,
                options=options,
                trials=found.trials,
                front=front,
                picked=picked,
                persistence=persistence[options.objectives_on],
                ended=[*search_lines(found.run), *early],
            )
            write_report(findings, options.output_dir / REPORT_FILE)
    if not picked and not interrupted:
        raise StudyError(
            f"no trial finished with usable metrics ({found.states.get('FAIL', 0)} failed); their reasons are in "
            f"{options.output_dir / studies.STUDY_FILE}"
        )
    return Outcome(summary, interrupted)


def search_and_pick(
    provenance: Provenance,
    prepared: PreparedSeries,
    options: TuneOptions,
    persistence: dict[str, float],
    console: Console,
    errors: Console,
) -> Found:
    """Bring the study to ``options.num_samples`` finished trials and pick from its front.

    Nothing here reads a test row, unless ``--objectives-on test`` asks for it.

    Args:
        provenance: where the prices came from.
        prepared: the normalized series.
        options: the job's.
        persistence: persistence's metrics on the rows of the objectives.
        console: for what happens.
        errors: for progress and warnings.
    """
    output = options.output_dir.absolute()
    database, checkpoints = output / studies.STUDY_FILE, output / CHECKPOINT_DIR
    storage = studies.open_storage(database)
    study = studies.open_study(
        storage,
        options.study_name,
        path=database,
        resume=options.resume,
        objectives=options.objective_names,
        basis=_basis(options, provenance),
    )
    with studies.study_errors(database):
        put_back = put_back_running(study, checkpoints)
        samples = studies.remaining(study, options.num_samples)
    _describe_resume(console, options, study, put_back, samples)

    stop = Stop()
    progress = SearchProgress(errors, samples, persistence, quiet=options.quiet)
    run: dict[str, Any] = {"trials": 0}
    kept = StateStore.at(options.storage_path or str(output / TUNE_STATE_DIR), study.user_attrs[studies.JOB])
    if samples:
        with connected(options.address) as cluster:
            placement = Placement(
                cpus_per_trial=options.cpus_per_trial,
                gpus_per_trial=options.gpus_per_trial,
                gpu_from=options.gpu_from * 1e6,
                max_concurrent=options.max_concurrent,
                may_grow=cluster.may_grow,
                growth=cluster.growth,
            )
            kept.check()
            _describe_cluster(console, placement, samples, options)
            if options.time_budget:
                stop.deadline = time.monotonic() + options.time_budget
            search = SearchInput(
                prepared=prepared if options.objectives_on == "test" else prepared.without_test(),
                experiment=options,
                provenance=provenance.to_dict(),
                space=SPACES[options.space],
                objectives=options.objective_names,
                part=options.objectives_on,
            )
            with progress, studies.study_errors(database):
                seconds = run_search(
                    search,
                    study,
                    storage,
                    samples=samples,
                    placement=placement,
                    states=kept,
                    checkpoint_dir=checkpoints,
                    stop=stop,
                    on_finished=progress.finished,
                    on_event=progress.tick,
                )
        run = {
            "trials": progress.done + progress.failed,
            "wall_seconds": seconds.wall,
            "core_seconds": seconds.cores,
            "training_seconds": progress.seconds,
            "efficiency": progress.seconds / seconds.cores,
            "asking_seconds": seconds.asking,
            "keeping_seconds": seconds.keeping,
        }
    with studies.study_errors(database):
        front, problems = pareto_front(study, checkpoints)
        trials = study.get_trials(deepcopy=False)
        left = studies.remaining(study, options.num_samples)
    if not left:
        kept.remove()
        if not options.storage_path:
            with contextlib.suppress(OSError):  # another study of this directory has states there
                (output / TUNE_STATE_DIR).rmdir()
    for problem in problems:
        _say(errors, f"warning: {problem}", "yellow")
    studies.close_storage(storage, database)
    picked = None
    if front:
        preference = Preference(options.strategy, persistence, options.weights)
        picked = (
            pick_within_one_se(front, preference, prepared, options.objectives_on)
            if options.one_se
            else pick(front, preference)
        )
    return Found(front, picked, trials, stop.reason if left else None, run)


def persistence_metrics(prepared: PreparedSeries, part: Any) -> dict[str, float]:
    """Persistence's metrics on the rows of ``part``, which are the same for every window length."""
    rows = prepared.rows(part, 2)
    return evaluate_forecasts(rows, rows.baseline).persistence


def _basis(options: TuneOptions, where: Provenance) -> dict[str, Any]:
    """What the metrics of a study's trials depend on beside their hyperparameters."""
    shared = (
        "symbol",
        "feature",
        "train_ratio",
        "val_ratio_within_train",
        "log_prices",
        "target",
        "likelihood",
    )
    return {
        "rows": f"{where.first_date} to {where.last_date} (sha256 {where.sha256[:12]})",
        **{name: getattr(options, name) for name in shared},
        "input_columns": list(options.input_columns),
        "objectives_on": options.objectives_on,
        "space": options.space,
    }


@contextlib.contextmanager
def _only_job_in(output: Path) -> Iterator[None]:
    """Hold the output directory: a second job would take this one's running trials for dead."""
    require_writable(output)
    with (output / LOCK_FILE).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StudyError(
                f"another job is working in {output}; wait for it, or choose another --output-dir"
            ) from None
        # The lock ends with the process, however it dies; the empty file stays.
        yield


def _say(console: Console, text: str, style: str | None = None) -> None:
    """Print text as it is: no markup, no highlighting, no line broken by us."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def _describe_resume(
    console: Console, options: TuneOptions, study: optuna.Study, put_back: int, samples: int
) -> None:
    if not options.resume:
        return
    done = studies.ended(study)
    if not done and not put_back:
        _say(console, "Nothing to resume in this directory: starting afresh.")
    else:
        _say(
            console,
            f"Resuming: {done} of {options.num_samples} trials are finished, {put_back} that were running are queued "
            f"again, {samples} to go.",
        )


def _describe_cluster(console: Console, placement: Placement, samples: int, options: TuneOptions) -> None:
    nodes = placement.nodes
    count = f"{len(nodes)} node{'s' if len(nodes) > 1 else ''}"
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    shares = f", large models on {placement.gpu_slots} GPU shares" if placement.uses_gpus else ""
    _say(
        console,
        f"Searching with {samples} trials ({options.space} space) on {count}, {cpus:g} CPUs, {gpus:g} GPUs: "
        f"{placement.limit} at a time{shares}",
    )


def _ended_early(found: Found) -> str:
    return (
        f"stopped by {found.stopped_by} with {found.states.get('COMPLETE', 0)} trials finished and kept; continue "
        "with the same command and --resume"
    )


def _describe_result(
    console: Console,
    front: list[FrontPoint],
    picked: FrontPoint,
    options: TuneOptions,
    found: Found,
) -> None:
    # A pipe or a file has no width of its own: never cut a table there.
    wide = console if console.is_terminal else Console(width=160, quiet=console.quiet, file=sys.stdout)
    wide.print(front_table(front, picked, options.objectives_on, wide.width))
    lines = [
        *search_lines(found.run),
        *score_lines(picked),
        f"Pick by {strategy_line(options)}: trial {picked.number}, kept as {options.output_dir / PICK_FILE}",
        *next_lines(options),
    ]
    _say(console, "\n".join(lines))
