"""Scores of the forecasts of one number of steps: the metrics, the tests, and the comparisons with the baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forecast.backtest.significance import christoffersen, diebold_mariano, kupiec, pesaran_timmermann
from forecast.scores.distribution import MAIN_LEVEL
from forecast.scores.metrics import (
    METRICS,
    Coverage,
    Evaluation,
    Forecasts,
    Rows,
    evaluate_forecasts,
    interval_bounds,
)

Array = NDArray[np.float64]

COMPARED = ("MAE", "CRPS")
"""Metrics on which the model is compared with each baseline."""


@dataclass(frozen=True)
class OwnTest:
    """A test of one training run's one-step forecasts, which needs no baseline.

    Attributes:
        test: Kupiec (the interval of ``MAIN_LEVEL`` holds the right share of rows), Christoffersen (it does, whatever
            the row before), or Pesaran-Timmermann (the forecast directions are no better than chance).
        seed: number of the training run, from 1.
        p_value: against what is in brackets; one-sided for Pesaran-Timmermann.
    """

    test: str
    seed: int
    statistic: float
    p_value: float


@dataclass(frozen=True)
class Comparison:
    """A test of a model against a baseline on the same rows.

    Attributes:
        metric: name of the metric whose losses are compared.
        ratio: the model's metric over the baseline's; None where the baseline is exact.
        statistic: the test's statistic; for Diebold-Mariano, below zero where the model is better.
        p_value: two-sided for Diebold-Mariano, one-sided for Clark-West.
    """

    baseline: str
    test: str
    metric: str
    ratio: float | None
    statistic: float
    p_value: float


@dataclass(frozen=True)
class Scores:
    """The metrics of the model over its seeds, and the metrics of persistence.

    Attributes:
        mean: mean of each metric over the seeds.
        std: standard deviation of each metric over the seeds; 0 for one seed.
        persistence: persistence's metrics.
        evaluations: the evaluation of each seed.
    """

    mean: dict[str, float]
    std: dict[str, float]
    persistence: dict[str, float]
    evaluations: list[Evaluation]

    @property
    def intervals(self) -> list[Coverage]:
        """Coverage and width of the intervals of each level, the model's averaged over the seeds."""
        levels = zip(*(evaluation.intervals for evaluation in self.evaluations), strict=True)
        return [
            replace(
                same[0],
                coverage=float(np.mean([found.coverage for found in same])),
                width=float(np.mean([found.width for found in same])),
            )
            for same in levels
        ]

    @property
    def main_interval(self) -> Coverage:
        """That of ``MAIN_LEVEL``."""
        return next(found for found in self.intervals if found.level == MAIN_LEVEL)


@dataclass(frozen=True)
class Scored:
    """The targets of one number of steps, and the forecasts of them.

    Attributes:
        horizon: number of steps ahead.
        rows: actual prices of the n targets, and the forecasts of persistence.
        models: forecasts of each seed.
        baselines: forecasts of each baseline by name, persistence's first.
    """

    horizon: int
    rows: Rows
    models: list[Forecasts]
    baselines: dict[str, Forecasts]

    @classmethod
    def join(cls, parts: Sequence[Scored]) -> Scored:
        """All folds' targets of the same number of steps."""
        first = parts[0]
        return cls(
            horizon=first.horizon,
            rows=_join_rows([part.rows for part in parts]),
            models=[Forecasts.join(each) for each in zip(*(part.models for part in parts), strict=True)],
            baselines={
                name: Forecasts.join([part.baselines[name] for part in parts]) for name in first.baselines
            },
        )

    def scores(self) -> Scores:
        """The metrics of the model and of persistence."""
        evaluations = [evaluate_forecasts(self.rows, forecasts) for forecasts in self.models]
        names = evaluations[0].model
        values = {name: [evaluation.model[name] for evaluation in evaluations] for name in names}
        std = {name: float(np.std(seen, ddof=1)) if len(seen) > 1 else 0.0 for name, seen in values.items()}
        mean = {name: float(np.mean(seen)) for name, seen in values.items()}
        return Scores(mean, std, evaluations[0].persistence, evaluations)

    def comparisons(self) -> list[Comparison]:
        """Test the model against each baseline; a row's loss is the mean of the seeds' losses."""
        ours = {
            metric: np.mean([self.rows.losses(metric, model) for model in self.models], axis=0)
            for metric in COMPARED
        }
        found = []
        for name, forecasts in self.baselines.items():
            for metric, losses in ours.items():
                if METRICS[metric].needs_quantiles and forecasts.quantiles is None:
                    continue
                theirs = self.rows.losses(metric, forecasts)
                tested = diebold_mariano(losses, theirs, self.horizon)
                found.append(Comparison(name, "Diebold-Mariano", metric, loss_ratio(losses, theirs), *tested))
        return found

    def own_tests(self) -> list[OwnTest]:
        """Test each seed's intervals and directions one step ahead: the tests know nothing of errors that overlap."""
        found = []
        for seed, model in enumerate(self.models, 1):
            lower, upper = interval_bounds(model.required_quantiles, MAIN_LEVEL)
            inside = (lower <= self.rows.actual) & (self.rows.actual <= upper)
            moves, forecast_moves = self.rows.actual - self.rows.previous, model.points - self.rows.previous
            found += [
                OwnTest("Kupiec", seed, *kupiec(inside, MAIN_LEVEL)),
                OwnTest("Christoffersen", seed, *christoffersen(inside, MAIN_LEVEL)),
                OwnTest("Pesaran-Timmermann", seed, *pesaran_timmermann(moves, forecast_moves)),
            ]
        return found


def _join_rows(parts: Sequence[Rows]) -> Rows:
    def joined(arrays: Sequence[Any]) -> Array:
        return np.concatenate(arrays)

    return Rows(
        actual=joined([part.actual for part in parts]),
        previous=joined([part.previous for part in parts]),
        persistence=joined([part.persistence for part in parts]),
        naive_mae=joined([np.full(len(part.actual), part.naive_mae) for part in parts]),
        price_floor=joined([np.full(len(part.actual), part.price_floor) for part in parts]),
    )


def loss_ratio(losses: Array, others: Array) -> float | None:
    """Ratio of mean losses (n,) to those of another forecaster; None where it is exact."""
    below = float(others.mean())
    return float(losses.mean()) / below if below > 0 else None
