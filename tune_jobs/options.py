"""Every option of a tuning job that is not one of the experiment (``forecast.config``)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from forecast.config import ExperimentConfig
from forecast.names import split_names

LEAST, WEIGHTED = "min_", "weighted"
"""A strategy is the least of one objective, ``min_mape`` for example, or the least weighted sum of all."""


def metric_of(objective: str) -> str:
    """Name of the metric that an objective minimizes: ``mae`` is MAE.

    Raises:
        ValueError: when there is none; lists those there are.
    """
    # Imported here because --help need not wait for numpy.
    from forecast.scores.metrics import METRICS

    names = {name.lower(): name for name in METRICS}
    if objective.lower() not in names:
        raise ValueError(f"there is no objective {objective!r}; choose from: {', '.join(names)}")
    return names[objective.lower()]


class TuneOptions(ExperimentConfig):
    """The tuning job."""

    num_samples: int = Field(64, ge=1, description="trials the study ends with, finished or failed")
    output_dir: Path = Field(Path("artifacts"), description="directory of every file the job writes")
    objectives: Annotated[tuple[str, ...], BeforeValidator(split_names)] = Field(
        ("mae", "rmse", "mape"),
        min_length=1,
        description="metrics that the search minimizes, separated by commas: mae, rmse, mape, crps (which scores the "
        "forecast distribution), or one that an installed package adds",
    )
    strategy: str = Field(
        "min_mape",
        description="how one point of the Pareto front is picked: min_ with an objective, or weighted; a tie goes to "
        "the smaller model",
    )
    weights: tuple[float, ...] | None = Field(
        None,
        description="weights of the objectives for `strategy=weighted`, in their order (equal unless given)",
    )
    one_se: bool = Field(
        False,
        description="pick the smallest model that is within one standard error of the best by `strategy` (of their "
        "difference, by a block bootstrap over the days)",
    )
    objectives_on: Literal["validation", "test"] = Field(
        "validation",
        description="rows the objectives are computed on; test reproduces the original design, whose test "
        "metrics have been searched on and are no estimate of new data",
    )
    space: Literal["full", "small"] = Field(
        "full", description="search space; small is for a first look and for benchmarks"
    )
    max_concurrent: int | None = Field(
        None,
        ge=1,
        description="most trials at a time (unless given, as many as the cluster has room for, which is followed "
        "as it changes, and twice as many while an autoscaling cluster can grow)",
    )
    cpus_per_trial: float = Field(1.0, gt=0, description="CPUs that each trial asks for, also its threads")
    gpus_per_trial: float | None = Field(
        None,
        ge=0,
        description="GPU share that a large model's trial asks for, fractions allowed; 0 uses no GPU (unless given, a "
        "quarter where the cluster has GPUs or can get them)",
    )
    gpu_from: float = Field(
        10.0,
        ge=0,
        description="size from which a model is large, in millions of multiply-adds a window (10 is about a second an "
        "epoch on one core for 1300 windows); 0 sends every trial to a GPU",
    )
    time_budget: float | None = Field(
        None, gt=0, description="seconds of search after which the job ends with what is finished"
    )
    resume: bool = Field(
        False, description="continue the study in `output_dir` instead of refusing to touch it"
    )
    study_name: str = Field(
        "stock_lstm_optuna", min_length=1, description="name of the study in its database"
    )
    storage_path: str | None = Field(
        None,
        description="where trials keep their state while they run: a directory or s3:// address that every "
        "node reaches (a directory in `output_dir` unless given; needed with several nodes)",
    )
    address: str | None = Field(
        None,
        description="Ray cluster to connect to, for example auto (unless given: the one in RAY_ADDRESS, else one "
        "that runs on this machine, else a new local one)",
    )
    report: bool = Field(True, description="write report.html, a page of plots and tables")
    quiet: bool = Field(False, description="print only warnings and errors")
    json_output: bool = Field(False, alias="json", description="print the summary as JSON instead of tables")

    @property
    def objective_names(self) -> list[str]:
        """Names of the objectives' metrics."""
        return [metric_of(name) for name in self.objectives]

    @field_validator("objectives")
    @classmethod
    def _known(cls, objectives: tuple[str, ...]) -> tuple[str, ...]:
        for name in objectives:
            metric_of(name)
        return tuple(name.lower() for name in objectives)

    @model_validator(mode="after")
    def _strategy_fits(self) -> TuneOptions:
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
        if needed not in self.objectives:
            raise ValueError(
                f"`strategy` {self.strategy} needs {needed} among `objectives` {listed}; add it, or choose another one"
            )
        return self

    @model_validator(mode="after")
    def _weights_fit(self) -> TuneOptions:
        if self.weights is None:
            return self
        if self.strategy != WEIGHTED:
            raise ValueError(f"`weights` {self.weights} needs `strategy=weighted`, not {self.strategy}")
        if len(self.weights) != len(self.objectives):
            raise ValueError(
                f"`weights`: {len(self.weights)} weights for {len(self.objectives)} objectives "
                f"({', '.join(self.objectives)}); give one each"
            )
        if min(self.weights) < 0 or sum(self.weights) == 0:
            raise ValueError(f"`weights` {self.weights}: weights must not be negative, nor all zero")
        return self
