"""The Pareto front and the point picked from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray

from forecast.errors import CheckpointError
from forecast.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from forecast.model.split import Part
from forecast.model.training import evaluate_part, forecast_part
from forecast.model.windows import PreparedSeries
from forecast.scores.metrics import METRICS, Evaluation
from tune_jobs.options import LEAST, WEIGHTED, metric_of
from tune_jobs.searcher import trial_checkpoint_path
from tune_jobs.space import complete_params

BOOTSTRAPS = 2000
"""Number of resamples for a standard error."""
BOOTSTRAP_SEED = 0


@dataclass(frozen=True)
class FrontPoint:
    """One trial that no other trial beats.

    Attributes:
        number: the trial's number in the study.
        objectives: the minimized metrics, by name.
        params: its hyperparameters.
        checkpoint: its model.
        path: the checkpoint's file.
    """

    number: int
    objectives: dict[str, float]
    params: dict[str, Any]
    checkpoint: Checkpoint
    path: Path

    @property
    def size(self) -> int:
        """Number of weights."""
        return sum(value.numel() for value in self.checkpoint.model_state.values())


@dataclass(frozen=True)
class ScoredPoint(FrontPoint):
    """A point of the front, scored on the test rows after the search was over."""

    test: Evaluation


def pareto_front(study: optuna.Study, checkpoint_dir: Path) -> tuple[list[FrontPoint], list[str]]:
    """Return the front, sorted by the first objective, and a line for each point whose checkpoint cannot be used."""
    points, problems = [], []
    for trial in study.best_trials:
        path = trial_checkpoint_path(checkpoint_dir, trial.number)
        try:
            checkpoint = load_checkpoint(path)
        except CheckpointError as error:
            problems.append(f"trial {trial.number} is on the front but left out: {error}")
            continue
        objectives = dict(zip(study.metric_names or [], trial.values, strict=True))
        points.append(FrontPoint(trial.number, objectives, complete_params(trial.params), checkpoint, path))
    return sorted(points, key=lambda point: (*point.objectives.values(), point.number)), problems


def score_on_test(point: FrontPoint, prepared: PreparedSeries, configurations_tried: int) -> ScoredPoint:
    """Score a point on the test rows and write the scores into its checkpoint."""
    test = evaluate_part(point.checkpoint, prepared, "test")
    checkpoint = point.checkpoint.with_test(test, prepared, configurations_tried)
    save_checkpoint(checkpoint, point.path)
    return ScoredPoint(point.number, point.objectives, point.params, checkpoint, point.path, test)


@dataclass(frozen=True)
class Preference:
    """Orders points, best first.

    Attributes:
        strategy: ``min_*`` minimizes that objective; ``weighted`` minimizes the weighted sum of all objectives, each
            divided by persistence's so that units do not matter.
        persistence: persistence's metrics on the rows of the objectives.
        weights: one per objective, in their order; equal unless given.
    """

    strategy: str
    persistence: dict[str, float]
    weights: Sequence[float] | None = None

    def cost(self, objectives: dict[str, float]) -> float:
        """Return the number that the strategy minimizes."""
        if self.strategy != WEIGHTED:
            return objectives[metric_of(self.strategy.removeprefix(LEAST))]
        weights = self.weights or [1.0] * len(objectives)
        return sum(
            weight * value / self.persistence[name]
            for weight, (name, value) in zip(weights, objectives.items(), strict=True)
        )


def pick(front: Sequence[FrontPoint], preference: Preference) -> FrontPoint:
    """Return the front's best point; a tie goes to the smaller model, then to the earlier trial.

    Args:
        front: at least one point.
        preference: the order of points.
    """
    return min(front, key=lambda point: (preference.cost(point.objectives), point.size, point.number))


def pick_within_one_se(
    front: Sequence[FrontPoint], preference: Preference, prepared: PreparedSeries, part: Part
) -> FrontPoint:
    """Return the smallest model among the points whose cost is within one standard error of the best one's.

    This is the one-standard-error rule (Breiman et al. 1984, section 3.4.3). All points are scored on the same days,
    so the standard error is that of the difference of their costs, from the circular block bootstrap (Politis & Romano
    1992) over those days. The block length is the cube root of the number of days (Hall et al. 1995).

    Args:
        front: at least one point.
        preference: the order of points.
        prepared: the series.
        part: rows the objectives were computed on.
    """
    best = pick(front, preference)
    losses = [_losses(point, prepared, part) for point in front]
    days = losses[0].shape[1]
    length = round(days ** (1 / 3))
    generator = np.random.default_rng(BOOTSTRAP_SEED)
    starts = generator.integers(days, size=(BOOTSTRAPS, -(-days // length), 1))
    resamples = ((starts + np.arange(length)) % days).reshape(BOOTSTRAPS, -1)[:, :days]
    costs = [_resampled_costs(values, list(best.objectives), resamples, preference) for values in losses]
    best_costs = costs[next(i for i, point in enumerate(front) if point is best)]
    near = [
        point
        for point, resampled in zip(front, costs, strict=True)
        if preference.cost(point.objectives) - preference.cost(best.objectives)
        <= float(np.std(resampled - best_costs))
    ]
    return min(near, key=lambda point: (point.size, preference.cost(point.objectives), point.number))


def _losses(point: FrontPoint, prepared: PreparedSeries, part: Part) -> NDArray[np.float64]:
    """Return the losses (objectives, days) of a point's forecasts."""
    forecasts = forecast_part(point.checkpoint, prepared, part)
    rows = prepared.rows(part, point.checkpoint.config.sequence_length)
    return np.stack([rows.losses(name, forecasts) for name in point.objectives])


def _resampled_costs(
    losses: NDArray[np.float64], names: list[str], resamples: NDArray[np.intp], preference: Preference
) -> NDArray[np.float64]:
    """Return the cost of each resample; ``resamples`` holds days (resamples, days)."""
    means = losses[:, resamples].mean(axis=2)
    metrics = [[METRICS[name].of_mean(mean) for mean in row] for name, row in zip(names, means, strict=True)]
    return np.array(
        [preference.cost(dict(zip(names, column, strict=True))) for column in zip(*metrics, strict=True)]
    )
