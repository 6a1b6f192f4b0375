"""The study: an Optuna study in an SQLite file, the only truth about every trial.

Ray Tune's own state is thrown away after a run; only this database says which trials are finished, failed or to be run
again.
"""

from __future__ import annotations

import math
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.trial import FrozenTrial, TrialState

from forecast.errors import StudyError
from tune_jobs.space import SearchSpace
from tune_jobs.warm_start import WarmStart

STUDY_FILE = "optuna_study.db"
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

DATABASE_ERRORS = (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError)

OPEN_WAIT = 3.0
"""Seconds to wait for another process's lock on the database before a job."""
LOCK_WAIT = 30.0
"""Seconds to wait for such a lock during a job, which has more to lose."""


@contextmanager
def study_errors(path: Path) -> Iterator[None]:
    """Turn database errors into a ``StudyError`` of one line."""
    try:
        yield
    except DATABASE_ERRORS as error:
        cause = error.__cause__ or error
        reason = str(getattr(cause, "orig", None) or cause).splitlines()[0]
        if "locked" in reason:
            remedy = "close the other program that uses the file, then continue with `resume`"
        elif "full" in reason:
            remedy = "free disk space there, then continue with `resume`"
        else:
            remedy = "restore the file from a copy"
        raise StudyError(
            f"the study's database {path} cannot be used ({reason}); {remedy}, or choose another `output_dir`"
        ) from error


def database_url(path: Path) -> sqlalchemy.URL:
    """Address of a database in a file; one that is put together as text would be decoded."""
    return sqlalchemy.URL.create("sqlite", database=str(path.absolute()))


def open_storage(path: Path) -> optuna.storages.RDBStorage:
    """Open or create the database at ``path``.

    Write-ahead logging with ``synchronous=NORMAL`` more than halves the cost of each trial's writes, and lets a
    dashboard read while the job writes; a power cut can lose the last transactions but cannot corrupt the file.

    Raises:
        StudyError: when the file cannot be opened or is not such a database.
    """

    def set_pragmas(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.execute(f"PRAGMA busy_timeout={round(1000 * LOCK_WAIT)}")
        cursor.close()

    with study_errors(path):
        _require_unlocked(path)
        storage = optuna.storages.RDBStorage(
            database_url(path).render_as_string(), engine_kwargs={"connect_args": {"timeout": OPEN_WAIT}}
        )
        sqlalchemy.event.listen(storage.engine, "connect", set_pragmas)
        # Connections opened before the listener was added lack the settings: start a new pool.
        storage.engine.dispose()
        return storage


def _require_unlocked(path: Path) -> None:
    """Take the database's write lock once: Optuna would wait for it several times over.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: when another process keeps it for ``OPEN_WAIT``, or the file is no database.
    """
    engine = sqlalchemy.create_engine(
        database_url(path), connect_args={"timeout": OPEN_WAIT}, poolclass=sqlalchemy.NullPool
    )
    with engine.connect() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def open_study(
    storage: optuna.storages.RDBStorage,
    name: str,
    *,
    path: Path,
    resume: bool,
    objectives: list[str],
    basis: dict[str, Any],
) -> optuna.Study:
    """Open the study ``name``, or create it.

    Args:
        storage: the open database.
        name: the study's name.
        path: the database's path, for messages.
        resume: whether a study that has trials may be continued.
        objectives: names of the minimized metrics, in the order of a trial's values.
        basis: the settings that its trials' metrics depend on, other than hyperparameters (data, split, target ...);
            stored with a new study and compared with that of a resumed one.

    Raises:
        StudyError: when a study of that name has other objectives or another basis, or has trials while ``resume`` is
            off.
    """
    with study_errors(path):
        if name not in optuna.get_all_study_names(storage):
            study = optuna.create_study(
                storage=storage, study_name=name, directions=["minimize"] * len(objectives)
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                study.set_metric_names(objectives)
            study.set_user_attr(BASIS, basis)
            study.set_user_attr(JOB, _new_job())
            return study
        study = optuna.load_study(study_name=name, storage=storage)
        names = study.metric_names or [direction.name.lower() for direction in study.directions]
        if names != objectives:
            raise StudyError(
                f"the study {name!r} in {path} has other objectives ({', '.join(names)}) than "
                f"{', '.join(objectives)}; use the same `objectives`, or choose another `study_name` or `output_dir`"
            )
        count = len(study.get_trials(deepcopy=False))
        if count and not resume:
            raise StudyError(
                f"the study {name!r} in {path} already has {count} trials; continue the study with `resume`, or "
                "start another study with `output_dir` or `study_name`"
            )
        _check_basis(study, basis, path)
        if JOB not in study.user_attrs:  # created before studies had one
            study.set_user_attr(JOB, _new_job())
        return study


def _new_job() -> str:
    return uuid.uuid4().hex[:12]


def _check_basis(study: optuna.Study, basis: dict[str, Any], path: Path) -> None:
    if BASIS not in study.user_attrs:
        return
    before = {**NOT_RECORDED, **study.user_attrs[BASIS]}
    for key, value in basis.items():
        if key in before and before[key] != value:
            raise StudyError(
                f"the study {study.study_name!r} in {path} was made with {key} {before[key]}, but this job has "
                f"{value}: the metrics cannot be compared; use the same setting, or another `study_name` or "
                "`output_dir`"
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


def close_storage(storage: optuna.storages.RDBStorage, path: Path) -> None:
    """Merge the write-ahead log into the database file, so that this one file holds the whole study."""
    with study_errors(path), storage.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    storage.remove_session()
    storage.engine.dispose()
