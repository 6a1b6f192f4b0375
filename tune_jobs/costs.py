"""The cost that a strategy minimizes, and how much of a difference of costs is noise."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from forecast.model.checkpoint import Checkpoint
from forecast.model.panel import Prepared
from forecast.model.split import Part
from forecast.model.training import forecast_each
from forecast.model.windows import PreparedSeries
from forecast.scores.metrics import METRICS, Forecasts, Rows, evaluate_forecasts
from tune_jobs.options import LEAST, WEIGHTED, metric_of

Array = NDArray[np.float64]
RowLosses = dict[str, Array]
"""Losses of the same rows by metric, each of shape (n,)."""
Value = TypeVar("Value", float, Array)

BOOTSTRAPS = 2000
"""Number of resamples for a standard error."""
BOOTSTRAP_SEED = 0


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

    @property
    def metric(self) -> str:
        """Name of the metric that the strategy minimizes; ``weighted`` for the weighted sum."""
        return self.strategy if self.strategy == WEIGHTED else metric_of(self.strategy.removeprefix(LEAST))

    def cost(self, objectives: dict[str, Value]) -> Value:
        """Return what the strategy minimizes: a number, or an array where the objectives are arrays."""
        if self.strategy != WEIGHTED:
            return objectives[self.metric]
        weights = self.weights or [1.0] * len(objectives)
        terms = [
            weight * value / self.persistence[name]
            for weight, (name, value) in zip(weights, objectives.items(), strict=True)
        ]
        return functools.reduce(operator.add, terms)


def row_losses(checkpoint: Checkpoint, prepared: Prepared, part: Part, names: Sequence[str]) -> RowLosses:
    """Return the losses of a checkpoint's forecasts of the rows of ``part``, by the metrics of these names.

    Of a panel, they are the losses of its sessions: relative to persistence's mean loss, in the mean over the symbols.
    Symbols of one day move together, so that the days are the observations.
    """
    rows = [series.rows(part, checkpoint.config.sequence_length) for series in prepared.parts]
    return _losses(prepared, part, rows, forecast_each(checkpoint, prepared, part), names)


def persistence_losses(prepared: Prepared, part: Part, names: Sequence[str]) -> RowLosses:
    """Return persistence's losses on the rows of ``part``, which are the same for every window length."""
    rows = [series.rows(part, 2) for series in prepared.parts]
    return _losses(prepared, part, rows, [each.baseline for each in rows], names)


def _losses(
    prepared: Prepared, part: Part, rows: Sequence[Rows], forecasts: Sequence[Forecasts], names: Sequence[str]
) -> RowLosses:
    """Return the losses of forecasts of each series' rows, of a panel those of its sessions."""
    if isinstance(prepared, PreparedSeries):
        return {name: rows[0].losses(name, forecasts[0]) for name in names}
    start, stop = prepared.session_range(part)
    found = {name: np.zeros(stop - start) for name in names}
    still = [evaluate_forecasts(each, Forecasts(each.previous)).still for each in rows]
    moving = still.count(False) or len(rows)
    for (symbol, series), its_rows, its_forecasts, stands in zip(
        prepared.series.items(), rows, forecasts, still, strict=True
    ):
        if stands and moving < len(rows):
            continue
        sessions = prepared.sessions[symbol][series.target_rows(part, 2)][-len(its_rows.actual) :] - start
        # A symbol counts as much as any other, however many of the sessions it has.
        weight = (stop - start) / (moving * len(sessions))
        for name in names:
            naive = its_rows.losses(name, its_rows.baseline).mean()
            if naive > 0:
                found[name][sessions] += weight * its_rows.losses(name, its_forecasts) / naive
    return found


@dataclass(frozen=True)
class SampledCost:
    """A cost with its values on resampled rows.

    Attributes:
        cost: the cost.
        resampled: the cost on each resample, shape (BOOTSTRAPS,); costs on the same rows share their resamples.
    """

    cost: float
    resampled: Array

    def is_near(self, other: SampledCost) -> bool:
        """Return whether two costs differ by no more than one standard error of their difference."""
        return abs(self.cost - other.cost) <= float(np.std(self.resampled - other.resampled))


def sample_cost(objectives: dict[str, float], losses: RowLosses, preference: Preference) -> SampledCost:
    """Resample the rows of ``losses``, and return the cost of ``objectives`` with that of each resample.

    Objectives that are means over several validation folds are sampled on the rows of the last fold, whose model the
    checkpoint holds. The mean over the folds varies less, so that the error is rather too large.
    """
    resampled = {
        name: np.array([METRICS[name].of_mean(mean) for mean in _resampled_means(values)])
        for name, values in losses.items()
    }
    return SampledCost(preference.cost(objectives), preference.cost(resampled))


def _resampled_means(losses: Array) -> Array:
    """Return the mean of each resample (BOOTSTRAPS,) of losses (n,) in the order of time.

    This is the circular block bootstrap (Politis & Romano 1992); the block length is the cube root of the number of
    rows (Hall et al. 1995).
    """
    rows = len(losses)
    length = round(rows ** (1 / 3))
    blocks = -(-rows // length)
    starts = np.random.default_rng(BOOTSTRAP_SEED).integers(rows, size=(BOOTSTRAPS, blocks))
    lengths = np.full(blocks, length)
    lengths[-1] = rows - length * (blocks - 1)
    # A block's sum is a difference of running sums: whole resamples would fill the memory on long series.
    running = np.concatenate([[0.0], np.cumsum(np.tile(losses, 2))])
    means: Array = (running[starts + lengths] - running[starts]).sum(axis=1) / rows
    return means
