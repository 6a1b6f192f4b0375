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
from forecast.backtest.rolling import Backtest
from forecast.backtest.scored import Scored, Scores
from forecast.pages.describe import WIDTH_DIGITS, intervals_table
from forecast.pages.page import Plot, Section, Text, grid_of, write_page
from forecast.pages.plots import REFERENCE, calibration_figure, forecast_figure, transform_figure
from forecast.scores.distribution import MAIN_LEVEL
from forecast.scores.metrics import interval_bounds, value_text

ROWS_FILE = "backtest.csv"
SUMMARY_FILE = "backtest.json"
PAGE_FILE = "backtest.html"
FILES = {
    ROWS_FILE: "every forecast of one step: date, fold, seed, actual price, persistence, forecast, bounds of the 90 % "
    "interval",
    SUMMARY_FILE: "scores of each fold, of all rows and of each horizon, tests against the baselines, configuration, "
    "data",
    PAGE_FILE: "a page for people: forecasts, reliability of the intervals, the baselines, horizons; it opens without "
    "a network",
}
"""The files of a backtest and their content."""

SCORE_TITLES = ("MAE", "persistence", "MASE", "CRPS", "persistence", "in 90 %")
P_VALUES = "p-values are not corrected for multiple tests: by chance, one in twenty is below 0.05"
AHEAD = (
    "A forecast of several steps is made from before a scored row, and its target is in the same fold; ratios below 1: "
    "the model is better (p of Diebold-Mariano)"
)


def print_backtest(done: Backtest, console: Console) -> None:
    """Print tables of the folds, all rows, the intervals, the tests and the horizons."""
    tables = [_folds_table(done), intervals_table(done.scores().evaluations), _comparisons_table(done)]
    lines = [*_own_tests(done), Text(P_VALUES)]
    if len(done.ahead) > 1:
        tables += [_horizons_table(done), _ratios_table(done)]
        lines.insert(0, Text(AHEAD))
    for table in tables:
        console.print(table)
    for line in lines:
        console.print(line.text, markup=False, highlight=False, soft_wrap=True)


def _table(*titles: str, words: Sequence[str]) -> Table:
    """An empty table; columns whose titles are among ``words`` hold words, the others numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for title in titles:
        table.add_column(title, justify="left" if title in words else "right", no_wrap=True)
    return table


def _folds_table(done: Backtest) -> Table:
    table = _table("fold", "scored", "rows", *SCORE_TITLES, words=("fold", "scored"))
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


def _horizons_table(done: Backtest) -> Table:
    table = _table("steps", "rows", *SCORE_TITLES, "mean width", "persistence's", words=())
    for horizon, scored in done.ahead.items():
        scores = scored.scores()
        interval = scores.main_interval
        widths = (
            value_text(width, digits=WIDTH_DIGITS) for width in (interval.width, interval.persistence_width)
        )
        table.add_row(f"{horizon}", *_cells(scores, len(scored.rows.actual)), *widths)
    return table


def _ratios_table(done: Backtest) -> Table:
    """Ratios of the metrics to each baseline's, with the test's p-value, one column for each horizon."""
    steps = [f"{horizon} step{'s' if horizon > 1 else ''} (p)" for horizon in done.ahead]
    table = _table("against", "of", *steps, words=("against", "of"))
    every = [scored.comparisons() for scored in done.ahead.values()]
    for same in zip(*every, strict=True):
        cells = [f"{_ratio(found.ratio)} ({_p_value(found.p_value)})" for found in same]
        table.add_row(same[0].baseline, same[0].metric, *cells)
    return table


def _own_tests(done: Backtest) -> list[Text]:
    """Lines on the tests of the shown interval, and on how often the direction was right, if any row counts."""
    p_values = {found.test: _p_value(found.p_value) for found in done.ahead[1].own_tests() if found.seed == 1}
    lines = [
        f"{100 * MAIN_LEVEL:g} % interval: Kupiec p {p_values['Kupiec']}, Christoffersen p "
        f"{p_values['Christoffersen']} (small: its coverage is wrong, or its misses come in clusters; first seed)"
    ]
    direction = done.scores().evaluations[0].direction
    if direction and direction.accuracy is not None:
        lines.append(
            f"Direction right on {100 * direction.accuracy:.1f} % of {direction.rows} {done.timeline.unit}s (95 % "
            f"interval {100 * (direction.low or 0):.1f} to {100 * (direction.high or 0):.1f} %; "
            f"Pesaran-Timmermann p {p_values['Pesaran-Timmermann']}; first seed)"
        )
    return [Text(line) for line in lines]


def _cells(scores: Scores, rows: int) -> list[str]:
    """The number of rows, and the cells of ``SCORE_TITLES``."""

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
        f"{100 * scores.main_interval.coverage:.1f} %",
    ]


def _comparisons_table(done: Backtest) -> Table:
    table = _table("against", "of", "ratio", "test", "statistic", "p", words=("against", "of", "test"))
    for found in done.comparisons():
        table.add_row(
            found.baseline,
            found.metric,
            _ratio(found.ratio),
            found.test,
            f"{found.statistic:+.2f}",
            _p_value(found.p_value),
        )
    return table


def _ratio(ratio: float | None) -> str:
    return "" if ratio is None else value_text(ratio, relative=True)


def _p_value(p_value: float) -> str:
    return f"{p_value:.3f}" if p_value >= 0.001 else "< 0.001"


def summarize(done: Backtest) -> dict[str, Any]:
    """The backtest as plain values."""

    def metrics(found: Scores) -> dict[str, Any]:
        return {
            "rows": found.evaluations[0].rows,
            "mean": found.mean,
            "spread": found.std,
            "persistence": found.persistence,
        }

    def scores(number: int | None) -> dict[str, Any]:
        found = done.scores(number)
        return {**metrics(found), "seeds": [asdict(evaluation) for evaluation in found.evaluations]}

    def ahead(scored: Scored) -> dict[str, Any]:
        found = scored.scores()
        return {
            "horizon": scored.horizon,
            **metrics(found),
            "intervals": [asdict(interval) for interval in found.intervals],
            "comparisons": [asdict(comparison) for comparison in scored.comparisons()],
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
        "own_tests": [asdict(test) for test in done.ahead[1].own_tests()],
        "horizons": [ahead(scored) for scored in done.ahead.values()],
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
                    calibration_figure(actual, {"model": forecasts, **done.ahead[1].baselines}),
                    "Share of actual prices below each forecast quantile, for the model and for each baseline",
                ),
                grid_of(intervals_table(done.scores().evaluations)),
            ],
        ),
        Section(
            "Against the baselines", [grid_of(_comparisons_table(done)), *_own_tests(done), Text(P_VALUES)]
        ),
    ]
    if len(done.ahead) > 1:
        tables = [grid_of(_horizons_table(done)), grid_of(_ratios_table(done))]
        sections.append(Section("By horizon", [Text(AHEAD), *tables]))
    write_page(path, title, notes, sections)
