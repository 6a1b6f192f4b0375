"""The second part of a job: bring the study to its number of trials, and pick a point of its front.

``tune_jobs.tuner`` runs the trials with Ray Tune, with ``tune_jobs.searcher`` and ``tune_jobs.scheduler``.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from forecast.errors import CheckpointError, StudyError
from forecast.model.panel import PreparedPanel
from tune_jobs import study as studies
from tune_jobs.cluster import Connect
from tune_jobs.console import say
from tune_jobs.costs import Preference, persistence_losses, row_losses, sample_cost
from tune_jobs.databases import Database, database_of, study_errors
from tune_jobs.luck import Luck, p_value_of_best
from tune_jobs.options import FIXED, TuneOptions
from tune_jobs.placement import Placement
from tune_jobs.prepare import Job
from tune_jobs.progress import SearchProgress
from tune_jobs.searcher import ANY_TRIAL, SearchInput, put_back_running, trial_checkpoint_path
from tune_jobs.selection import FrontPoint, checkpoint_of, pareto_front, pick, pick_within_one_se
from tune_jobs.states import StateStore
from tune_jobs.stopping import Stop
from tune_jobs.tables import warm_start_lines
from tune_jobs.tuner import SearchSeconds, run_search

CHECKPOINT_DIR = "checkpoints"
TUNE_STATE_DIR = ".tune_state"


@dataclass(frozen=True)
class Found:
    """The result of a search; nothing in it is scored on the test rows yet.

    Attributes:
        front: the Pareto front; empty when no trial finished.
        picked: one point of the front; None when it is empty.
        luck: what luck can explain of the pick; None when there is none.
        trials: every trial of the study.
        stopped_by: why the search ended before its last trial; None when it did not.
        run: figures of this run alone: trials, seconds, core-seconds, efficiency.
        job: the job's identity: a name that no other study has.
        warm_start: the earlier job whose configurations were tried first, with their trials; None without one.
    """

    front: list[FrontPoint]
    picked: FrontPoint | None
    luck: Luck | None
    trials: list[FrozenTrial]
    stopped_by: str | None
    run: dict[str, Any]
    job: str
    warm_start: dict[str, Any] | None = None

    @property
    def states(self) -> dict[str, int]:
        """The number of trials by state: ``COMPLETE``, ``FAIL`` and so on."""
        return dict(Counter(trial.state.name for trial in self.trials))


def search_and_pick(job: Job, connect: Connect) -> Found:
    """Bring the study to its number of finished trials, and pick a point of its front.

    Nothing here reads a test row, unless the objectives are computed on the test rows.

    Args:
        job: the job.
        connect: connects to the cluster; called only if there are trials to run.
    """
    options = job.options
    database = database_of(options)

    def notify(line: str) -> None:
        say(job.errors, line, "yellow")

    with studies.opened_storage(database, notify) as storage, study_errors(database):
        return _search(job, connect, database, storage)


def _search(job: Job, connect: Connect, database: Database, storage: optuna.storages.RDBStorage) -> Found:
    options = job.options
    output = options.output_dir.absolute()
    checkpoints = output / CHECKPOINT_DIR
    study = studies.open_study(
        storage,
        options.study,
        database=database,
        resume=options.resume,
        objectives=options.objective_names,
        basis=_basis(job),
    )
    _refuse_checkpoints_of_others(study, checkpoints)
    if database.shared:
        say(job.console, f"Study {options.study} in {database}")
        _claim(study, database, output, checkpoints)
    put_back = put_back_running(study, checkpoints)
    samples = studies.remaining(study, options.num_samples)
    _describe_resume(job.console, options, study, put_back, samples)
    if job.warm_start and samples:
        found = studies.queue_first(study, job.warm_start, job.space, samples)
        _describe_warm_start(job, found)
    kept = StateStore.at(options.storage_path or str(output / TUNE_STATE_DIR), study.user_attrs[studies.JOB])
    stop = Stop()
    run = _run(job, connect, study, storage, samples, kept, stop, checkpoints) if samples else {"trials": 0}
    front, problems = pareto_front(study, checkpoints, options.validation_folds)
    trials = study.get_trials(deepcopy=False)
    warm_start = studies.warm_start_of(study)
    left = studies.remaining(study, options.num_samples)
    if not left:
        _remove(kept, options, output)
    for problem in problems:
        say(job.errors, f"warning: {problem}", "yellow")
    finished = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    picked, luck = _pick(job, front, finished, checkpoints) if front else (None, None)
    stopped_by = stop.reason if left else None
    return Found(front, picked, luck, trials, stopped_by, run, study.user_attrs[studies.JOB], warm_start)


def _refuse_checkpoints_of_others(study: optuna.Study, checkpoints: Path) -> None:
    """Keep a new study from replacing the checkpoints of another study.

    Raises:
        StudyError: when no trial of the study is finished, but the directory has checkpoints of another study.
    """
    own = [trial_checkpoint_path(checkpoints, trial.number) for trial in study.get_trials(deepcopy=False)]
    if not studies.completed(study) and set(checkpoints.glob(ANY_TRIAL)) - set(own):
        raise StudyError(
            f"{checkpoints} holds models of trials that {study.study_name!r} does not have, and it would replace them; "
            "give each study its own `output_dir`, or delete these models"
        )


def _claim(study: optuna.Study, database: Database, output: Path, checkpoints: Path) -> None:
    """Record in a shared database where the job runs, for whoever watches the study.

    Raises:
        StudyError: when the checkpoints of finished trials are in another directory: no front could be picked here.
    """
    here, before = f"{socket.gethostname()}:{output}", study.user_attrs.get(studies.RUNS_IN)
    done = studies.completed(study)
    if done and not any(trial_checkpoint_path(checkpoints, trial.number).exists() for trial in done):
        raise StudyError(
            f"the checkpoints of the {len(done)} finished trials of the study {study.study_name!r} are in {before}, "
            f"not in {here}; resume the study there, copy the directory, or choose another {database.elsewhere}"
        )
    study.set_user_attr(studies.RUNS_IN, here)


def _run(
    job: Job,
    connect: Connect,
    study: optuna.Study,
    storage: optuna.storages.RDBStorage,
    samples: int,
    states: StateStore,
    stop: Stop,
    checkpoints: Path,
) -> dict[str, Any]:
    """Run ``samples`` more trials on a cluster, and return the figures of this run."""
    options, prepared = job.options, job.prepared
    cluster = connect()
    placement = Placement(
        cpus_per_trial=options.cpus_per_trial,
        gpus_per_trial=options.gpus_per_trial,
        gpu_from=options.gpu_from * 1e6,
        max_concurrent=options.max_concurrent,
        may_grow=cluster.may_grow,
        growth=cluster.growth,
    )
    progress = SearchProgress(
        job.errors, samples, job.to_beat, at_a_time=lambda: placement.limit, quiet=options.quiet
    )
    states.check()
    _describe_cluster(job.console, placement, samples, options)
    if options.time_budget:
        stop.deadline = time.monotonic() + options.time_budget
    search = SearchInput(
        prepared=prepared if options.objectives_on == "test" else prepared.without_test(),
        experiment=options.model_copy(update={"study_storage": None}),  # workers need no password
        provenance=asdict(job.prices.provenance),
        space=job.space,
        objectives=options.objective_names,
        part=options.objectives_on,
        earlier_folds=job.earlier_folds,
        start=job.start,
    )
    with progress:
        seconds = run_search(
            search,
            study,
            storage,
            samples=samples,
            placement=placement,
            states=states,
            checkpoint_dir=checkpoints,
            stop=stop,
            on_finished=progress.finished,
            on_event=progress.tick,
        )
    return _figures(progress, seconds)


def _figures(progress: SearchProgress, seconds: SearchSeconds) -> dict[str, Any]:
    return {
        "trials": progress.done + progress.failed,
        "wall_seconds": seconds.wall,
        "core_seconds": seconds.cores,
        "training_seconds": progress.seconds,
        "efficiency": progress.seconds / seconds.cores,
        "asking_seconds": seconds.asking,
        "keeping_seconds": seconds.keeping,
    }


def _remove(states: StateStore, options: TuneOptions, output: Path) -> None:
    """Delete the states of a finished study."""
    states.remove()
    if not options.storage_path:
        with contextlib.suppress(OSError):  # another study in this directory may have states there
            (output / TUNE_STATE_DIR).rmdir()


def _pick(
    job: Job, front: Sequence[FrontPoint], finished: Sequence[FrozenTrial], checkpoints: Path
) -> tuple[FrontPoint, Luck]:
    """Pick a point of the front, and judge by the rows that it was chosen on what of it is luck.

    With several validation folds, these are the rows of the last one, whose models the checkpoints hold. Finished
    trials without a usable checkpoint are left out.
    """
    options, names = job.options, job.options.objective_names
    rows = job.prepared, options.objectives_on
    preference = Preference(options.strategy, job.to_beat, options.weights)
    losses = {point.number: row_losses(point.checkpoint, *rows, names) for point in front}
    costs = {point.number: sample_cost(point.objectives, losses[point.number], preference) for point in front}
    picked = pick_within_one_se(front, preference, costs) if options.one_se else pick(front, preference)
    chosen = costs[picked.number]

    for trial in finished:
        with contextlib.suppress(CheckpointError):
            if trial.number not in losses:
                checkpoint = checkpoint_of(trial, checkpoints, options.validation_folds)
                losses[trial.number] = row_losses(checkpoint, *rows, names)
    persistence = persistence_losses(*rows, names)
    to_beat = sample_cost({name: job.to_beat[name] for name in names}, persistence, preference)
    luck = Luck(
        same_as_pick=frozenset(number for number, cost in costs.items() if cost.is_near(chosen)),
        pick_same_as_persistence=to_beat.is_near(chosen),
        metric=preference.metric,
        trials=len(losses),
        p_value=p_value_of_best([losses[number] for number in sorted(losses)], persistence, preference),
    )
    return picked, luck


def _basis(job: Job) -> dict[str, Any]:
    """Return the settings that the metrics of a study's trials depend on, other than hyperparameters."""
    options, where = job.options, job.prices.provenance
    return {
        "rows": f"{where.first_date} to {where.last_date} (sha256 {where.sha256[:12]})",
        **{name: getattr(options, name) for name in FIXED},
        "input_columns": list(options.input_columns),
        **({"CRPS": "integrated over all probabilities"} if "CRPS" in options.objective_names else {}),
        "windows_per_epoch": options.windows_per_epoch if _draws_windows(job) else None,
        "held_out": sorted(job.prepared.held_out) if isinstance(job.prepared, PreparedPanel) else [],
        "start_from": job.start and f"a model with sha256 {(job.start.sha256 or '')[:12]}",
    }


def _draws_windows(job: Job) -> bool:
    """Tell whether the training rows are more than the windows of an epoch."""
    return sum(part.split.train_end for part in job.prepared.parts) > job.options.windows_per_epoch


def _describe_resume(
    console: Console, options: TuneOptions, study: optuna.Study, put_back: int, samples: int
) -> None:
    if not options.resume:
        return
    done = studies.ended(study)
    if not done and not put_back:
        place = "study" if options.study_storage else "directory"
        say(console, f"Nothing to resume in this {place}: starting from scratch.")
    else:
        say(
            console,
            f"Resuming: {done} of {options.num_samples} trials are finished, {put_back} interrupted ones are queued "
            f"again, {samples} to go.",
        )


def _describe_warm_start(job: Job, found: dict[str, Any]) -> None:
    say(job.console, "\n".join(warm_start_lines(found)))
    if found["skipped"]:
        times = Counter(found["skipped"])
        reasons = [reason if count == 1 else f"{reason} ({count} times)" for reason, count in times.items()]
        say(
            job.errors,
            f"warning: {len(found['skipped'])} of the {found['configurations']} configurations of {found['directory']} "
            f"are skipped, because this job's search space lacks a value of theirs: {', '.join(reasons)}",
            "yellow",
        )


def _describe_cluster(console: Console, placement: Placement, samples: int, options: TuneOptions) -> None:
    nodes = placement.nodes
    count = f"{len(nodes)} node{'s' if len(nodes) > 1 else ''}"
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    shares = f", large models on {placement.gpu_slots} GPU shares" if placement.uses_gpus else ""
    say(
        console,
        f"Searching with {samples} trials ({options.space} space) on {count}, {cpus:g} CPUs, {gpus:g} GPUs: "
        f"{placement.limit} at a time{shares}",
    )
