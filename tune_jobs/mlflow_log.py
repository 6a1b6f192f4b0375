"""Jobs and models in MLflow: a finished job as a run, its trials as nested runs, its pick as a registered model.

Everything is read from the files of the job, after the search. Each run, trial and version is found again by a tag, so
logging a job a second time completes what the first time left out, and adds nothing twice.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import logging
import math
import os
import shlex
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import pandas as pd
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from forecast.cli.command import spell_options
from forecast.errors import ForecastError, StoreError, TrackingError
from forecast.inference import pyfunc
from forecast.inference.predictor import Predictor
from forecast.job_files import PICK_FILE, SUMMARY_FILE, is_complete
from forecast.live.judge import seen_until
from forecast.live.store import FILES, Store, Version
from forecast.model.card import ModelCard
from forecast.model.checkpoint import Checkpoint, load_checkpoint
from forecast.version import DISTRIBUTION, installed_version
from tune_jobs.console import say
from tune_jobs.databases import STUDY_FILE, SqliteFile
from tune_jobs.options import FIXED
from tune_jobs.study import INTERRUPTED, REASON

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import ModelSignature

PICKED, CHAMPION, CHALLENGER = "pick", "champion", "challenger"
"""Aliases of a registered model: the pick that was logged last; of a store, the current version and the shadow."""
JOB, TRIAL, ON_FRONT, SHA256, SUBJECT = (
    f"forecaster.{name}" for name in ("job", "trial", "front", "sha256", "subject")
)
"""Tags by which a run, a nested run and a version are found again, and ``SUBJECT``, the prices that a version
forecasts."""
PARAMS = (*FIXED, "symbols", "objectives")
"""Settings that a job never changes when it is resumed, as MLflow never changes a parameter."""
SETTINGS = (
    "source",
    "start",
    "end",
    "interval",
    "calendar",
    "num_samples",
    "strategy",
    "members",
    "seed",
    "retrain",
)
"""Settings that a resumed job may change: tags."""
MEASURED = ("val_loss_best", "epoch", "best_epoch", "seconds", "gpus")
"""Attributes of a trial that are metrics of its run; ``seconds`` is its training time."""
NEEDED = {"data", "front", "objectives", "objectives_on", "options", "persistence", "pick", "stopped_by", "study",
          "total_seconds", "trials", "versions"}  # fmt: skip
"""The fields of a summary that a log needs."""
LONGEST_VALUE = 500
"""Largest number of characters of a parameter or tag."""
MOST_RUNS = 50_000
"""Largest answer that MLflow gives to one search."""
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Settings of MLflow unless the environment has others: it would report its use to its makers, draw progress bars, and
try for minutes to reach a server that is down."""


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Let MLflow print, warn and report nothing."""
    before = {key: os.environ.get(key) for key in QUIET}
    log = logging.getLogger("mlflow")
    level = log.level
    for key, quiet in QUIET.items():
        os.environ.setdefault(key, quiet)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import mlflow  # noqa: F401  # the import sets the level of its log

            log.setLevel(logging.ERROR)
            yield
    finally:
        log.setLevel(level)
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)


def model_name(name: str) -> str:
    """A name for an experiment and a registered model, which may hold no slash, colon or quote."""
    return "".join("-" if sign in "/:'\"`" else sign for sign in name)


@dataclass(frozen=True)
class Logged:
    """What was logged.

    Attributes:
        run: where the job's run is.
        trials: number of nested runs.
        model: name of the registered model.
        version: the version that has the pick.
    """

    run: str
    trials: int
    model: str
    version: str

    def __str__(self) -> str:
        return (
            f"MLflow: {self.run} with {self.trials} trials; the pick is models:/{self.model}/{self.version}"
        )


class Tracking:
    """An MLflow server, or a database that MLflow uses itself."""

    def __init__(self, uri: str) -> None:
        """Use the server at ``uri``, a tracking URI of MLflow."""
        self.uri = uri

    @cached_property
    def _client(self) -> MlflowClient:
        from mlflow import MlflowClient

        return MlflowClient(self.uri, self.uri)

    def check(self) -> None:
        """Ask the server for anything.

        Raises:
            TrackingError: when it does not answer.
        """
        with self._one_line():
            self._client.search_experiments(max_results=1)

    def log_job(self, name: str, directory: Path, trials: Sequence[FrozenTrial] | None = None) -> Logged:
        """Log a finished job as a run of the experiment ``name``, and register its pick as a version of this model.

        Args:
            name: of the experiment and of the model.
            directory: the job's output directory, or its copy in a model store.
            trials: the study's trials; unless given, those of the study in the directory, if there is one.

        Raises:
            StoreError: when the directory has no finished job, or the registered model forecasts other prices.
            TrackingError: when MLflow fails; the same call completes the log.
        """
        summary = _summary(directory)
        if trials is None:
            trials = _trials(directory, summary["study"])
        model, registered = load_checkpoint(directory / PICK_FILE), model_name(name)
        # The name that the same model has as a version of a model store.
        title = f"{(seen_until(model) or '').replace(':', '')}-{(model.sha256 or '')[:8]}"
        with self._one_line():
            self._require_same_subject(registered, model)
            experiment = self._experiment(registered)
            run = self._job_run(experiment, model, title, summary, trials)
            logged = self._log_trials(run, trials, summary)
            for file in FILES:
                if (directory / file).is_file():
                    self._client.log_artifact(run.info.run_id, directory / file)
            version = self._version_of(registered, model.sha256) or self._register(
                run, registered, title, directory / PICK_FILE
            )
            self._point(registered, PICKED, version)
            self._client.set_terminated(run.info.run_id, "FINISHED", _end_of(trials))
        return Logged(self._place_of(run), logged, registered, str(version.version))

    def follow(self, store: Store, name: str, shadow: Version | None) -> None:
        """Make the aliases of a model say what the store says: the current version, and the shadow.

        A version that is not registered yet is logged from the store's copy of its files. The alias of a version
        that MLflow cannot have is removed: it would name another model.

        Args:
            store: the store.
            name: name of the model in the store.
            shadow: the version that runs as a shadow.

        Raises:
            StoreError: when a version that is not registered lacks the summary of a finished job.
            TrackingError: when MLflow fails; the next call completes the change.
        """
        problem: StoreError | None = None
        for alias, version in ((CHAMPION, store.current(name)), (CHALLENGER, shadow)):
            registered = None
            if version is not None:
                try:
                    registered = self._registered(store, name, version)
                except StoreError as error:
                    problem = StoreError(f"MLflow has no {alias} of {name} now: {error}")
            with self._one_line():
                if registered is None:
                    self._drop(model_name(name), alias)
                else:
                    self._point(model_name(name), alias, registered)
        if problem is not None:
            raise problem

    def _registered(self, store: Store, name: str, version: Version) -> ModelVersion:
        """The registered version of a store's version, which is logged if MLflow lacks it; errors as ``follow``."""
        with self._one_line():
            registered = self._version_of(model_name(name), version.sha256)
        if registered is None:
            if SUMMARY_FILE not in version.files:
                raise StoreError(f"{version.version} was added without a job's {SUMMARY_FILE}")
            self.log_job(name, store.path(name, version.version))
            with self._one_line():
                registered = self._version_of(model_name(name), version.sha256)
        assert registered is not None
        return registered

    def log_or_warn(
        self, name: str, directory: Path, console: Console, trials: Sequence[FrozenTrial] | None = None
    ) -> bool:
        """Log a finished job as ``log_job``, print where, and return whether this was done.

        A failure is a warning that says how to log the job later: the job itself is complete.
        """
        try:
            logged = self.log_job(name, directory, trials)
        except ForecastError as error:
            command = ["python", "-m", "tune_jobs.models", "log", name, str(directory), "--mlflow", self.uri]
            _warn(f"{error}; the job is complete, log it later: {shlex.join(command)}")
            return False
        say(console, str(logged))
        return True

    def follow_or_warn(self, store: Store, name: str, shadow: Version | None) -> None:
        """Do as ``follow``; a failure is a warning, since the store says what is served."""
        try:
            self.follow(store, name, shadow)
        except StoreError as error:
            _warn(str(error))
        except ForecastError as error:
            _warn(f"{error}; the next update with `mlflow` sets the aliases of {name}")

    @contextlib.contextmanager
    def _one_line(self) -> Iterator[None]:
        """Let MLflow print nothing, and turn whatever it raises into a ``TrackingError``."""
        try:
            with quietly():
                yield
        except ForecastError:
            raise
        except Exception as error:
            if _is_silent(error):
                raise TrackingError(
                    f"MLflow at {self.uri} does not answer; start the server, or correct `mlflow`"
                ) from error
            reason = " ".join(str(error).split()) or type(error).__name__
            raise TrackingError(f"MLflow at {self.uri} failed ({reason[:LONGEST_VALUE]})") from error

    def _place_of(self, run: Run) -> str:
        """The address of a run's page, or its id where there are no pages."""
        if not self.uri.startswith("http"):
            return f"run {run.info.run_id}"
        return f"{self.uri.rstrip('/')}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"

    def _experiment(self, name: str) -> str:
        """The experiment's id; a deleted one is restored."""
        found = self._client.get_experiment_by_name(name)
        if found is None:
            return str(self._client.create_experiment(name))
        if found.lifecycle_stage != "active":
            self._client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _job_run(
        self,
        experiment: str,
        model: Checkpoint,
        title: str,
        summary: Mapping[str, Any],
        trials: Sequence[FrozenTrial],
    ) -> Run:
        """The job's run, with parameters, metrics and tags."""
        pick, options, optimized = summary["pick"], summary["options"], summary["objectives_on"]
        job = summary.get("job") or model.sha256  # summaries of version 0.1.0 do not name their job
        found = self._client.search_runs([experiment], f"tags.`{JOB}` = '{job}'", max_results=1)
        if found:
            (run,) = found
            self._client.update_run(run.info.run_id, name=title)
        else:
            run = self._client.create_run(experiment, _start_of(trials), {JOB: job}, title)
        params = {name: _text(options.get(name)) for name in PARAMS if options.get(name) not in (None, [])}
        known = run.data.params
        tags = {name: _text(options[name]) for name in SETTINGS if options.get(name) is not None}
        tags |= {
            "pick": str(pick["trial_number"]),
            "data.sha256": summary["data"]["sha256"],
            "rows": f"{summary['data']['first_date']} to {summary['data']['last_date']}",
            f"{DISTRIBUTION}.version": summary["versions"].get(DISTRIBUTION) or installed_version(),
        }
        states = {state: summary["trials"].get(state.name, 0) for state in TrialState}
        if trials:  # an interrupted trial runs again, so it is no failure
            states[TrialState.FAIL] = sum(
                trial.state == TrialState.FAIL for trial in trials if _has_ended(trial)
            )
        metrics = {
            **_point_metrics(pick),
            **{f"persistence_{name}": value for name, value in summary["persistence"][optimized].items()},
            **{f"persistence_test_{name}": value for name, value in summary["persistence"]["test"].items()},
            **{f"trials_{state.name.lower()}": count for state, count in states.items()},
            "total_seconds": summary["total_seconds"],
            "search_p_value": (summary.get("luck") or {}).get("p_value"),
        }
        new = {name: value for name, value in params.items() if name not in known}
        self._log(run.info.run_id, metrics, new, tags)
        return run

    def _log_trials(self, parent: Run, trials: Sequence[FrozenTrial], summary: Mapping[str, Any]) -> int:
        """Log the trials that ended as nested runs, and return their number."""
        from mlflow.entities import RunStatus
        from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

        experiment = parent.info.experiment_id
        of_parent = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent.info.run_id}'"
        known = {
            run.data.tags.get(TRIAL): run
            for run in self._client.search_runs([experiment], of_parent, max_results=MOST_RUNS)
        }
        front = {point["trial_number"]: point for point in summary["front"]}
        done = [trial for trial in trials if _has_ended(trial)]
        for trial in done:
            number, point = str(trial.number), front.get(trial.number)
            on_front = str(point is not None).lower()
            run = known.get(number)
            if (
                run
                and RunStatus.is_terminated(RunStatus.from_string(run.info.status))
                and run.data.tags.get(ON_FRONT) == on_front
            ):
                continue
            tags = {MLFLOW_PARENT_RUN_ID: parent.info.run_id, TRIAL: number}
            run = run or self._client.create_run(
                experiment,
                start_time=_milliseconds(trial.datetime_start),
                tags=tags,
                run_name=f"trial {number}",
            )
            metrics = dict(zip(summary["objectives"], trial.values or (), strict=False))
            metrics |= {name: trial.user_attrs.get(name) for name in MEASURED}
            tags = {ON_FRONT: on_front}
            if reason := trial.user_attrs.get(REASON):
                tags[REASON] = reason
            params = {name: _text(value) for name, value in trial.params.items()}
            self._log(run.info.run_id, metrics | (_point_metrics(point) if point else {}), params, tags)
            status = "FINISHED" if trial.state == TrialState.COMPLETE else "FAILED"
            self._client.set_terminated(run.info.run_id, status, _milliseconds(trial.datetime_complete))
        return len(done)

    def _log(
        self,
        run_id: str,
        metrics: Mapping[str, float | None],
        params: Mapping[str, str],
        tags: Mapping[str, str],
    ) -> None:
        """Log a run's values with one request."""
        from mlflow.entities import Metric, Param, RunTag

        now = round(1000 * time.time())
        self._client.log_batch(
            run_id,
            [
                Metric(name, float(value), now, 0)
                for name, value in metrics.items()
                if value is not None and math.isfinite(value)
            ],
            [Param(name, value) for name, value in params.items()],
            [RunTag(name, value) for name, value in tags.items()],
        )

    def _version_of(self, name: str, sha256: str | None) -> ModelVersion | None:
        """The registered version of a checkpoint, by its hash."""
        versions = self._client.search_model_versions(f"name = '{name}'")
        return next((each for each in versions if each.tags.get(SHA256) == sha256), None)

    def _require_same_subject(self, name: str, model: Checkpoint) -> None:
        """Refuse a model of other prices: whoever loads a name must not get a model of another symbol."""
        subject = _subject(model)
        for version in self._client.search_model_versions(f"name = '{name}'"):
            if (other := version.tags.get(SUBJECT, subject)) != subject:
                raise StoreError(
                    f"MLflow: {name} has models of {other}, this one is of {subject}; give another name"
                )

    def _register(self, run: Run, name: str, title: str, checkpoint: Path) -> ModelVersion:
        """Log the pick as a model, and register it as a version."""
        from mlflow.exceptions import MlflowException

        predictor = Predictor(checkpoint, device="cpu")
        sha256, subject = predictor.whole.sha256 or "", _subject(predictor.whole)
        experiment, run_id = run.info.experiment_id, run.info.run_id
        # One that an interrupted call left is completed.
        unregistered = self._client.search_logged_models([experiment], f"tags.`{SHA256}` = '{sha256}'")
        model = next(iter(unregistered), None) or self._client.create_logged_model(
            experiment, title, source_run_id=run_id, tags={SHA256: sha256}, model_type="forecaster"
        )
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / "model"
            save_model(predictor, path, run_id=run_id, model_id=model.model_id)
            self._client.log_model_artifacts(model.model_id, str(path))
        self._client.finalize_logged_model(model.model_id, "READY")
        # It may be there; whatever else is wrong fails in the next call.
        with contextlib.suppress(MlflowException):
            self._client.create_registered_model(name)
        return self._client.create_model_version(
            name, model.artifact_location, run_id, {SHA256: sha256, SUBJECT: subject}, model_id=model.model_id
        )

    def _point(self, name: str, alias: str, version: ModelVersion) -> None:
        if alias not in version.aliases:
            self._client.set_registered_model_alias(name, alias, version.version)

    def _drop(self, name: str, alias: str) -> None:
        """Remove an alias, if there is such a model with it."""
        found = self._client.search_registered_models(f"name = '{name}'")
        if found and alias in found[0].aliases:
            self._client.delete_registered_model_alias(name, alias)


def _is_silent(error: BaseException | None) -> bool:
    """Whether a server did not answer, behind whatever MLflow makes of this."""
    import requests

    while error is not None:
        if isinstance(error, requests.ConnectionError | requests.Timeout):
            return True
        error = error.__cause__ or error.__context__
    return False


def _warn(line: str) -> None:
    say(Console(stderr=True), f"warning: {spell_options(line)}", "yellow")


def save_model(
    predictor: Predictor, path: Path, run_id: str | None = None, model_id: str | None = None
) -> None:
    """Write the directory of an MLflow model, whose data are the predictor's checkpoint.

    Args:
        predictor: a predictor of the checkpoint.
        path: the directory, which must not exist.
        run_id: the run that it comes from.
        model_id: the logged model whose files these become.
    """
    with quietly():
        import mlflow
        from mlflow.models import Model

        mlflow.pyfunc.save_model(
            path,
            loader_module=pyfunc.__name__,
            data_path=predictor.path,
            mlflow_model=Model(run_id=run_id, model_id=model_id),
            signature=signature_of(predictor),
            metadata=described(predictor),
            input_example=example_for(predictor),
            pip_requirements=[f"{DISTRIBUTION}=={installed_version()}"],
        )


def _subject(model: ModelCard) -> str:
    return f"{model.config.symbol} ({model.config.feature})"


def described(predictor: Predictor) -> dict[str, Any]:
    """What the signature cannot say about a window: its symbol, the order of its columns, its least length."""
    config = predictor.whole.config
    return {
        "symbol": config.symbol,
        "columns": [*predictor.columns],
        "sequence_length": predictor.sequence_length,
    }


def signature_of(predictor: Predictor) -> ModelSignature:
    """What the registered model takes and gives; see ``forecast.inference.pyfunc``."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
    from mlflow.types.schema import Array

    table = pyfunc.TableModel(predictor)
    window = Array(DataType.double)
    inputs: list[ColSpec | TensorSpec] = [
        ColSpec(window if len(predictor.columns) == 1 else Array(window), pyfunc.WINDOW)
    ]
    if predictor.whole.symbols:
        inputs.append(ColSpec(DataType.string, pyfunc.SYMBOL))
    levels = table.default_levels
    bounds = [column for level in levels for column in pyfunc.bound_columns(level)]
    params = [
        ParamSpec(pyfunc.LEVELS, DataType.double, levels, shape=(-1,)),
        ParamSpec(pyfunc.HORIZON, DataType.long, 1),
    ]
    if predictor.whole.market is not None:
        params.append(ParamSpec(pyfunc.SAME_SESSION, DataType.boolean, False))
    outputs: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.long, pyfunc.STEP),
        *(ColSpec(DataType.double, name) for name in (pyfunc.PREDICTION, *bounds)),
    ]
    return ModelSignature(Schema(inputs), Schema(outputs), ParamSchema(params))


def example_for(predictor: Predictor) -> pd.DataFrame:
    """A constant window in the middle of the training prices, as the model takes it."""
    row: dict[str, list[Any]] = {pyfunc.WINDOW: [predictor.typical_window()]}
    if predictor.whole.symbols:
        row[pyfunc.SYMBOL] = [predictor.symbols[0]]
    return pd.DataFrame(row)


def _summary(directory: Path) -> dict[str, Any]:
    """The summary of a finished job.

    Raises:
        StoreError: when there is none, it lacks what a log needs, or its job is not finished.
    """
    try:
        summary: dict[str, Any] = json.loads((directory / SUMMARY_FILE).read_text())
    except (OSError, ValueError):
        summary = {}
    if missing := NEEDED - summary.keys():
        has = f"a {SUMMARY_FILE} without {', '.join(sorted(missing))}" if summary else f"no {SUMMARY_FILE}"
        raise StoreError(
            f"{directory} has {has}; give the output directory of a finished job of this version"
        )
    if not is_complete(summary) or not (directory / PICK_FILE).is_file():
        raise StoreError(
            f"{directory} has no finished job; finish it with `resume`, or give another directory"
        )
    return summary


def _trials(directory: Path, study: str) -> list[FrozenTrial]:
    """The trials of the study in a job's directory; none where there is no study, as in a model store."""
    if not (directory / STUDY_FILE).is_file():
        return []
    address = SqliteFile(directory / STUDY_FILE).url.render_as_string()
    if study not in optuna.get_all_study_names(address):
        return []
    return optuna.load_study(study_name=study, storage=address).get_trials(deepcopy=False)


def _has_ended(trial: FrozenTrial) -> bool:
    """Whether a trial finished or failed; an interrupted one runs again under another number."""
    return trial.state == TrialState.COMPLETE or (
        trial.state == TrialState.FAIL and trial.user_attrs.get(REASON) != INTERRUPTED
    )


def _point_metrics(point: Mapping[str, Any]) -> dict[str, float | None]:
    """Metrics of a point of the front: objectives as they are named, and others by their rows."""
    return {
        **{f"validation_{name}": value for name, value in point["validation"].items()},
        **{f"test_{name}": value for name, value in (point["test"] or {}).items()},
        **point["objectives"],
        "weights": point["weights"],
    }


def _text(value: Any) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."


def _start_of(trials: Sequence[FrozenTrial]) -> int | None:
    return _milliseconds(min((each.datetime_start for each in trials if each.datetime_start), default=None))


def _end_of(trials: Sequence[FrozenTrial]) -> int | None:
    return _milliseconds(
        max((each.datetime_complete for each in trials if each.datetime_complete), default=None)
    )


def _milliseconds(local: dt.datetime | None) -> int | None:
    """MLflow's form of Optuna's times, which are local."""
    return None if local is None else round(1000 * local.timestamp())
