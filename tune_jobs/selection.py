"""The Pareto front and the point picked from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from forecast.errors import CheckpointError
from forecast.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from forecast.model.panel import Prepared
from forecast.model.training import scored_on_test
from forecast.scores.metrics import Evaluation
from tune_jobs.costs import Preference, SampledCost
from tune_jobs.luck import Luck
from tune_jobs.searcher import trial_checkpoint_path
from tune_jobs.space import complete_params


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
        return self.checkpoint.weights


@dataclass(frozen=True)
class ScoredPoint(FrontPoint):
    """A point of the front, scored on the test rows after the search was over.

    Attributes:
        test: its scores on the test rows.
        same_as_pick: whether noise cannot tell it from the pick on the rows of the objectives; true of the pick.
    """

    test: Evaluation
    same_as_pick: bool


def checkpoint_of(trial: FrozenTrial, directory: Path, folds: int) -> Checkpoint:
    """Return the model of a finished trial, whose loss is the mean over ``folds`` validation folds.

    Raises:
        CheckpointError: when its file cannot be used, or is of another study, as in a directory that two have used.
    """
    path = trial_checkpoint_path(directory, trial.number)
    checkpoint = load_checkpoint(path)
    same = checkpoint.trial_params == trial.params
    if folds == 1 and "val_loss_best" in trial.user_attrs:
        same &= checkpoint.val_loss_best == trial.user_attrs["val_loss_best"]
    if not same:
        raise CheckpointError(
            f"{path} is of another study, which has used this directory too; give each study its own `output_dir`"
        )
    return checkpoint


def pareto_front(study: optuna.Study, checkpoint_dir: Path, folds: int) -> tuple[list[FrontPoint], list[str]]:
    """Return the front, sorted by the first objective, and a line for each point whose checkpoint cannot be used."""
    points, problems = [], []
    for trial in study.best_trials:
        path = trial_checkpoint_path(checkpoint_dir, trial.number)
        try:
            checkpoint = checkpoint_of(trial, checkpoint_dir, folds)
        except CheckpointError as error:
            problems.append(f"trial {trial.number} is on the front but left out: {error}")
            continue
        objectives = dict(zip(study.metric_names or [], trial.values, strict=True))
        points.append(FrontPoint(trial.number, objectives, complete_params(trial.params), checkpoint, path))
    return sorted(points, key=lambda point: (*point.objectives.values(), point.number)), problems


def score_on_test(
    point: FrontPoint, prepared: Prepared, configurations_tried: int, luck: Luck
) -> ScoredPoint:
    """Score a point on the test rows, and write into its checkpoint the scores and how lucky the search may be."""
    checkpoint, test = scored_on_test(
        point.checkpoint,
        prepared,
        configurations_tried=configurations_tried,
        search_p_value=luck.p_value,
    )
    save_checkpoint(checkpoint, point.path)
    same_as_pick = point.number in luck.same_as_pick
    return ScoredPoint(
        point.number, point.objectives, point.params, checkpoint, point.path, test, same_as_pick
    )


def pick(front: Sequence[FrontPoint], preference: Preference) -> FrontPoint:
    """Return the front's best point; a tie goes to the smaller model, then to the earlier trial.

    Args:
        front: at least one point.
        preference: the order of points.
    """
    return min(front, key=lambda point: (preference.cost(point.objectives), point.size, point.number))


def pick_within_one_se(
    front: Sequence[FrontPoint], preference: Preference, costs: Mapping[int, SampledCost]
) -> FrontPoint:
    """Return the smallest model among the points whose cost is within one standard error of the best one's.

    This is the one-standard-error rule (Breiman et al. 1984, section 3.4.3). All points are scored on the same rows, so
    the standard error is that of the difference of their costs.

    Args:
        front: at least one point.
        preference: the order of points.
        costs: the points' costs, by trial number.
    """
    best = costs[pick(front, preference).number]
    near = [point for point in front if costs[point.number].is_near(best)]
    return min(near, key=lambda point: (point.size, costs[point.number].cost, point.number))
