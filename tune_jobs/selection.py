"""The Pareto front and the one point picked from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna

from forecast.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from forecast.errors import CheckpointError
from forecast.evaluation import Evaluation
from forecast.training import evaluate_part
from forecast.windows import PreparedSeries
from tune_jobs.options import Strategy
from tune_jobs.searcher import trial_checkpoint_path
from tune_jobs.space import complete_params
from tune_jobs.study import OBJECTIVES

STRATEGY_OBJECTIVE = {"min_mape": "MAPE", "min_mae": "MAE", "min_rmse": "RMSE"}


@dataclass(frozen=True)
class FrontPoint:
    """One trial that no other trial beats in every objective.

    Attributes:
        number: the trial's number in the study.
        objectives: what the search minimized, by name.
        params: its hyperparameters.
        checkpoint: its model.
        path: the checkpoint's file.
        test: its scores on the test rows; None until ``score_on_test``.
    """

    number: int
    objectives: dict[str, float]
    params: dict[str, Any]
    checkpoint: Checkpoint
    path: Path
    test: Evaluation | None = None

    @property
    def size(self) -> int:
        """Number of weights."""
        return sum(value.numel() for value in self.checkpoint.model_state.values())


def pareto_front(study: optuna.Study, checkpoint_dir: Path) -> tuple[list[FrontPoint], list[str]]:
    """The front, best first objective first, and a line for each point whose checkpoint cannot be used."""
    points, problems = [], []
    for trial in study.best_trials:
        path = trial_checkpoint_path(checkpoint_dir, trial.number)
        try:
            checkpoint = load_checkpoint(path)
        except CheckpointError as error:
            problems.append(f"trial {trial.number} is on the front and left out: {error}")
            continue
        objectives = dict(zip(OBJECTIVES, trial.values, strict=True))
        points.append(FrontPoint(trial.number, objectives, complete_params(trial.params), checkpoint, path))
    return sorted(points, key=lambda point: (*point.objectives.values(), point.number)), problems


def score_on_test(point: FrontPoint, prepared: PreparedSeries) -> FrontPoint:
    """Score a point on the test rows and write the scores into its checkpoint."""
    test = evaluate_part(point.checkpoint, prepared, "test")
    checkpoint = point.checkpoint.with_test(test)
    save_checkpoint(checkpoint, point.path)
    return replace(point, checkpoint=checkpoint, test=test)


def pick(
    front: Sequence[FrontPoint],
    strategy: Strategy,
    *,
    persistence: dict[str, float],
    weights: Sequence[float] | None = None,
) -> FrontPoint:
    """The front's best point by ``strategy``; a tie goes to the smaller model, then to the earlier trial.

    Args:
        front: at least one point.
        strategy: ``min_*`` takes the least of that objective; ``weighted`` the least weighted sum of
            objectives, each divided by persistence's so that units do not matter.
        persistence: persistence's metrics on the rows of the objectives.
        weights: one per objective, in their order; equal unless given.
    """
    factors = weights or [1.0] * len(OBJECTIVES)

    def cost(point: FrontPoint) -> float:
        if strategy == "weighted":
            return sum(
                factor * point.objectives[name] / persistence[name]
                for name, factor in zip(OBJECTIVES, factors, strict=True)
            )
        return point.objectives[STRATEGY_OBJECTIVE[strategy]]

    return min(front, key=lambda point: (cost(point), point.size, point.number))
