"""The searcher: it passes Optuna's suggestions to Ray Tune, and records every trial's end in the study."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import ray
from pydantic import TypeAdapter
from ray import tune
from ray.tune.result import NODE_IP
from ray.tune.search.optuna import OptunaSearch

from forecast.config import ExperimentConfig
from forecast.errors import StudyError
from forecast.model.checkpoint import Checkpoint, save_checkpoint
from forecast.model.panel import Prepared
from forecast.model.split import Part
from forecast.scores.metrics import Evaluation
from tune_jobs import study as studies
from tune_jobs.databases import DATABASE_ERRORS
from tune_jobs.placement import Placement
from tune_jobs.ray_internals import is_loss_of_node
from tune_jobs.space import SearchSpace
from tune_jobs.states import StateStore
from tune_jobs.stopping import Stop
from tune_jobs.trial import (
    EARLIER_SECONDS,
    FAILURE,
    GPU_ERRORS,
    REPORTED,
    Ticket,
    in_one_line,
    read_state,
    trial_config,
    trial_cost,
)
from tune_jobs.tune_internals import error_of, optuna_trial, process_of


@dataclass(frozen=True)
class Finished:
    """One trial that ended, for progress: completed with its objectives, or failed with a reason.

    ``seconds`` and ``work`` count its training in this job, not before it was interrupted and put back.
    """

    number: int
    objectives: dict[str, float] | None
    seconds: float = 0.0
    work: float = 0.0
    reason: str | None = None


class TrialWatch(tune.Callback):
    """Tracks where each live trial last saved its state, and what Tune knows about its failure."""

    def __init__(self, states: StateStore, on_event: Callable[[], None]) -> None:
        self._states, self._on_event = states, on_event
        self._saved: dict[str, tune.Checkpoint] = {}
        self._trials: Sequence[Any] = ()
        self.on_saved: Callable[[str, str], bool] = lambda trial_id, state: True
        """Called with a trial's id and its state's name once saved; returns whether the study recorded it."""

    def on_step_begin(self, iteration: int, trials: Any, **info: Any) -> None:
        """Keep hold of Tune's list of trials."""
        self._trials = trials

    def on_checkpoint(self, iteration: int, trials: Any, trial: Any, checkpoint: Any, **info: Any) -> None:
        """Remember where the trial is saved, and discard its previous state."""
        before = self._saved.get(trial.trial_id)
        self._saved[trial.trial_id] = checkpoint
        known = self.on_saved(trial.trial_id, self._states.name_of(checkpoint))
        if known and before is not None:
            self._states.discard(before)

    def on_step_end(self, iteration: int, trials: Any, **info: Any) -> None:
        """Let progress be shown."""
        self._on_event()

    def end_steps(self) -> None:
        """Kill the processes whose steps are under way."""
        for trial in self._trials:
            if actor := process_of(trial):
                ray.kill(actor)

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks for its own way of resuming, which we do not use.
        return {}

    def last_saved(self, trial_id: str) -> tune.Checkpoint | None:
        """Return where a trial that has ended last saved its state (None if nowhere), and forget the place."""
        return self._saved.pop(trial_id, None)

    def is_pending(self, trial_id: str) -> bool:
        """Return whether the trial has no process: Tune has not given it one, or has taken it away."""
        trial = self._find(trial_id)
        return trial is not None and trial.status == trial.PENDING

    def error_of(self, trial_id: str) -> ray.exceptions.RayError | None:
        """Return the error that ended a trial's step or process; None when there is none."""
        trial = self._find(trial_id)
        return error_of(trial) if trial is not None else None

    def lost_its_node(self, trial_id: str) -> bool:
        """Return whether a trial ended because its node did, which is not the trial's failure."""
        return is_loss_of_node(self.error_of(trial_id))

    def why_failed(self, trial_id: str) -> str:
        """Return the reason, in one line, for a trial that failed without reporting one."""
        error = self.error_of(trial_id)
        if error is None:
            return "it reported no finite objectives"
        return f"its worker died: {_reason(error)}"

    def _find(self, trial_id: str) -> Any:
        return next((trial for trial in self._trials if trial.trial_id == trial_id), None)


def _reason(error: ray.exceptions.RayError) -> str:
    cause = getattr(error, "cause", None)
    if isinstance(cause, Exception):
        return in_one_line(cause)
    # Ray's text is either a traceback, whose last line says why, or an explanation, whose first line does.
    lines = str(error).strip().splitlines()
    return lines[-1 if getattr(error, "actor_init_failed", True) else 0]


@dataclass(frozen=True)
class SearchInput:
    """The parts of the experiment that a search needs.

    ``prepared`` has no test rows unless the objectives are computed on them; it is the last validation fold, after
    ``earlier_folds``. ``start`` is the model that the trials start from; None for untrained networks.
    """

    prepared: Prepared
    experiment: ExperimentConfig
    provenance: dict[str, Any]
    space: SearchSpace
    objectives: list[str]
    part: Part = "validation"
    earlier_folds: tuple[Prepared, ...] = ()
    start: Checkpoint | None = None

    @property
    def folds(self) -> tuple[Prepared, ...]:
        """The validation folds, in chronological order."""
        return (*self.earlier_folds, self.prepared)


@dataclass
class SearcherSeconds:
    """The driver's seconds: asking for hyperparameters, and keeping the results of ended trials."""

    asking: float = 0.0
    keeping: float = 0.0


class StudySearch(OptunaSearch):
    """``OptunaSearch`` on an open study; it records everything there, including what Tune keeps to itself.

    A trial is COMPLETE in the study only once its checkpoint is complete on disk; an error, or an objective that is
    missing or not finite, makes it FAIL with its reason.
    """

    def __init__(
        self,
        study: optuna.Study,
        storage: optuna.storages.RDBStorage,
        sampler: optuna.samplers.BaseSampler,
        search: SearchInput,
        placement: Placement,
        states: StateStore,
        watch: TrialWatch,
        stop: Stop,
        checkpoint_dir: Path,
        on_finished: Callable[[Finished], None],
    ) -> None:
        self._study, self._search, self._placement = study, search, placement
        self._states, self._watch, self._stop = states, watch, stop
        self._checkpoint_dir, self._on_finished = checkpoint_dir, on_finished
        watch.on_saved = self._remember_state
        self.seconds = SearcherSeconds()
        self.put_back = 0
        super().__init__(
            space=search.space,
            metric=search.objectives,
            mode=["min"] * len(search.objectives),
            sampler=sampler,
            study_name=study.study_name,
            storage=storage,
        )

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # Ray forgot str
        """Return a new trial's hyperparameters and ticket; None while there is no room, FINISHED to stop."""
        if self._stop.now():
            return str(self.FINISHED)  # with None, Tune would wait for minutes when nothing runs yet
        if not self._placement.has_room():
            return None
        started = time.perf_counter()
        with self._stop_on_failure():
            params = super().suggest(trial_id) or {}
            trial = optuna_trial(self, trial_id)
            slot = self._placement.place(trial_id, trial_cost(self._search.experiment, params))
            ticket = Ticket(trial.number, slot, trial.user_attrs.get(studies.STATE))
            self.seconds.asking += time.perf_counter() - started
            return {**params, Ticket.KEY: ticket}
        return str(self.FINISHED)

    def _remember_state(self, trial_id: str, state: str) -> bool:
        with self._stop_on_failure():
            optuna_trial(self, trial_id).set_user_attr(studies.STATE, state)
            return True
        return False

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Record a trial's end in the study; if that fails, the trial stays RUNNING there and is run again."""
        started = time.perf_counter()
        with self._stop_on_failure():
            self._finish(trial_id, result, error)
        self._placement.release(trial_id)
        self.seconds.keeping += time.perf_counter() - started

    @contextlib.contextmanager
    def _stop_on_failure(self) -> Iterator[None]:
        """End the search, keeping what is finished, when disk, database or workers fail.

        If the exception propagated, Tune would count the trial as failed, or lose the job.
        """
        try:
            yield
        except (OSError, StudyError, *DATABASE_ERRORS) as error:
            self._stop.failure, self._stop.reason = error, "failure"

    def _finish(self, trial_id: str, result: dict[str, Any] | None, error: bool) -> None:
        trial = optuna_trial(self, trial_id)
        saved = self._watch.last_saved(trial_id)
        values = studies.usable_objectives(result, self._search.objectives)
        if error and self._stop.now():
            return  # killed by the stop, not failed: it stays RUNNING in the study and is put back later
        if error:
            self._raise_if_others_would_fail_too(trial_id)
        unstarted = result is None and self._watch.is_pending(trial_id)
        if unstarted or (error and self._watch.lost_its_node(trial_id)):
            # It had no process (its GPU is gone for good, or the process it was to reuse died), or it lost one node
            # after another.
            studies.put_back(self._study, trial)
            self.put_back += 1
            return
        if error or result is None or values is None or saved is None:
            reason = (result or {}).get(FAILURE) or self._watch.why_failed(trial_id)
            studies.fail(self._study, trial, reason)
            self._on_finished(Finished(trial.number, None, reason=reason))
            return
        self._keep_checkpoint(trial, saved)
        for name in (*REPORTED, NODE_IP):
            trial.set_user_attr(name, result[name])
        self._study.tell(trial, values)
        self._states.discard(saved)
        objectives = dict(zip(self._search.objectives, values, strict=True))
        seconds = result["seconds"] - result[EARLIER_SECONDS]
        work = result["work"] * seconds / result["seconds"]
        self._on_finished(Finished(trial.number, objectives, seconds=seconds, work=work))

    def _raise_if_others_would_fail_too(self, trial_id: str) -> None:
        """Raise when the cluster failed, not the trial: every other trial would fail the same way.

        Raises:
            StudyError: when a worker cannot start, or cannot save a trial's state.
        """
        error = self._watch.error_of(trial_id)
        number = optuna_trial(self, trial_id).number
        if isinstance(error, ray.exceptions.RayActorError) and error.actor_init_failed:
            raise StudyError(
                f"the worker of trial {number} could not start ({_reason(error)}); give every node the same "
                "environment as this one, then continue with `resume`"
            )
        # A step catches and reports its own errors, except a GPU's: any other error of a worker came from saving state.
        if isinstance(error, ray.exceptions.RayTaskError) and not isinstance(error.cause, GPU_ERRORS):
            raise StudyError(
                f"trial {number} could not save its state in {self._states.uri} ({_reason(error)}); free space or fix "
                "access there, or set `storage_path` to a place that every node can reach, then continue with `resume`"
            )

    def _keep_checkpoint(self, trial: optuna.Trial, saved: tune.Checkpoint) -> None:
        with saved.as_directory() as directory:
            state = read_state(directory)
            best = state["trainer"]
            checkpoint = Checkpoint.create(
                model_state=best["best_state"],
                config=trial_config(self._search.experiment, trial.params, threads=state["threads"]),
                prepared=self._search.prepared,
                val_loss_best=best["best_loss"],
                best_epoch=best["best_epoch"],
                device=state["device"],
                provenance=self._search.provenance,
                trial_number=trial.number,
                trial_params=trial.params,
                started_from=self._search.start.sha256 if self._search.start else None,
                searched_rows=sum(len(part.normalized) for part in self._search.prepared.parts),
            )
            validation = TypeAdapter(Evaluation).validate_python(state["validation"])
            checkpoint = checkpoint.calibrated(state["calibration_scores"].numpy(), validation)
            save_checkpoint(checkpoint, trial_checkpoint_path(self._checkpoint_dir, trial.number))

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default", **kwargs: Any) -> None:
        """Save nothing: the database is the state, and a job is resumed from it alone."""

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its searcher for its own way of resuming, which we do not use.
        return {}


def put_back_running(study: optuna.Study, checkpoint_dir: Path) -> int:
    """Put back every trial whose driver is gone, and return how many there were.

    A trial may have written its checkpoint without being COMPLETE yet: the file is deleted, since the trial runs again.
    """
    numbers = studies.put_back_running(study)
    for number in numbers:
        trial_checkpoint_path(checkpoint_dir, number).unlink(missing_ok=True)
    return len(numbers)


ANY_TRIAL = "trial_*.pt"
"""Pattern of the names of the trials' checkpoints."""


def trial_checkpoint_path(directory: Path, number: int) -> Path:
    """Return the path of trial ``number``'s checkpoint."""
    return directory / f"trial_{number:05d}.pt"
