"""The options of a tuning job, beyond those of the experiment (``forecast.config``)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, field_serializer, model_validator

from forecast.config import Config, ExperimentConfig, PanelOptions
from forecast.names import split_names
from forecast.version import DISTRIBUTION

if TYPE_CHECKING:
    from tune_jobs.mlflow_log import Tracking

LEAST, WEIGHTED = "min_", "weighted"
"""A strategy minimizes one objective, for example ``min_mape``, or the weighted sum of all of them."""

UNIVERSE = "universe"
"""The default name of a model of many symbols."""
FIXED = (
    "symbol",
    "feature",
    "input_columns",
    "train_ratio",
    "val_ratio_within_train",
    "log_prices",
    "network",
    "target",
    "likelihood",
    "market",
    "objectives_on",
    "validation_folds",
    "space",
)
"""Options on which the metrics of a study's trials depend: a job that is resumed has the same."""


def metric_of(objective: str) -> str:
    """Return the name of the metric that an objective minimizes: ``mae`` is MAE.

    Raises:
        ValueError: when there is no such metric; lists the metrics there are.
    """
    # Imported here so that --help does not wait for numpy.
    from forecast.scores.metrics import METRICS

    names = {name.lower(): name for name in METRICS}
    if objective.lower() not in names:
        raise ValueError(
            f"there is no objective {objective!r}; choose from: {', '.join(names)}, or install the package that adds it"
        )
    return names[objective.lower()]


def _known_objective(objective: str) -> str:
    metric_of(objective)
    return objective.lower()


Objective = Annotated[str, AfterValidator(_known_objective)]


class MlflowOptions(Config):
    """MLflow."""

    mlflow: str | None = Field(
        None,
        min_length=1,
        description="address of an MLflow server: a finished job becomes a run with its trials as nested runs, and its "
        "pick becomes a registered model, whose aliases follow the model store; needs the extra mlflow",
    )

    # A validator of the whole model: the error of a field's own validator would show the password.
    @model_validator(mode="after")
    def _is_usable(self) -> Self:
        if self.mlflow is None:
            return self
        # Imported here so that --help does not wait for pandas.
        from forecast.prices.locations import VARIABLE, masked

        if (shown := masked(self.mlflow)) != self.mlflow or VARIABLE.search(self.mlflow):
            raise ValueError(
                f"`mlflow` {shown}: a password here would be kept in summary.json; set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, instead"
            )
        if "://" not in self.mlflow:
            raise ValueError(f"`mlflow` {shown}: give an address, such as http://localhost:5000")
        if importlib.util.find_spec("mlflow") is None:
            raise ValueError(
                f"`mlflow` {shown}: MLflow is not installed; pip install '{DISTRIBUTION}[mlflow]'"
            )
        return self

    @property
    def tracking(self) -> Tracking | None:
        """What logs in MLflow; None without a server."""
        if self.mlflow is None:
            return None
        # Imported here because most commands log nothing.
        from tune_jobs.mlflow_log import Tracking

        return Tracking(self.mlflow)


class SearchOptions(MlflowOptions, PanelOptions, ExperimentConfig):
    """The search."""

    num_samples: int = Field(
        64, ge=1, description="number of trials, finished or failed, at which the study ends"
    )
    objectives: Annotated[tuple[Objective, ...], BeforeValidator(split_names)] = Field(
        ("mae", "rmse", "mape"),
        min_length=1,
        description="metrics that the search minimizes, separated by commas: mae, rmse, mape, crps (scores the "
        "forecast distribution), or a metric that an installed package adds",
    )
    strategy: Annotated[str, AfterValidator(str.lower)] = Field(
        "min_mape",
        description="how to pick one point of the Pareto front: min_ followed by an objective, or weighted; a tie "
        "goes to the smaller model",
    )
    weights: tuple[float, ...] | None = Field(
        None,
        description="weights for `strategy=weighted`, in the order of the objectives (equal unless given)",
    )
    one_se: bool = Field(
        False,
        description="pick the smallest model within one standard error of the best model by `strategy` (the error of "
        "their difference, from a block bootstrap over the days)",
    )
    validation_folds: int = Field(
        1,
        ge=1,
        description="number of validation folds that the objectives are means over: each has its origin one validation "
        "length earlier than the next, and a model of its own; a trial takes as many times longer",
    )
    space: Literal["full", "small"] = Field(
        "full", description="search space; small is for a first look and for benchmarks"
    )
    max_concurrent: int | None = Field(
        None,
        ge=1,
        description="most trials at a time (unless given, as many as fit on the cluster, adjusted as the cluster "
        "changes, and twice as many while an autoscaling cluster can grow)",
    )
    cpus_per_trial: float = Field(
        1.0, gt=0, description="CPUs that each trial asks for, and the trial's threads"
    )
    gpus_per_trial: float | None = Field(
        None,
        ge=0,
        description="GPU share that a large model's trial asks for, which may be a fraction; 0 uses no GPU (unless "
        "given, a quarter if the cluster has GPUs or can start them)",
    )
    gpu_from: float = Field(
        10.0,
        ge=0,
        description="size from which a model counts as large, in millions of multiply-adds per window (10 takes about "
        "a second per epoch on one core for 1300 windows); 0 treats every model as large",
    )
    time_budget: float | None = Field(
        None, gt=0, description="seconds of search after which the job ends with the trials finished so far"
    )
    storage_path: str | None = Field(
        None,
        description="where trials keep their state while they run: a directory or s3:// address that every node can "
        "reach (a directory in `output_dir` unless given; needed with several nodes)",
    )
    address: str | None = Field(
        None,
        description="Ray cluster to connect to, for example auto (unless given: the cluster in RAY_ADDRESS, else "
        "the cluster running on this machine, else a new local cluster)",
    )
    quiet: bool = Field(False, description="print only warnings and errors")
    json_output: bool = Field(False, alias="json", description="print the summary as JSON instead of tables")

    @property
    def default_name(self) -> str:
        """The name of the job's models, unless they are given another."""
        return UNIVERSE if self.symbols else self.symbol

    @property
    def objective_names(self) -> list[str]:
        """The names of the objectives' metrics."""
        return [metric_of(name) for name in self.objectives]

    @model_validator(mode="after")
    def _strategy_fits(self) -> SearchOptions:
        listed = ",".join(self.objectives)
        if len(set(self.objectives)) < len(self.objectives):
            raise ValueError(f"`objectives` {listed}: name each objective once")
        if self.strategy == WEIGHTED:
            return self
        if not self.strategy.startswith(LEAST):
            raise ValueError(
                f"`strategy` {self.strategy}: give {WEIGHTED}, or {LEAST} with an objective, for example {LEAST}mape"
            )
        needed = self.strategy.removeprefix(LEAST)
        metric_of(needed)
        if needed not in self.objectives:
            raise ValueError(
                f"`strategy` {self.strategy} needs {needed} among `objectives` {listed}; add it, or choose another "
                "`strategy`"
            )
        return self

    @model_validator(mode="after")
    def _one_split_of_a_panel(self) -> SearchOptions:
        if self.symbols and self.validation_folds > 1:
            raise ValueError(
                f"`validation_folds` {self.validation_folds} needs a single symbol: a panel has one split; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _start_of_one_fold(self) -> SearchOptions:
        if self.start_from and self.validation_folds > 1:
            raise ValueError(
                f"`validation_folds` {self.validation_folds} cannot be used with `start_from`, whose model has seen "
                "the rows of earlier folds; omit one of the two"
            )
        return self

    @model_validator(mode="after")
    def _weights_fit(self) -> SearchOptions:
        if self.weights is None:
            return self
        if self.strategy != WEIGHTED:
            raise ValueError(f"`weights` {self.weights} needs `strategy=weighted`, not {self.strategy}")
        if len(self.weights) != len(self.objectives):
            raise ValueError(
                f"`weights`: {len(self.weights)} weights for {len(self.objectives)} objectives "
                f"({', '.join(self.objectives)}); give one weight per objective"
            )
        if min(self.weights) < 0 or sum(self.weights) == 0:
            raise ValueError(f"`weights` {self.weights}: weights must not be negative or all zero")
        return self


STUDY_NAME = "stock_lstm_optuna"
"""The default name of a study in the file of its job."""
STORAGES = ("postgresql+psycopg", "postgresql", "postgres")
"""The schemes of a database that may keep a study."""


class TuneOptions(SearchOptions):
    """The tuning job."""

    output_dir: Path = Field(Path("artifacts"), description="directory for every file the job writes")
    objectives_on: Literal["validation", "test"] = Field(
        "validation",
        description="rows the objectives are computed on; test reproduces the original design, which searches on "
        "the test rows, so its test metrics do not estimate performance on new data",
    )
    retrain: bool = Field(
        True,
        description="train the pick again for service, with the last rows for stopping and calibration and none "
        "for the test; without it, the scored model is served",
    )
    resume: bool = Field(
        False, description="continue the study in `output_dir`; without it, an existing study is refused"
    )
    warm_start: Path | None = Field(
        None, description="directory of an earlier job, whose pick and front are tried first"
    )
    study_storage: str | None = Field(
        None,
        min_length=1,
        repr=False,
        description="PostgreSQL database that keeps the study, where a team can watch it: "
        "postgresql+psycopg://user@host/database (unless given, a file in `output_dir`)",
    )
    study_name: str | None = Field(
        None,
        min_length=1,
        max_length=512,
        description=f"name of the study in its database (unless given, {STUDY_NAME}; in `study_storage`, the symbol "
        "and the name of `output_dir`)",
    )
    report: bool = Field(True, description="write report.html, a page of plots and tables")

    @property
    def study(self) -> str:
        """The study's name; by default, jobs of other symbols or directories have others in a shared database."""
        if self.study_name or not self.study_storage:
            return self.study_name or STUDY_NAME
        return f"{self.default_name}-{self.output_dir.resolve().name}"

    @field_serializer("study_storage")
    def _without_password(self, address: str | None) -> str | None:
        # Imported here so that --help does not wait for pandas.
        from forecast.prices.locations import masked

        return address and masked(address)

    # A validator of the whole model: the error of a field's own validator would show the password.
    @model_validator(mode="after")
    def _storage_is_a_database(self) -> TuneOptions:
        scheme, mark, rest = (self.study_storage or f"{STORAGES[0]}://").partition("://")
        if not mark or scheme.lower() not in STORAGES:
            raise ValueError(
                f"`study_storage` {scheme}{mark and '://...'}: name a PostgreSQL database, such as "
                f"{STORAGES[0]}://user@host/database, or omit it to keep the study in `output_dir`"
            )
        if rest.partition("?")[0].count("@") > 1:
            raise ValueError(
                f"`study_storage` {scheme}://...: write %40 for each @ in the user and the password"
            )
        return self

    @model_validator(mode="after")
    def _folds_fit(self) -> TuneOptions:
        if self.validation_folds > 1 and self.objectives_on == "test":
            raise ValueError(
                f"`validation_folds` {self.validation_folds} needs `objectives_on=validation`: there is one part of "
                "test rows"
            )
        return self

    @model_validator(mode="after")
    def _warm_start_is_another_job(self) -> TuneOptions:
        if self.warm_start and self.warm_start.resolve() == self.output_dir.resolve():
            raise ValueError(
                f"`warm_start` {self.warm_start} is also `output_dir`; choose another `output_dir`, or continue that "
                "job with `resume` alone"
            )
        return self
