"""Horizons: forecasts several steps ahead, each made from before a scored row, with its target in the same fold.

The target of ``h`` steps from before a row is ``h - 1`` rows later than that row. So of ``n`` scored rows, the first
``n - h + 1`` are the first steps of such forecasts, and the last ``n - h + 1`` are their targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from forecast.backtest.settings import BacktestSettings
from forecast.config import TrainConfig
from forecast.model.checkpoint import Checkpoint
from forecast.model.device import threads
from forecast.model.forecaster import Forecaster, look_ahead
from forecast.model.normalization import bar_part
from forecast.model.training import forecast_part
from forecast.model.windows import PreparedSeries
from forecast.scores.distribution import PROBABILITIES
from forecast.scores.metrics import Forecasts, Rows

ByHorizon = dict[int, Forecasts]
"""Forecasts by number of steps, each of the targets of that many steps."""


def columns_not_forecast(config: TrainConfig) -> list[str]:
    """Input columns that a forecast of several steps would need forecasts of; a part of the bar needs none."""
    return [name for name in config.input_columns if bar_part(name, config.feature) is None]


def scored_horizons(settings: BacktestSettings, config: TrainConfig) -> tuple[int, ...]:
    """The numbers of steps that are scored, ascending: one alone where the model cannot forecast more."""
    return (1,) if columns_not_forecast(config) else settings.horizons


def rows_ahead(prepared: PreparedSeries, horizon: int) -> Rows:
    """The targets of so many steps, and persistence's forecasts of them.

    Its distribution is that of all changes over so many steps before the test rows.
    """
    rows, feature = prepared.rows("test", 2), prepared.normalization.feature
    origins = len(rows.actual) - horizon + 1
    previous = rows.previous[:origins]
    known = prepared.normalized[: prepared.split.validation_end, 0]
    changes = np.quantile(known[horizon:] - known[:-horizon], PROBABILITIES)
    return replace(
        rows,
        actual=rows.actual[horizon - 1 :],
        previous=previous,
        persistence=feature.denormalize(feature.normalize(previous)[:, np.newaxis] + changes),
    )


def forecast_ahead(checkpoint: Checkpoint, prepared: PreparedSeries, horizons: Sequence[int]) -> ByHorizon:
    """A model's forecasts of the test rows, one step ahead from its own distribution, further from simulated paths."""
    found = {1: forecast_part(checkpoint, prepared, "test")}
    later = [horizon for horizon in horizons if horizon > 1]
    if not later:
        return found
    feature = prepared.normalization.feature
    with threads(checkpoint.config.threads):
        ahead = look_ahead(Forecaster.of(checkpoint), prepared, "test", later, PROBABILITIES)
    for i, horizon in enumerate(ahead.horizons):
        origins = slice(len(ahead.points) - horizon + 1)
        quantiles = None if ahead.quantiles is None else feature.denormalize(ahead.quantiles[origins, i])
        found[horizon] = Forecasts(feature.denormalize(ahead.points[origins, i]), quantiles)
    return found
