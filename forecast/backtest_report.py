"""What a backtest leaves: a table for a person, files for machines, a page with plots."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from forecast.atomic import write_atomically
from forecast.backtest import Backtest, Scores
from forecast.distribution import MAIN_LEVEL, PROBABILITIES
from forecast.errors import UsageError
from forecast.evaluation import LEVELS, Forecasts, interval_bounds, probability_integral_transform

if TYPE_CHECKING:
    import plotly.graph_objects as go

ROWS_FILE = "backtest.csv"
SUMMARY_FILE = "backtest.json"
PLOT_FILE = "backtest.html"

RELIABILITY_BINS = 10
"""Bars of the histogram of probability integral transforms."""


def print_backtest(done: Backtest, console: Console) -> None:
    """Folds, all rows, intervals and tests as tables."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for title in ("fold", "scored", "rows", "MAE", "persistence", "MASE", "CRPS", "persistence", "in 90 %"):
        table.add_column(title, justify="left" if title in ("fold", "scored") else "right", no_wrap=True)
    for result in done.results:
        dates = f"{result.dates[0]} to {result.dates[-1]}"
        number = result.fold.number
        table.add_row(f"{number + 1}", dates, *_cells(done.scores(number), len(result.dates)))
    table.add_section()
    table.add_row(
        "all", f"{done.dates[0]} to {done.dates[-1]}", *_cells(done.scores(), len(done.dates)), style="bold"
    )
    console.print(table)
    console.print(_intervals_table(done))
    console.print(_comparisons_table(done))
    _say(console, "p values are each test's own: of twenty, one is below 0.05 by chance")
    direction = done.scores().evaluations[0].direction
    if direction and direction.accuracy is not None:
        _say(
            console,
            f"Direction right on {100 * direction.accuracy:.1f} % of {direction.rows} days (95 % interval "
            f"{100 * (direction.low or 0):.1f} to {100 * (direction.high or 0):.1f} %; first seed)",
        )


def _cells(scores: Scores, rows: int) -> list[str]:
    inside = np.mean([_covered(evaluation.intervals) for evaluation in scores.evaluations])

    def with_spread(name: str) -> str:
        several = len(scores.evaluations) > 1
        return f"{scores.mean[name]:,.5g}" + (f" ± {scores.spread[name]:.2g}" if several else "")

    return [
        f"{rows}",
        with_spread("MAE"),
        f"{scores.persistence['MAE']:,.5g}",
        f"{scores.mean['MASE']:.3f}",
        with_spread("CRPS"),
        f"{scores.persistence['CRPS']:,.5g}",
        f"{100 * inside:.1f} %",
    ]


def _covered(intervals: Any) -> float:
    return next(float(interval.coverage) for interval in intervals if interval.level == MAIN_LEVEL)


def _intervals_table(done: Backtest) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    titles = ("interval", "rows in it", "mean width", "persistence's", "mean width")
    for title in titles:
        table.add_column(title, justify="left" if title == "interval" else "right", no_wrap=True)
    evaluations = done.scores().evaluations
    for i, level in enumerate(LEVELS):
        found = [evaluation.intervals[i] for evaluation in evaluations]
        table.add_row(
            f"{100 * level:g} %",
            f"{100 * np.mean([interval.coverage for interval in found]):.1f} %",
            f"{np.mean([interval.width for interval in found]):,.5g}",
            f"{100 * found[0].persistence_coverage:.1f} %",
            f"{found[0].persistence_width:,.5g}",
        )
    return table


def _comparisons_table(done: Backtest) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for title in ("against", "of", "ratio", "test", "statistic", "p"):
        table.add_column(
            title, justify="left" if title in ("against", "of", "test") else "right", no_wrap=True
        )
    for found in done.comparisons():
        table.add_row(
            found.baseline,
            found.metric,
            "" if found.ratio is None else f"{found.ratio:.4f}",
            found.test,
            f"{found.statistic:+.2f}",
            f"{found.p_value:.3f}" if found.p_value >= 0.001 else "< 0.001",
        )
    return table


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def summarize(done: Backtest) -> dict[str, Any]:
    """The backtest as plain values."""

    def scores(number: int | None) -> dict[str, Any]:
        found = done.scores(number)
        return {
            "rows": found.evaluations[0].rows,
            "mean": found.mean,
            "spread": found.spread,
            "persistence": found.persistence,
            "seeds": [evaluation.to_dict() for evaluation in found.evaluations],
        }

    return {
        "seeds": done.seeds,
        "folds": [
            {
                "fold": result.fold.number + 1,
                "first_date": str(result.dates[0]),
                "last_date": str(result.dates[-1]),
                "rows_known": result.fold.origin - result.fold.first,
                **scores(result.fold.number),
            }
            for result in done.results
        ],
        "all": scores(None),
        "comparisons": [asdict(comparison) for comparison in done.comparisons()],
    }


def write_rows(done: Backtest, path: Path) -> None:
    """Every forecast as CSV: date, fold, seed, actual, persistence, forecast, bounds of the shown interval."""
    folds = np.concatenate([np.full(len(result.dates), result.fold.number + 1) for result in done.results])
    frames = []
    for seed in range(done.seeds):
        forecasts = done.model(seed)
        lower, upper = interval_bounds(_quantiles(forecasts), MAIN_LEVEL)
        frames.append(
            pd.DataFrame(
                {
                    "date": done.dates,
                    "fold": folds,
                    "seed": seed + 1,
                    "actual": done.rows.actual,
                    "persistence": done.rows.previous,
                    "forecast": forecasts.points,
                    "lower_90": lower,
                    "upper_90": upper,
                }
            )
        )
    text = pd.concat(frames).to_csv(index=False)
    write_atomically(path, lambda stream: stream.write(text.encode()))


def _quantiles(forecasts: Forecasts) -> NDArray[np.float64]:
    if forecasts.quantiles is None:
        raise ValueError("a model of a backtest has quantiles")
    return forecasts.quantiles


def require_plotly() -> None:
    """Make sure that a page can be drawn, before the long work.

    Raises:
        UsageError: when plotly is not installed.
    """
    try:
        import plotly  # noqa: F401
    except ImportError:
        raise UsageError(
            "the plots need the package plotly; install it (pip install plotly), or leave them out with --no-plot"
        ) from None


def write_plot(done: Backtest, title: str, path: Path) -> None:
    """One page that opens without a network: forecasts with intervals, and how reliable these are.

    Raises:
        UsageError: when plotly is not installed.
    """
    require_plotly()
    page = _figure(done, title).to_html(include_plotlyjs=True, full_html=True, config={"displaylogo": False})
    write_atomically(path, lambda stream: stream.write(page.encode()))


def _figure(done: Backtest, title: str) -> go.Figure:
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    figure = make_subplots(
        rows=2,
        cols=2,
        specs=[[{"colspan": 2}, None], [{}, {}]],
        row_heights=[0.6, 0.4],
        vertical_spacing=0.12,
        subplot_titles=(
            f"One day ahead: actual, forecast and {100 * MAIN_LEVEL:.0f} % interval",
            "Where actual prices fell in their forecast distributions (PIT)",
            "Share of prices below each forecast quantile",
        ),
    )
    dates, forecasts = pd.DatetimeIndex(done.dates), done.model(0)
    lower, upper = interval_bounds(_quantiles(forecasts), MAIN_LEVEL)
    band = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
    figure.add_trace(go.Scatter(x=dates, y=upper, **band), row=1, col=1)
    figure.add_trace(
        go.Scatter(
            x=dates,
            y=lower,
            mode="lines",
            line={"width": 0},
            fill="tonexty",
            fillcolor="rgba(31,119,180,0.2)",
            name=f"{100 * MAIN_LEVEL:.0f} % interval",
            hoverinfo="skip",
        ),
        row=1,
        col=1,
    )
    for name, values, colour in (
        ("forecast", forecasts.points, "#1f77b4"),
        ("actual", done.rows.actual, "#222222"),
    ):
        line = {"width": 1, "color": colour}
        figure.add_trace(go.Scatter(x=dates, y=values, mode="lines", line=line, name=name), row=1, col=1)
    for result in done.results[1:]:
        figure.add_vline(
            x=pd.Timestamp(result.dates[0]),
            line={"width": 1, "dash": "dot", "color": "#999999"},
            row=1,
            col=1,
        )
    _add_reliability(figure, done, forecasts)
    figure.update_layout(
        title=title, template="plotly_white", height=900, legend={"orientation": "h"}, bargap=0.05
    )
    return figure


def _add_reliability(figure: go.Figure, done: Backtest, forecasts: Forecasts) -> None:
    import plotly.graph_objects as go

    actual = done.rows.actual
    everybody = {"model": forecasts, **done.baselines}
    for name, others in everybody.items():
        if others.quantiles is None:
            continue
        places = probability_integral_transform(actual, others.quantiles)
        if name == "model":
            share, _ = np.histogram(places, bins=RELIABILITY_BINS, range=(0, 1))
            middles = (np.arange(RELIABILITY_BINS) + 0.5) / RELIABILITY_BINS
            figure.add_trace(
                go.Bar(x=middles, y=share / len(places), marker_color="#1f77b4", showlegend=False),
                row=2,
                col=1,
            )
            figure.add_hline(y=1 / RELIABILITY_BINS, line={"dash": "dot", "color": "#999999"}, row=2, col=1)
        below = (actual[:, np.newaxis] <= others.quantiles).mean(axis=0)
        width = 2.5 if name == "model" else 1
        figure.add_trace(
            go.Scatter(x=PROBABILITIES, y=below, mode="lines", line={"width": width}, name=name), row=2, col=2
        )
    ideal = {"dash": "dot", "color": "#999999"}
    figure.add_trace(go.Scatter(x=[0, 1], y=[0, 1], mode="lines", line=ideal, showlegend=False), row=2, col=2)
    figure.update_xaxes(title_text="probability", row=2, col=1)
    figure.update_yaxes(title_text="share of rows", row=2, col=1)
    figure.update_xaxes(title_text="probability", row=2, col=2)
    figure.update_yaxes(title_text="share of rows", row=2, col=2)
