"""Forecasts of symbols that a model was not trained on: as a server makes them, in the units of each window."""

from __future__ import annotations

import numpy as np

from forecast.model.checkpoint import Checkpoint
from forecast.model.forecaster import Forecaster
from forecast.model.likelihood import distribution, point_forecasts
from forecast.model.network import networks
from forecast.model.normalization import Normalization
from forecast.model.split import Part
from forecast.model.windows import PreparedSeries
from forecast.scores.distribution import PROBABILITIES
from forecast.scores.metrics import Forecasts


def forecast_unseen(checkpoint: Checkpoint, prepared: PreparedSeries, part: Part, symbol: str) -> Forecasts:
    """Forecast the target rows of one part of a series that the model has not seen.

    Args:
        checkpoint: the model, of many symbols.
        prepared: the series; its own normalization is not used.
        part: the rows.
        symbol: the series' symbol.

    Raises:
        DataError: when the values of a window do not vary.
    """
    config = checkpoint.config
    columns, run = [config.feature, *config.input_columns], networks(checkpoint)
    prices = prepared.normalization.denormalize(prepared.normalized).reshape(len(prepared.normalized), -1)
    forecasters, inputs, volatilities, last = [], [], [], []
    for row in prepared.target_rows(part, config.sequence_length):
        known = slice(max(0, row - checkpoint.rows_used), row)
        normalization = Normalization.fit(prices[known], columns, log=config.log_prices)
        forecaster = Forecaster.of(checkpoint.of_window(normalization, symbol), run)
        normalized = normalization.normalize(prices[known])[np.newaxis]
        market = None if prepared.market is None else prepared.market[np.newaxis, known]
        views, volatility = forecaster.inputs(forecaster.encoding.with_market(normalized, market))
        forecasters.append(forecaster)
        inputs.append(views)
        volatilities.append(volatility)
        last.append(normalized[:, -1, 0])
    outputs = run([np.concatenate(view) for view in zip(*inputs, strict=True)])
    points = point_forecasts(outputs)
    found = distribution(
        config.likelihood, outputs, np.concatenate(volatilities), checkpoint.calibration_scores
    )
    quantiles = found.quantiles(PROBABILITIES) if found else None
    decoded = [
        (
            each.encoding.prices(points[i : i + 1], last[i]),
            None if quantiles is None else each.encoding.prices(quantiles[i : i + 1], last[i]),
        )
        for i, each in enumerate(forecasters)
    ]
    return Forecasts(
        points=np.concatenate([point for point, _ in decoded]),
        quantiles=None
        if quantiles is None
        else np.concatenate([bounds for _, bounds in decoded if bounds is not None]),
    )
