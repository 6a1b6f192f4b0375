"""Horizons: forecasts several steps ahead, each made from before a scored row, with its target in the same fold.

The target of ``h`` steps from before a row is ``h - 1`` rows later than that row. So of ``n`` scored rows, the first
``n - h + 1`` are the first steps of such forecasts, and the last ``n - h + 1`` are their targets. A series without
scored rows is forecast from its last row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from forecast.backtest.settings import BacktestSettings
from forecast.config import TrainConfig
from forecast.model.checkpoint import Checkpoint
from forecast.model.device import threads
from forecast.model.forecaster import Forecaster, look_ahead
from forecast.model.network import networks
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


def first_steps(prepared: PreparedSeries, horizon: int) -> NDArray[np.intp]:
    """Numbers of the rows from before which so many steps are forecast.

    Those whose target is a test row; for a series without test rows, the one that will follow its last row.
    """
    rows = prepared.target_rows("test", 2)
    return rows[: len(rows) - horizon + 1] if len(rows) else np.array([prepared.split.rows])


def persistence_ahead(prepared: PreparedSeries, horizon: int) -> Forecasts:
    """Persistence's forecasts so many steps ahead, from before each of the ``first_steps``.

    Its distribution is that of all changes over so many steps before the test rows.
    """
    feature = prepared.normalization.feature
    last = prepared.normalized[first_steps(prepared, horizon) - 1, 0]
    known = prepared.normalized[: prepared.split.validation_end, 0]
    changes = np.quantile(known[horizon:] - known[:-horizon], PROBABILITIES)
    return Forecasts(feature.denormalize(last), feature.denormalize(last[:, np.newaxis] + changes))


def rows_ahead(prepared: PreparedSeries, horizon: int) -> Rows:
    """The targets of so many steps, and persistence's forecasts of them."""
    rows, persistence = prepared.rows("test", 2), persistence_ahead(prepared, horizon)
    return replace(
        rows,
        actual=rows.actual[horizon - 1 :],
        previous=persistence.points,
        persistence=persistence.quantiles,
    )


def forecast_ahead(checkpoint: Checkpoint, prepared: PreparedSeries, horizons: Sequence[int]) -> ByHorizon:
    """A model's forecasts of the test rows, one step ahead from its own distribution, further from simulated paths."""
    found = {1: forecast_part(checkpoint, prepared, "test")}
    later = [horizon for horizon in horizons if horizon > 1]
    if not later:
        return found
    feature = prepared.normalization.feature
    with threads(checkpoint.config.threads):
        ahead = look_ahead(
            Forecaster.of(checkpoint, networks(checkpoint)), prepared, "test", later, PROBABILITIES
        )
    for i, horizon in enumerate(ahead.horizons):
        origins = slice(len(ahead.points) - horizon + 1)
        quantiles = None if ahead.quantiles is None else feature.denormalize(ahead.quantiles[origins, i])
        found[horizon] = Forecasts(feature.denormalize(ahead.points[origins, i]), quantiles)
    return found
