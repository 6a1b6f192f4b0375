"""The search: Ray Tune runs trials that an Optuna study suggests, until enough are finished."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import optuna
import ray
import torch
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler
from ray.tune.search.optuna import OptunaSearch

from forecast.checkpoint import Checkpoint, save_checkpoint
from forecast.config import ExperimentConfig
from forecast.errors import UsageError
from forecast.evaluation import Evaluation
from forecast.split import Part
from forecast.windows import PreparedSeries
from tune_jobs import study as studies
from tune_jobs.space import SearchSpace
from tune_jobs.trial import (
    BEST_FILE,
    FAILURE,
    FIRST_RUNG,
    REDUCTION,
    REPORTED,
    TRIAL_NUMBER,
    LSTMTrial,
    trial_config,
)

RETRIES = 1
"""Times a trial whose worker died goes on from its last rung before it counts as failed."""


@dataclass(frozen=True)
class Resources:
    """What one trial asks for and how many run at a time."""

    cpus_per_trial: float
    gpus_per_trial: float
    max_concurrent: int
    cluster_cpus: float
    cluster_gpus: float
    nodes: int


DEFAULT_GPU_SHARE = 0.25
"""A small LSTM fills a fraction of a GPU: several share one."""


def plan_resources(
    cpus_per_trial: float, gpus_per_trial: float | None, max_concurrent: int | None
) -> Resources:
    """Resources of each trial on the connected cluster.

    Raises:
        UsageError: when one trial asks for more than the cluster has, which would wait for ever.
    """
    cluster = ray.cluster_resources()
    cpus, gpus = cluster.get("CPU", 0.0), cluster.get("GPU", 0.0)
    share = gpus_per_trial if gpus_per_trial is not None else (DEFAULT_GPU_SHARE if gpus else 0.0)
    if cpus_per_trial > cpus:
        raise UsageError(f"--cpus-per-trial {cpus_per_trial:g}: the cluster has {cpus:g} CPUs; ask for fewer")
    if share > gpus:
        raise UsageError(f"--gpus-per-trial {share:g}: the cluster has {gpus:g} GPUs; ask for less, or 0")
    room = int(cpus / cpus_per_trial)
    if share:
        room = min(room, int(gpus / share))
    return Resources(
        cpus_per_trial=cpus_per_trial,
        gpus_per_trial=share,
        max_concurrent=min(room, max_concurrent or room),
        cluster_cpus=cpus,
        cluster_gpus=gpus,
        nodes=len([node for node in ray.nodes() if node["Alive"]]),
    )


@dataclass
class Stop:
    """Whether and why the search is to end before its last trial; asked by Tune after every event."""

    deadline: float | None = None
    reason: str | None = None
    failure: Exception | None = None
    """What makes going on useless: a full disk, a database that cannot be written."""

    def now(self) -> bool:
        """Whether to stop; the time budget is looked at here."""
        if self.reason is None and self.deadline is not None and time.monotonic() >= self.deadline:
            self.reason = "time budget"
        return self.reason is not None


class _Stopper(tune.Stopper):
    def __init__(self, stop: Stop) -> None:
        self._stop = stop

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._stop.now()


@contextlib.contextmanager
def stop_on_signals(stop: Stop) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the search cleanly; a second Ctrl-C ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, _frame: FrameType | None) -> None:
        stop.reason = signal.Signals(number).name
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class Finished:
    """One trial's end, for progress: completed with its objectives, or failed with a reason."""

    number: int
    objectives: dict[str, float] | None
    seconds: float = 0.0
    reason: str | None = None


class TrialWatch(tune.Callback):
    """Knows of each live trial where it last saved itself and what Tune knows of its failure."""

    def __init__(self, stop: Stop, on_event: Callable[[], None]) -> None:
        self._stop, self._on_event = stop, on_event
        self._saved: dict[str, tune.Checkpoint] = {}
        self._trials: Sequence[Any] = ()

    def on_step_begin(self, iteration: int, trials: Any, **info: Any) -> None:
        """Keep hold of Tune's list of trials."""
        self._trials = trials

    def on_checkpoint(self, iteration: int, trials: Any, trial: Any, checkpoint: Any, **info: Any) -> None:
        """Remember where it is saved."""
        self._saved[trial.trial_id] = checkpoint

    def on_step_end(self, iteration: int, trials: Any, **info: Any) -> None:
        """Let progress be drawn; when the search is to stop, do not wait for steps under way."""
        self._on_event()
        if self._stop.now():
            for trial in trials:
                if actor := trial.temporary_state.ray_actor:
                    ray.kill(actor)

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks for its own way of resuming, which is not ours.
        return {}

    def last_saved(self, trial_id: str) -> tune.Checkpoint | None:
        """Where an ended trial last saved itself, None when it never did; forgets the trial's place."""
        return self._saved.pop(trial_id, None)

    def why_failed(self, trial_id: str) -> str:
        """What ended a trial that could not say so itself, in one line."""
        error = next((trial.get_error() for trial in self._trials if trial.trial_id == trial_id), None)
        if error is None:
            return "it reported no finite objectives"
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        causes = [line for line in lines if re.match(r"[A-Za-z_.]+(Error|Exception|Interrupt): ", line)]
        return f"its worker died: {(causes or lines or [type(error).__name__])[-1 if causes else 0]}"


@dataclass(frozen=True)
class SearchInput:
    """What a search needs to know of the experiment.

    ``prepared`` has no test rows unless the objectives are computed on them.
    """

    prepared: PreparedSeries
    experiment: ExperimentConfig
    provenance: dict[str, Any]
    space: SearchSpace
    part: Part = "validation"


class StudySearch(OptunaSearch):
    """``OptunaSearch`` on an opened study, which tells it everything, also what Tune keeps to itself.

    A trial is COMPLETE in the study only after its checkpoint is whole on disk; an error, a missing
    objective or one that is not a finite number is FAIL with its reason.
    """

    def __init__(
        self,
        study: optuna.Study,
        storage: optuna.storages.RDBStorage,
        sampler: optuna.samplers.BaseSampler,
        search: SearchInput,
        watch: TrialWatch,
        stop: Stop,
        checkpoint_dir: Path,
        on_finished: Callable[[Finished], None],
    ) -> None:
        self._study, self._search, self._watch, self._stop = study, search, watch, stop
        self._checkpoint_dir, self._on_finished = checkpoint_dir, on_finished
        super().__init__(
            space=search.space,
            metric=studies.OBJECTIVES,
            mode=["min"] * len(studies.OBJECTIVES),
            sampler=sampler,
            study_name=study.study_name,
            storage=storage,
        )

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Hyperparameters for a new trial, and its number in the study; None once the search is to stop."""
        if self._stop.now():
            return None
        with self._stop_on_failure():
            params = super().suggest(trial_id) or {}
            return {**params, TRIAL_NUMBER: self._ot_trials[trial_id].number}
        return None

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Put a trial's end into the study; a trial it cannot be put in for stays to be run again."""
        with self._stop_on_failure():
            self._finish(trial_id, result, error)

    @contextlib.contextmanager
    def _stop_on_failure(self) -> Iterator[None]:
        """End the search, with what is finished safe, when the disk or the database fails.

        An exception here would make Tune count the trial as failed, or lose the job.
        """
        try:
            yield
        except (OSError, *studies.DATABASE_ERRORS) as error:
            self._stop.failure, self._stop.reason = error, "failure"

    def _finish(self, trial_id: str, result: dict[str, Any] | None, error: bool) -> None:
        trial = self._ot_trials[trial_id]
        saved = self._watch.last_saved(trial_id)
        values = studies.usable_objectives(result)
        if error or result is None or values is None or saved is None:
            reason = (result or {}).get(FAILURE) or self._watch.why_failed(trial_id)
            studies.fail(self._study, trial, reason)
            self._on_finished(Finished(trial.number, None, reason=reason))
            return
        self._keep_checkpoint(trial, saved)
        for name in REPORTED:
            trial.set_user_attr(name, result[name])
        self._study.tell(trial, values)
        objectives = dict(zip(studies.OBJECTIVES, values, strict=True))
        self._on_finished(Finished(trial.number, objectives, seconds=result["seconds"]))

    def _keep_checkpoint(self, trial: optuna.Trial, saved: tune.Checkpoint) -> None:
        with saved.as_directory() as directory:
            best = torch.load(Path(directory) / BEST_FILE, weights_only=True, map_location="cpu")
        checkpoint = Checkpoint.create(
            model_state=best["model_state"],
            config=trial_config(self._search.experiment, trial.params),
            prepared=self._search.prepared,
            val_loss_best=best["val_loss_best"],
            best_epoch=best["best_epoch"],
            validation=Evaluation(**best["validation"]),
            provenance=self._search.provenance,
            trial_number=trial.number,
            trial_params=trial.params,
        )
        save_checkpoint(checkpoint, trial_checkpoint_path(self._checkpoint_dir, trial.number))

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default", **kwargs: Any) -> None:
        """Save nothing: the database is the state, and a job is resumed from it alone."""

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its searcher for its own way of resuming, which is not ours.
        return {}


def trial_checkpoint_path(directory: Path, number: int) -> Path:
    """Where the checkpoint of trial ``number`` is kept."""
    return directory / f"trial_{number:05d}.pt"


def run_search(
    search: SearchInput,
    study: optuna.Study,
    storage: optuna.storages.RDBStorage,
    *,
    samples: int,
    resources: Resources,
    checkpoint_dir: Path,
    storage_path: str,
    stop: Stop,
    on_finished: Callable[[Finished], None] = lambda finished: None,
    on_event: Callable[[], None] = lambda: None,
) -> float:
    """Run ``samples`` more trials of ``study`` on the connected cluster; give back the seconds it took.

    Ends early when ``stop`` says so; trials then still running are told FAIL as interrupted and their
    parameters queued in the study.

    Args:
        search: the shared series, the experiment's settings and the search space.
        study: the opened study.
        storage: its storage.
        samples: trials to finish, failures among them.
        resources: what each trial asks for.
        checkpoint_dir: where each finished trial's checkpoint goes.
        storage_path: where trials keep their state while they run; every node must reach it.
        stop: asked after every event of Tune's loop.
        on_finished: called at each trial's end.
        on_event: called often, for progress.

    Raises:
        OSError: when the disk cannot be written; everything finished before is safe.
        sqlalchemy.exc.SQLAlchemyError: when the database cannot be; likewise.
    """
    watch = TrialWatch(stop, on_event)
    searcher = StudySearch(
        study=study,
        storage=storage,
        # One sampler state per start of the job: a resumed study must not repeat its first draws.
        sampler=optuna.samplers.TPESampler(
            seed=search.experiment.seed + len(study.get_trials(deepcopy=False))
        ),
        search=search,
        watch=watch,
        stop=stop,
        checkpoint_dir=checkpoint_dir,
        on_finished=on_finished,
    )
    trainable = tune.with_parameters(
        LSTMTrial, prepared=search.prepared, experiment=search.experiment, part=search.part
    )
    bundle = {"CPU": resources.cpus_per_trial}
    if resources.gpus_per_trial:
        bundle["GPU"] = resources.gpus_per_trial
    tuner = tune.Tuner(
        tune.with_resources(trainable, tune.PlacementGroupFactory([bundle])),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=AsyncHyperBandScheduler(
                time_attr="epoch",
                metric="val_loss_best",
                mode="min",
                grace_period=FIRST_RUNG,
                reduction_factor=REDUCTION,
                # Trials end by themselves: the scheduler only compares them at the rungs.
                max_t=search.space.longest_training + 1,
            ),
            num_samples=samples,
            max_concurrent_trials=resources.max_concurrent,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=study.study_name,
            storage_path=storage_path,
            stop=_Stopper(stop),
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1, checkpoint_frequency=1),
            callbacks=[watch],
            verbose=0,
        ),
    )
    _quiet_tune()
    started = time.perf_counter()
    with stop_on_signals(stop):
        tuner.fit()
    seconds = time.perf_counter() - started
    if stop.failure is not None:
        raise stop.failure
    studies.put_back_running(study)
    return seconds


def _quiet_tune() -> None:
    """Leave to Tune what it does best: its tables are replaced by ours, its log files by the study.

    Its handling of Ctrl-C is replaced by ours, which the study takes part in.
    """
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
