"""The scores of each symbol of a panel on the test rows, beside persistence's and GARCH's."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from forecast.atomic import write_csv
from forecast.backtest.baselines import BASELINES
from forecast.backtest.significance import diebold_mariano
from forecast.errors import DataError
from forecast.model.checkpoint import Checkpoint
from forecast.model.panel import PreparedPanel
from forecast.model.training import forecast_each
from forecast.model.unseen import forecast_unseen
from forecast.model.windows import PreparedSeries
from forecast.pages.page import Grid
from forecast.scores.distribution import MAIN_LEVEL
from forecast.scores.metrics import METRICS, Evaluation, Forecasts, evaluate_forecasts, value_text
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


@dataclass(frozen=True)
class SymbolScores:
    """The scores of every symbol of a panel.

    Attributes:
        seen: those of the symbols that the model was trained on.
        without_market: theirs where the market is not known; empty for a model that never sees it.
        unseen: those of the held-out symbols, forecast as a served model answers for symbols that it does not know.
    """

    seen: list[SymbolScore] = field(default_factory=list)
    without_market: list[SymbolScore] = field(default_factory=list)
    unseen: list[SymbolScore] = field(default_factory=list)


def score_symbols(checkpoint: Checkpoint, prepared: PreparedPanel, connect: Connect) -> SymbolScores:
    """Score a model on each symbol's test rows, beside the baseline, which the cluster fits on the rows before them.

    Args:
        checkpoint: the model.
        prepared: the panel.
        connect: connects to the cluster.
    """
    connect()
    shared, model = ray.put(prepared), ray.put(checkpoint)
    symbols = [*prepared.series, *prepared.held_out]
    work = ray.remote(num_cpus=1)(_forecast_apart)
    tasks = [
        work.remote(shared, model, symbols[first : first + AT_A_TIME])
        for first in range(0, len(symbols), AT_A_TIME)
    ]
    ours = dict(zip(prepared.series, forecast_each(checkpoint, prepared, "test"), strict=True))
    blind = {}
    if checkpoint.market:
        hidden = forecast_each(checkpoint, prepared.without_market(), "test")
        blind = dict(zip(prepared.series, hidden, strict=True))
    try:
        apart = {symbol: found for each in ray.get(tasks) for symbol, found in each.items()}
    except ray.exceptions.RayError:  # the model is scored all the same
        apart = {symbol: Apart(None, None) for symbol in symbols}
    return SymbolScores(
        seen=[_score(prepared, symbol, found, apart[symbol].baseline) for symbol, found in ours.items()],
        without_market=[
            _score(prepared, symbol, found, apart[symbol].baseline) for symbol, found in blind.items()
        ],
        unseen=[
            _score(prepared, symbol, found, apart[symbol].baseline)
            for symbol in prepared.held_out
            if (found := apart[symbol].unseen)
        ],
    )


@dataclass(frozen=True)
class Apart:
    """Forecasts of one symbol's test rows that the cluster makes: the baseline's, and the model's of a held-out symbol.

    Either is None where it cannot be made.
    """

    baseline: Forecasts | None
    unseen: Forecasts | None


def _forecast_apart(
    prepared: PreparedPanel, checkpoint: Checkpoint, symbols: Sequence[str]
) -> dict[str, Apart]:
    """The forecasts of some symbols."""
    found = {}
    for symbol in symbols:
        baseline = unseen = None
        # Whatever an optimizer raises on one symbol's prices, the other symbols are scored.
        with contextlib.suppress(Exception):
            baseline = BASELINES[BASELINE](_series_of(prepared, symbol), (1,))[1]
        if symbol in prepared.held_out:
            with contextlib.suppress(DataError):
                series = prepared.held_out[symbol].without_market()
                unseen = forecast_unseen(checkpoint, series, "test", symbol)
        found[symbol] = Apart(baseline, unseen)
    return found


def _series_of(prepared: PreparedPanel, symbol: str) -> PreparedSeries:
    return prepared.series.get(symbol) or prepared.held_out[symbol]


def _score(prepared: PreparedPanel, symbol: str, ours: Forecasts, theirs: Forecasts | None) -> SymbolScore:
    series = _series_of(prepared, symbol)
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


def symbol_lines(scores: SymbolScores, left_out: int) -> list[str]:
    """Lines that compare the model with others over all symbols, and say how many were left out."""
    kinds = {
        f"Test {METRIC}": scores.seen,
        f"Without the market, test {METRIC}": scores.without_market,
        f"On held-out symbols, test {METRIC}": scores.unseen,
    }
    lines = [
        _comparison_line(start, to, found)
        for start, each in kinds.items()
        for to in ("persistence", BASELINE)
        if (found := compare(each, to)) is not None
    ]
    if left_out:
        lines.append(
            f"{left_out} symbol{'s were' if left_out > 1 else ' was'} left out: symbols.csv says why"
        )
    return lines


def _comparison_line(start: str, to: str, found: Comparison) -> str:
    p_value = "" if found.p_value is None else f" (p {found.p_value:.2g}, by session)"
    ratio = value_text(found.ratio, relative=True)
    return (
        f"{start} is on average {ratio} of {to}'s over {found.symbols} symbols{p_value}, and lower on "
        f"{100 * found.better:.0f} % of them"
    )


def symbols_grid(scores: SymbolScores) -> Grid:
    """A table of the symbols' ratios and coverages, best first by the ratio to persistence."""
    every = sorted([*scores.seen, *scores.unseen], key=lambda score: score.ratio("persistence") or math.inf)
    unseen = {score.symbol for score in scores.unseen}
    header = [
        "symbol",
        "test rows",
        f"{METRIC} / persistence's",
        f"{METRIC} / {BASELINE}'s",
        "MAE / persistence's",
    ]
    levels = [f"in {100 * each.level:g} %" for each in every[0].test.intervals] if every else []
    rows = []
    for score in every:
        ratios = [score.ratio("persistence"), score.ratio(BASELINE)]
        naive = score.test.persistence["MAE"]
        ratios.append(score.test.model["MAE"] / naive if naive > 0 else None)
        shown = ["" if ratio is None else value_text(ratio, relative=True) for ratio in ratios]
        covered = [f"{100 * each.coverage:.1f} %" for each in score.test.intervals]
        name = f"{score.symbol} (held out)" if score.symbol in unseen else score.symbol
        rows.append([name, str(score.test.rows), *shown, *covered])
    return Grid([*header, *levels], rows, explored=True)


def write_symbols(scores: SymbolScores, prepared: PreparedPanel, path: Path) -> None:
    """Write a line for each symbol: its scores beside persistence's and the baseline's, or why it was left out."""
    rows: list[dict[str, Any]] = []
    blind = {score.symbol: score.test.model[METRIC] for score in scores.without_market}
    for score in [*scores.seen, *scores.unseen]:
        interval = next((each for each in score.test.intervals if each.level == MAIN_LEVEL), None)
        rows.append(
            {
                "symbol": score.symbol,
                "seen": score.symbol in prepared.series,
                "rows": len(_series_of(prepared, score.symbol).normalized),
                "test_rows": score.test.rows,
                **{f"test_{name}": score.test.model[name] for name in METRICS},
                f"test_{METRIC}_without_market": blind.get(score.symbol),
                **{f"persistence_test_{name}": score.test.persistence[name] for name in METRICS},
                **{f"{BASELINE}_test_{name}": (score.baseline or {}).get(name) for name in METRICS},
                "test_in_90": interval.coverage if interval else None,
            }
        )
    rows += [{"symbol": symbol, "left_out": reason} for symbol, reason in prepared.left_out.items()]
    write_csv(rows, path)
