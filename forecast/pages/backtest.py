"""The output of a backtest: tables for people, files for machines, a page with plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from forecast.atomic import write_atomically
from forecast.backtest.rolling import Backtest, Scores
from forecast.pages.describe import intervals_table
from forecast.pages.page import Plot, Section, Text, grid_of, write_page
from forecast.pages.plots import REFERENCE, calibration_figure, forecast_figure, transform_figure
from forecast.scores.distribution import MAIN_LEVEL
from forecast.scores.metrics import interval_bounds

ROWS_FILE = "backtest.csv"
SUMMARY_FILE = "backtest.json"
PAGE_FILE = "backtest.html"
FILES = {
    ROWS_FILE: "every forecast: date, fold, seed, actual price, persistence, forecast, bounds of the 90 % interval",
    SUMMARY_FILE: "scores of each fold and of all rows, tests against the baselines, configuration, data",
    PAGE_FILE: "a page for people: forecasts, reliability of the intervals, the baselines; it opens without a network",
}
"""The files of a backtest and their content."""

P_VALUES = "p-values are not corrected for multiple tests: by chance, one in twenty is below 0.05"


def print_backtest(done: Backtest, console: Console) -> None:
    """Print tables of the folds, all rows, the intervals and the tests."""
    console.print(_folds_table(done))
    console.print(intervals_table(done.scores().evaluations))
    console.print(_comparisons_table(done))
    for line in (P_VALUES, *(found.text for found in _direction(done))):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _folds_table(done: Backtest) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for title in ("fold", "scored", "rows", "MAE", "persistence", "MASE", "CRPS", "persistence", "in 90 %"):
        table.add_column(title, justify="left" if title in ("fold", "scored") else "right", no_wrap=True)
    for result in done.results:
        dates = " to ".join(done.timeline.label(result.dates[[0, -1]]))
        number = result.fold.number
        table.add_row(f"{number + 1}", dates, *_cells(done.scores(number), len(result.dates)))
    table.add_section()
    table.add_row(
        "all",
        " to ".join(done.timeline.label(done.dates[[0, -1]])),
        *_cells(done.scores(), len(done.dates)),
        style="bold",
    )
    return table


def _direction(done: Backtest) -> list[Text]:
    """A line on how often the direction was right, if any row counts."""
    direction = done.scores().evaluations[0].direction
    if direction is None or direction.accuracy is None:
        return []
    return [
        Text(
            f"Direction right on {100 * direction.accuracy:.1f} % of {direction.rows} {done.timeline.unit}s (95 % "
            f"interval {100 * (direction.low or 0):.1f} to {100 * (direction.high or 0):.1f} %; first seed)"
        )
    ]


def _cells(scores: Scores, rows: int) -> list[str]:
    inside = np.mean([_covered(evaluation.intervals) for evaluation in scores.evaluations])

    def with_std(name: str) -> str:
        several = len(scores.evaluations) > 1
        return f"{scores.mean[name]:,.5g}" + (f" ± {scores.std[name]:.2g}" if several else "")

    return [
        f"{rows}",
        with_std("MAE"),
        f"{scores.persistence['MAE']:,.5g}",
        f"{scores.mean['MASE']:.3f}",
        with_std("CRPS"),
        f"{scores.persistence['CRPS']:,.5g}",
        f"{100 * inside:.1f} %",
    ]


def _covered(intervals: Any) -> float:
    return next(float(interval.coverage) for interval in intervals if interval.level == MAIN_LEVEL)


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


def summarize(done: Backtest) -> dict[str, Any]:
    """The backtest as plain values."""

    def scores(number: int | None) -> dict[str, Any]:
        found = done.scores(number)
        return {
            "rows": found.evaluations[0].rows,
            "mean": found.mean,
            "spread": found.std,
            "persistence": found.persistence,
            "seeds": [asdict(evaluation) for evaluation in found.evaluations],
        }

    return {
        "seeds": done.seeds,
        "folds": [
            {
                "fold": result.fold.number + 1,
                **dict(
                    zip(("first_date", "last_date"), done.timeline.text(result.dates[[0, -1]]), strict=True)
                ),
                "rows_known": result.fold.origin - result.fold.first,
                **scores(result.fold.number),
            }
            for result in done.results
        ],
        "all": scores(None),
        "comparisons": [asdict(comparison) for comparison in done.comparisons()],
    }


def write_rows(done: Backtest, path: Path) -> None:
    """Write every forecast as CSV: date, fold, seed, actual, persistence, forecast, bounds of the shown interval."""
    folds = np.concatenate([np.full(len(result.dates), result.fold.number + 1) for result in done.results])
    frames = []
    for seed in range(done.seeds):
        forecasts = done.model(seed)
        lower, upper = interval_bounds(forecasts.required_quantiles, MAIN_LEVEL)
        frames.append(
            pd.DataFrame(
                {
                    "date": done.timeline.text(done.dates),
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


def write_plots(done: Backtest, title: str, notes: Sequence[str], path: Path) -> None:
    """Write one page that opens without a network: forecasts with intervals, their reliability, and the tables.

    Args:
        done: the backtest.
        title: title of the page.
        notes: lines to read before the numbers.
        path: path of the file.
    """
    forecasts, actual = done.model(0), done.rows.actual
    dates = done.timeline.local(done.dates)
    figure = forecast_figure(dates, done.rows, forecasts)
    for result in done.results[1:]:
        figure.add_vline(x=pd.Timestamp(done.timeline.local(result.dates[:1])[0]), line=REFERENCE)
    sections = [
        Section(
            "One day ahead",
            [
                Plot(
                    figure,
                    "Actual prices, forecasts with their interval, and persistence, by date; lines between folds",
                ),
                grid_of(_folds_table(done)),
            ],
        ),
        Section(
            "Reliability of the intervals",
            [
                Text(
                    "Where actual prices fell in their forecast distributions: flat for a calibrated model."
                ),
                Plot(transform_figure(actual, forecasts), "Histogram of probability integral transforms"),
                Text(
                    "Share of actual prices below each forecast quantile: on the diagonal for a calibrated model."
                ),
                Plot(
                    calibration_figure(actual, {"model": forecasts, **done.baselines}),
                    "Share of actual prices below each forecast quantile, for the model and for each baseline",
                ),
                grid_of(intervals_table(done.scores().evaluations)),
            ],
        ),
        Section(
            "Against the baselines", [grid_of(_comparisons_table(done)), Text(P_VALUES), *_direction(done)]
        ),
    ]
    write_page(path, title, notes, sections)
