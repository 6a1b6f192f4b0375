"""Figures of forecasts and actual prices, for pages (``forecast.pages.page``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forecast.scores.distribution import MAIN_LEVEL, PROBABILITIES
from forecast.scores.metrics import Forecasts, Rows, interval_bounds, probability_integral_transform

if TYPE_CHECKING:
    import plotly.graph_objects as go

Dates = NDArray[np.datetime64]

PIT_BINS = 10
"""Number of bars in the histogram of probability integral transforms."""
RESIDUAL_BINS = 40
"""Number of bars in the histogram of residuals."""
REFERENCE = {"dash": "dot", "color": "#8a94a3", "width": 1}
"""Style of a reference line."""


def forecast_figure(dates: Dates, rows: Rows, forecasts: Forecasts) -> go.Figure:
    """Plot actual prices, forecasts with their interval, and persistence, by date.

    Args:
        dates: dates of the rows, shape (n,).
        rows: actual prices, and persistence's forecasts.
        forecasts: forecasts of the same rows; without quantiles, no band is drawn.
    """
    import plotly.graph_objects as go

    days = pd.DatetimeIndex(dates)
    figure = go.Figure()
    if forecasts.quantiles is not None:
        lower, upper = interval_bounds(forecasts.quantiles, MAIN_LEVEL)
        edge: dict[str, Any] = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
        figure.add_scatter(x=days, y=upper, showlegend=False, **edge)
        name = f"{100 * MAIN_LEVEL:.0f} % interval"
        figure.add_scatter(x=days, y=lower, fill="tonexty", name=name, meta="band", **edge)
    for name, values, colour, dash in (
        ("actual", rows.actual, "ink", "solid"),
        ("forecast", forecasts.points, "forecast", "solid"),
        ("persistence", rows.previous, "persistence", "dot"),
    ):
        line = {"width": 1.2, "dash": dash}
        figure.add_scatter(x=days, y=values, mode="lines", line=line, name=name, meta=colour)
    figure.update_layout(hovermode="x unified", yaxis_title="price")
    return figure


def residual_figure(dates: Dates, rows: Rows, forecasts: Forecasts) -> go.Figure:
    """Plot residuals (actual - forecast, in price units) by date and as a histogram, with persistence's."""
    from plotly.subplots import make_subplots

    figure = make_subplots(
        rows=1, cols=2, column_widths=[0.65, 0.35], shared_yaxes=True, horizontal_spacing=0.03
    )
    days = pd.DatetimeIndex(dates)
    for name, points, colour in (
        ("forecast", forecasts.points, "forecast"),
        ("persistence", rows.previous, "persistence"),
    ):
        residuals = rows.actual - points
        look: dict[str, Any] = {"name": name, "meta": colour, "legendgroup": name, "opacity": 0.65}
        figure.add_scatter(x=days, y=residuals, mode="markers", marker={"size": 5}, row=1, col=1, **look)
        figure.add_histogram(y=residuals, nbinsy=RESIDUAL_BINS, showlegend=False, row=1, col=2, **look)
    figure.add_hline(y=0, line=REFERENCE)
    figure.update_layout(barmode="overlay")
    figure.update_yaxes(title_text="actual - forecast", row=1, col=1)
    figure.update_xaxes(title_text="rows", row=1, col=2)
    return figure


def transform_figure(actual: NDArray[np.float64], forecasts: Forecasts) -> go.Figure:
    """Histogram of the actual prices' places in their forecast distributions (PIT): flat for a calibrated model."""
    import plotly.graph_objects as go

    places = probability_integral_transform(actual, forecasts.required_quantiles)
    share, _ = np.histogram(places, bins=PIT_BINS, range=(0, 1))
    middles = (np.arange(PIT_BINS) + 0.5) / PIT_BINS
    figure = go.Figure(go.Bar(x=middles, y=share / len(places), showlegend=False, meta="forecast"))
    figure.add_hline(y=1 / PIT_BINS, line=REFERENCE)
    figure.update_layout(bargap=0.05, xaxis_title="probability", yaxis_title="share of rows")
    return figure


def calibration_figure(actual: NDArray[np.float64], forecasters: Mapping[str, Forecasts]) -> go.Figure:
    """Plot the share of actual prices below each forecast quantile, one line per forecaster that has quantiles.

    The first forecaster is the model; its line is highlighted.
    """
    import plotly.graph_objects as go

    figure = go.Figure(go.Scatter(x=[0, 1], y=[0, 1], mode="lines", line=REFERENCE, showlegend=False))
    for number, (name, forecasts) in enumerate(forecasters.items()):
        if forecasts.quantiles is None:
            continue
        below = (actual[:, np.newaxis] <= forecasts.quantiles).mean(axis=0)
        line = {"width": 1 if number else 2.5}
        figure.add_scatter(
            x=PROBABILITIES, y=below, mode="lines", line=line, name=name, meta=None if number else "forecast"
        )
    figure.update_layout(xaxis_title="probability", yaxis_title="share of rows")
    return figure
