"""The scores of each symbol of a panel on the test rows, beside persistence's and GARCH's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from forecast.atomic import write_csv
from forecast.backtest.baselines import BASELINES
from forecast.backtest.significance import diebold_mariano
from forecast.model.checkpoint import Checkpoint
from forecast.model.panel import PreparedPanel
from forecast.model.training import forecast_each
from forecast.pages.page import Grid
from forecast.scores.distribution import MAIN_LEVEL
from forecast.scores.metrics import METRICS, Evaluation, Forecasts, evaluate_forecasts
from tune_jobs.cluster import Connect

Array = NDArray[np.float64]

BASELINE = "GARCH"
"""The model, fitted on each symbol alone, that the panel's model is compared with."""
METRIC = "CRPS"
"""The metric of this comparison."""
AT_A_TIME = 8
"""Symbols per task that fits baselines: few enough to spread the work, enough to make up for the imports."""


@dataclass(frozen=True)
class SymbolScore:
    """One symbol's scores on its test rows.

    Attributes:
        symbol: its name.
        test: the model's and persistence's scores, in price units.
        baseline: the baseline's metrics; None where it could not be fitted.
        differences: the model's loss of each row minus the baseline's, divided by the baseline's mean loss, shape (n,).
        sessions: the number of each row's session, shape (n,).
    """

    symbol: str
    test: Evaluation
    baseline: dict[str, float] | None
    differences: Array
    sessions: NDArray[np.intp]

    def ratio(self, to: str) -> float | None:
        """The model's loss divided by that of ``persistence`` or the ``BASELINE``.

        None where there is none, or the price hardly moves, as for ``mean_evaluation``.
        """
        other = self.test.persistence if to == "persistence" else self.baseline
        comparable = other and other[METRIC] > 0 and not self.test.still
        return self.test.model[METRIC] / other[METRIC] if other and comparable else None


def score_symbols(checkpoint: Checkpoint, prepared: PreparedPanel, connect: Connect) -> list[SymbolScore]:
    """Score a model on each symbol's test rows, beside the baseline, which the cluster fits on the rows before them.

    Args:
        checkpoint: the model.
        prepared: the panel.
        connect: connects to the cluster.
    """
    forecasts = forecast_each(checkpoint, prepared, "test")
    connect()
    shared, symbols = ray.put(prepared), list(prepared.series)
    fit = ray.remote(num_cpus=1)(_fitted)
    tasks = [
        fit.remote(shared, symbols[first : first + AT_A_TIME]) for first in range(0, len(symbols), AT_A_TIME)
    ]
    try:
        baselines = [baseline for found in ray.get(tasks) for baseline in found]
    except ray.exceptions.RayError:  # the model is scored all the same
        baselines = [None] * len(symbols)
    return [
        _score(prepared, symbol, ours, theirs)
        for symbol, ours, theirs in zip(symbols, forecasts, baselines, strict=True)
    ]


def _fitted(prepared: PreparedPanel, symbols: Sequence[str]) -> list[Forecasts | None]:
    """The baseline's forecasts of the test rows of some symbols; None where it cannot be fitted."""
    found: list[Forecasts | None] = []
    for symbol in symbols:
        try:
            found.append(BASELINES[BASELINE](prepared.series[symbol], (1,))[1])
        except Exception:  # whatever an optimizer raises on one symbol's prices
            found.append(None)
    return found


def _score(prepared: PreparedPanel, symbol: str, ours: Forecasts, theirs: Forecasts | None) -> SymbolScore:
    series = prepared.series[symbol]
    rows, sessions = series.rows("test", 2), prepared.sessions[symbol][series.target_rows("test", 2)]
    test = evaluate_forecasts(rows, ours)
    if theirs is None:
        return SymbolScore(symbol, test, None, np.zeros(0), sessions[:0])
    losses, others = (rows.losses(METRIC, forecasts) for forecasts in (ours, theirs))
    differences = (losses - others) / max(float(others.mean()), np.finfo(float).tiny)
    return SymbolScore(symbol, test, evaluate_forecasts(rows, theirs).model, differences, sessions)


@dataclass(frozen=True)
class Comparison:
    """The model compared with another over all symbols.

    Attributes:
        symbols: number of symbols with both.
        ratio: mean of the ratios of their losses.
        better: share of the symbols with a ratio below one.
        p_value: that of Diebold and Mariano's test that the losses are equal; None for persistence. Its observations
            are the sessions, because the symbols of one session are not independent.
    """

    symbols: int
    ratio: float
    better: float
    p_value: float | None = None


def compare(scores: Sequence[SymbolScore], to: str) -> Comparison | None:
    """Compare the model with ``persistence`` or the ``BASELINE`` over all symbols; None where none has both."""
    ratios = [ratio for score in scores if (ratio := score.ratio(to)) is not None]
    if not ratios:
        return None
    p_value = None
    if to == BASELINE:
        last = max(int(score.sessions.max(initial=0)) for score in scores)
        sums, counts = np.zeros(last + 1), np.zeros(last + 1)
        for score in scores:
            sums[score.sessions] += score.differences
            counts[score.sessions] += 1
        by_session = sums[counts > 0] / counts[counts > 0]
        _, p_value = diebold_mariano(by_session, np.zeros(len(by_session)))
    return Comparison(len(ratios), float(np.mean(ratios)), float(np.mean(np.array(ratios) < 1)), p_value)


def symbol_lines(scores: Sequence[SymbolScore], left_out: int) -> list[str]:
    """Lines that compare the model with others over all symbols, and say how many were left out."""
    lines = []
    for to in ("persistence", BASELINE):
        found = compare(scores, to)
        if found is not None:
            p_value = "" if found.p_value is None else f" (p {found.p_value:.2g}, by session)"
            lines.append(
                f"Test {METRIC} is on average {found.ratio:.4f} of {to}'s over {found.symbols} symbols{p_value}, and "
                f"lower on {100 * found.better:.0f} % of them"
            )
    if left_out:
        lines.append(
            f"{left_out} symbol{'s were' if left_out > 1 else ' was'} left out: symbols.csv says why"
        )
    return lines


def symbols_grid(scores: Sequence[SymbolScore]) -> Grid:
    """A table of the symbols' ratios and coverages."""
    header = [
        "symbol",
        "test rows",
        f"{METRIC} / persistence's",
        f"{METRIC} / {BASELINE}'s",
        "MAE / persistence's",
    ]
    levels = [f"in {100 * each.level:g} %" for each in scores[0].test.intervals] if scores else []
    rows = []
    for score in scores:
        ratios = [score.ratio("persistence"), score.ratio(BASELINE)]
        naive = score.test.persistence["MAE"]
        ratios.append(score.test.model["MAE"] / naive if naive > 0 else None)
        shown = ["" if ratio is None else f"{ratio:.4f}" for ratio in ratios]
        covered = [f"{100 * each.coverage:.1f} %" for each in score.test.intervals]
        rows.append([score.symbol, str(score.test.rows), *shown, *covered])
    return Grid([*header, *levels], rows, explored=True)


def write_symbols(scores: Sequence[SymbolScore], prepared: PreparedPanel, path: Path) -> None:
    """Write a line for each symbol: its scores beside persistence's and the baseline's, or why it was left out."""
    rows: list[dict[str, Any]] = []
    for score in scores:
        interval = next((each for each in score.test.intervals if each.level == MAIN_LEVEL), None)
        rows.append(
            {
                "symbol": score.symbol,
                "rows": len(prepared.series[score.symbol].normalized),
                "test_rows": score.test.rows,
                **{f"test_{name}": score.test.model[name] for name in METRICS},
                **{f"persistence_test_{name}": score.test.persistence[name] for name in METRICS},
                **{f"{BASELINE}_test_{name}": (score.baseline or {}).get(name) for name in METRICS},
                "test_in_90": interval.coverage if interval else None,
            }
        )
    rows += [{"symbol": symbol, "left_out": reason} for symbol, reason in prepared.left_out.items()]
    write_csv(rows, path)
