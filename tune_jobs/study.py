"""The study: an Optuna study in a database (``tune_jobs.databases``), the only truth about every trial.

Ray Tune's own state is thrown away after a run; only this database says which trials are finished, failed or to be run
again.
"""

from __future__ import annotations

import functools
import logging
import math
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import optuna
import sqlalchemy
from optuna.trial import FrozenTrial, TrialState

from forecast.errors import StudyError, UsageError
from tune_jobs.databases import DATABASE_ERRORS, Database, is_connecting, study_errors
from tune_jobs.space import SearchSpace
from tune_jobs.warm_start import WarmStart

INTERRUPTED = "interrupted"
"""The reason recorded for a trial that did not fail but lost its driver; its parameters are queued again."""
REASON = "reason"
RERUN_OF = "rerun_of"
WARM_START = "warm_start"
"""Attribute of a study: the earlier job whose configurations were queued first; of a trial: its origin there."""
STATE = "state"
"""Attribute of a trial: the name of the last state it saved, from which it can continue."""
BASIS = "basis"
"""Attribute of a study: the settings that its trials' metrics depend on."""
NOT_RECORDED = {
    "network": "lstm",
    "likelihood": "mse",
    "input_columns": [],
    "validation_folds": 1,
    "windows_per_epoch": None,
    "market": False,
    "held_out": [],
    "start_from": None,
    "CRPS": "sums over 199 quantiles",
}
"""Settings that studies of earlier versions did not record, with the values that all of them had."""
JOB = "job"
"""Attribute of a study: a name no other study has, for its files in places shared with others."""
RUNS_IN = "runs_in"
"""Attribute of a study in a shared database: the machine and the directory of its latest job."""

RETRY_AFTER = 0.5
"""Seconds between two tries to reach a server that is gone."""


def _again(method: Callable[..., Any]) -> Any:
    """Let a method of ``PatientStorage``, which is one transaction, be called again when its connection is lost."""

    @functools.wraps(method)
    def call(storage: PatientStorage, *arguments: Any, **named: Any) -> Any:
        try:
            return method(storage, *arguments, **named)
        except DATABASE_ERRORS as error:
            failed = error
        # Outside the handler: an error of the next try would have this one as its context.
        return storage._when_back(failed, lambda: method(storage, *arguments, **named))

    return call


class PatientStorage(optuna.storages.RDBStorage):
    """Optuna's storage, which waits for a lost server and repeats the transaction that failed.

    A transaction of which only the server's answer was lost is repeated, too. Attributes and objectives are then
    written twice with the same values. A trial created twice stays RUNNING, and is put back like one whose driver is
    gone.
    """

    def __init__(self, database: Database, notify: Callable[[str], None]) -> None:
        self._database, self._notify, self._waits = database, notify, False
        super().__init__(
            database.url.render_as_string(), engine_kwargs={"connect_args": database.connect_args}
        )

    def begin(self) -> None:
        """Connect as a job does, and be patient from now on."""
        sqlalchemy.event.listen(self.engine, "connect", lambda opened, record: self._database.prepare(opened))
        # Connections opened before the listener was added lack the settings: start a new pool.
        self.engine.dispose()
        self.engine.connect().close()
        self._waits = True

    def _when_back(self, error: Exception, call: Callable[[], Any]) -> Any:
        deadline, told = time.monotonic() + self._database.patience, False
        while self._waits and is_connecting(error) and time.monotonic() < deadline:
            try:
                result = call()
            except DATABASE_ERRORS as again:
                error = again
            except optuna.exceptions.UpdateFinishedTrialError:
                return None  # the transaction that failed had reached the server
            else:
                if told:
                    self._notify("the study's database is back: the job goes on")
                return result
            if is_connecting(error) and not told:
                seconds = f"{self._database.patience:g} s"
                self._notify(f"warning: {self._database.problem(error)}; the job tries again for {seconds}")
                told = True
            time.sleep(RETRY_AFTER)
        if is_connecting(error):
            self._waits = False  # nothing that follows waits as long again
        raise error

    set_study_user_attr = _again(optuna.storages.RDBStorage.set_study_user_attr)
    set_study_system_attr = _again(optuna.storages.RDBStorage.set_study_system_attr)
    get_study_id_from_name = _again(optuna.storages.RDBStorage.get_study_id_from_name)
    get_study_name_from_id = _again(optuna.storages.RDBStorage.get_study_name_from_id)
    get_study_directions = _again(optuna.storages.RDBStorage.get_study_directions)
    get_study_user_attrs = _again(optuna.storages.RDBStorage.get_study_user_attrs)
    get_study_system_attrs = _again(optuna.storages.RDBStorage.get_study_system_attrs)
    _create_new_trial = _again(optuna.storages.RDBStorage._create_new_trial)
    _set_trial_param = _again(optuna.storages.RDBStorage._set_trial_param)
    set_trial_state_values = _again(optuna.storages.RDBStorage.set_trial_state_values)
    set_trial_user_attr = _again(optuna.storages.RDBStorage.set_trial_user_attr)
    set_trial_system_attr = _again(optuna.storages.RDBStorage.set_trial_system_attr)
    get_trial = _again(optuna.storages.RDBStorage.get_trial)
    get_trial_id_from_study_id_trial_number = _again(
        optuna.storages.RDBStorage.get_trial_id_from_study_id_trial_number
    )
    _get_trials = _again(optuna.storages.RDBStorage._get_trials)


def open_storage(
    database: Database, notify: Callable[[str], None] = lambda line: None
) -> optuna.storages.RDBStorage:
    """Open or create a database of studies.

    Args:
        database: the database.
        notify: called with a line when a job waits for it.

    Raises:
        StudyError: when it cannot be opened, is no such database, or another job has the study.
        UsageError: when the address is wrong, or its driver is not installed.
    """
    # They would print an error, with its traceback, that the storage meets before it tries again.
    for name in (optuna.storages.RDBStorage.__module__, "sqlalchemy.pool"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with study_errors(database), database.opening():
            storage = PatientStorage(database, notify)
        with study_errors(database):
            storage.begin()
        return storage
    except ImportError:
        raise UsageError(
            f"`study_storage` {database} needs psycopg; run `pip install pareto-price-forecaster[postgresql]`"
        ) from None
    except RuntimeError as error:  # of Optuna, which finds the tables of another version
        raise StudyError(
            f"the study's database {database} cannot be used ({' '.join(str(error).split())}); install that version of "
            "Optuna, or choose another database"
        ) from error


@contextmanager
def opened_storage(database: Database, notify: Callable[[str], None]) -> Iterator[optuna.storages.RDBStorage]:
    """Open a database of studies for a job, as ``open_storage`` does, and close it however the job ends."""
    storage = open_storage(database, notify)
    try:
        yield storage
        close_storage(storage, database)
    finally:
        storage.engine.dispose()


def open_study(
    storage: optuna.storages.RDBStorage,
    name: str,
    *,
    database: Database,
    resume: bool,
    objectives: list[str],
    basis: dict[str, Any],
) -> optuna.Study:
    """Open the study ``name``, or create it.

    Args:
        storage: the open database.
        name: the study's name.
        database: where it is.
        resume: whether a study that has trials may be continued.
        objectives: names of the minimized metrics, in the order of a trial's values.
        basis: the settings that its trials' metrics depend on, other than hyperparameters (data, split, target ...);
            stored with a new study and compared with that of a resumed one.

    Raises:
        StudyError: when a study of that name has other objectives or another basis, or has trials while ``resume`` is
            off.
    """
    with study_errors(database):
        try:
            study = optuna.load_study(study_name=name, storage=storage)
        except KeyError:
            study = optuna.create_study(
                storage=storage, study_name=name, directions=["minimize"] * len(objectives)
            )
        names = study.metric_names or [direction.name.lower() for direction in study.directions]
        count = len(study.get_trials(deepcopy=False))
        # It is new, or its job was killed before it could describe the study.
        if not count and names == ["minimize"] * len(objectives):
            _describe(study, objectives, basis)
        elif names != objectives:
            raise StudyError(
                f"the study {name!r} in {database} has other objectives ({', '.join(names)}) than "
                f"{', '.join(objectives)}; use the same `objectives`, or choose another {database.elsewhere}"
            )
        if count and not resume:
            raise StudyError(
                f"the study {name!r} in {database} already has {count} trials; continue the study with `resume`, or "
                f"start another study with {database.elsewhere}"
            )
        _check_basis(study, basis, database)
        if JOB not in study.user_attrs:  # created before studies had one
            study.set_user_attr(JOB, _new_job())
        return study


def _describe(study: optuna.Study, objectives: list[str], basis: dict[str, Any]) -> None:
    study.set_user_attr(BASIS, basis)
    study.set_user_attr(JOB, _new_job())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names(objectives)


def _new_job() -> str:
    return uuid.uuid4().hex[:12]


def _check_basis(study: optuna.Study, basis: dict[str, Any], database: Database) -> None:
    if BASIS not in study.user_attrs:
        return
    before = {**NOT_RECORDED, **study.user_attrs[BASIS]}
    for key, value in basis.items():
        if key in before and before[key] != value:
            raise StudyError(
                f"the study {study.study_name!r} in {database} was made with {key} {before[key]}, but this job has "
                f"{value}: the metrics cannot be compared; use the same setting, or another {database.elsewhere}"
            )


def put_back_running(study: optuna.Study) -> list[int]:
    """Put back every trial whose driver is gone, and return their numbers.

    Call it only while no job works on the study.
    """
    running = study.get_trials(deepcopy=False, states=[TrialState.RUNNING])
    queued = {trial.user_attrs.get(RERUN_OF) for trial in study.get_trials(deepcopy=False)}
    for trial in running:
        put_back(study, trial, queued=trial.number in queued)
    return [trial.number for trial in running]


def put_back(study: optuna.Study, trial: FrozenTrial | optuna.Trial, *, queued: bool = False) -> None:
    """Mark an interrupted trial as FAIL, and queue its parameters with its last saved state.

    It is queued before it is marked, and a later call sees that: if the job is killed between the two, it neither loses
    the trial nor runs it twice.
    """
    if not queued:
        # A trial that was put back, then killed while being suggested again, has only some of its parameters, or none.
        queued_params = study._storage.get_trial(trial._trial_id).system_attrs.get("fixed_params", {})
        kept = {name: trial.user_attrs[name] for name in (STATE, WARM_START) if name in trial.user_attrs}
        study.enqueue_trial({**queued_params, **trial.params}, user_attrs={RERUN_OF: trial.number, **kept})
    fail(study, trial, INTERRUPTED)


def queue_first(study: optuna.Study, earlier: WarmStart, space: SearchSpace, most: int) -> dict[str, Any]:
    """Queue the configurations of an earlier job that fit ``space``, until ``most`` trials are waiting.

    A configuration that the study already has, in whatever state, is not queued again.

    Returns:
        the earlier job and its trials here, as ``warm_start_of`` does.
    """
    fitting, misfits = earlier.fitting(space)
    directory = str(earlier.directory)
    job = {
        "directory": directory,
        "rows": earlier.rows,
        "configurations": len(earlier.configurations),
        "skipped": misfits,
    }
    # Recorded first: if the job is killed while it queues, the origin of what is queued is known.
    study.set_user_attr(WARM_START, job)
    for each in fitting:
        if len(study.get_trials(deepcopy=False, states=[TrialState.WAITING])) >= most:
            break
        origin = {"directory": directory, "trial_number": each.number}
        study.enqueue_trial(each.params, user_attrs={WARM_START: origin}, skip_if_exists=True)
    return job | {"trials": _trials_from(study, directory)}


def warm_start_of(study: optuna.Study) -> dict[str, Any] | None:
    """Return the earlier job whose configurations were queued first, and their trials here; None without one."""
    job = study.user_attrs.get(WARM_START)
    return job and job | {"trials": _trials_from(study, job["directory"])}


def _trials_from(study: optuna.Study, directory: str) -> list[dict[str, int]]:
    return [
        {"trial_number": trial.number, "earlier_trial": origin["trial_number"]}
        for trial in study.get_trials(deepcopy=False)
        if trial.user_attrs.get(REASON) != INTERRUPTED
        and (origin := trial.user_attrs.get(WARM_START))
        and origin["directory"] == directory
    ]


def fail(study: optuna.Study, trial: FrozenTrial | optuna.Trial, reason: str) -> None:
    """Mark a running trial as failed, and record the reason."""
    study._storage.set_trial_user_attr(trial._trial_id, REASON, reason)
    study.tell(trial.number, state=TrialState.FAIL)


def completed(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that finished with all objectives."""
    return study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])


def failed(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that genuinely failed, without the interrupted ones, which run again."""
    trials = study.get_trials(deepcopy=False, states=[TrialState.FAIL])
    return [trial for trial in trials if trial.user_attrs.get(REASON) != INTERRUPTED]


def ended(study: optuna.Study) -> int:
    """Return the number of trials that finished or genuinely failed."""
    return len(completed(study)) + len(failed(study))


def remaining(study: optuna.Study, num_samples: int) -> int:
    """Return the number of trials still to run until ``num_samples`` have ended."""
    return max(0, num_samples - ended(study))


def usable_objectives(result: dict[str, Any] | None, objectives: list[str]) -> list[float] | None:
    """Return the objectives of a trial's last result in order, or None when one is missing or not finite."""
    values = [(result or {}).get(name) for name in objectives]
    if all(isinstance(value, float) and math.isfinite(value) for value in values):
        return values  # type: ignore[return-value]
    return None


def close_storage(storage: optuna.storages.RDBStorage, database: Database) -> None:
    """Complete the database for other programs, and end the connection."""
    with study_errors(database):
        database.close(storage.engine)
    storage.remove_session()
    storage.engine.dispose()
