"""Prepared panels: the normalized series of many symbols, split at the same dates, for one model of them all.

Each symbol is normalized on its own training rows. The recursions of the volatility are shared: in units of its own
training changes, every symbol's variance is one, and a fit on all of them is better than a fit on one alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from forecast.config import DataConfig, PanelOptions
from forecast.errors import DataError, UsageError
from forecast.model.market import LEAST_SYMBOLS, Market, moves_of
from forecast.model.split import MIN_TARGETS, Part, Split, split_rows
from forecast.model.volatility import fit_recursion
from forecast.model.windows import PreparedSeries, prepare
from forecast.prices.panel import Panel
from forecast.prices.series import Dates, Provenance, Series
from forecast.scores.metrics import Evaluation, mean_evaluation

Array = NDArray[np.float64]

FITTED_CHANGES = 100_000
"""About the most changes that a shared recursion is fitted on: more take time and hardly change it."""


@dataclass(frozen=True)
class PreparedPanel:
    """Normalized series by symbol, split at the same dates.

    Attributes:
        series: by symbol.
        provenances: the origin of each series.
        sessions: for each series, held-out ones too, the number of each row's session in the whole panel, shape
            (n,).
        left_out: by symbol, why each of the others cannot be used, in one line.
        borders: the split of the panel's sessions.
        dates: the dates or times of these sessions, shape (sessions,).
        market: the units of the market's columns; None where too few symbols have changes.
        held_out: series of the held-out symbols, split in the same way; they are only scored.
    """

    series: Mapping[str, PreparedSeries]
    provenances: Mapping[str, Provenance]
    sessions: Mapping[str, NDArray[np.intp]]
    left_out: Mapping[str, str]
    borders: Split
    dates: Dates
    market: Market | None = None
    held_out: Mapping[str, PreparedSeries] = field(default_factory=dict)

    @property
    def parts(self) -> tuple[PreparedSeries, ...]:
        """The series, in the order of their symbols."""
        return tuple(self.series.values())

    def session_range(self, part: Part) -> tuple[int, int]:
        """Numbers of the first session of a part and of the session after its last one."""
        edges = [0, self.borders.train_end, self.borders.validation_end, self.borders.rows]
        at = ("train", "validation", "test").index(part)
        return edges[at], edges[at + 1]

    def without_test(self) -> PreparedPanel:
        """The same panel without test rows and held-out symbols, for a search, which must not see them."""
        return replace(
            self, series={symbol: part.without_test() for symbol, part in self.series.items()}, held_out={}
        )

    def without_market(self) -> PreparedPanel:
        """The same panel without the market, as where it is not known."""
        return replace(self, series={symbol: part.without_market() for symbol, part in self.series.items()})


Prepared = PreparedSeries | PreparedPanel
"""What one model is trained on."""


def evaluation_of(prepared: Prepared, evaluations: Sequence[Evaluation]) -> Evaluation:
    """The evaluation of a series, in price units, or of a panel, as ``mean_evaluation``."""
    return evaluations[0] if isinstance(prepared, PreparedSeries) else mean_evaluation(evaluations)


def held_out(panel: Panel, options: PanelOptions, seed: int, known: Collection[str] = ()) -> frozenset[str]:
    """Draw the held-out symbols, which a model is not trained on.

    Args:
        panel: clean prices.
        options: the share of the symbols.
        seed: decides which.
        known: symbols that the model to start from was trained on, which are never drawn.

    Raises:
        UsageError: when the share would hold out no symbol, all symbols, or more than there are to draw from.
    """
    count = round(options.holdout_symbols * len(panel))
    if options.holdout_symbols and not 0 < count < len(panel):
        raise UsageError(
            f"`holdout_symbols` {options.holdout_symbols:g} holds out {count} of {len(panel)} symbols; give a share "
            "that holds out some and leaves some"
        )
    unknown = sorted(panel.series.keys() - set(known))
    if len(unknown) < count:
        raise UsageError(
            f"`holdout_symbols` {options.holdout_symbols:g} holds out {count} symbols, but the model of `start_from` "
            f"was trained on all but {len(unknown)} of {len(panel)}; give a smaller share, or another model"
        )
    return frozenset(np.random.default_rng(seed).permutation(unknown)[:count].tolist())


def prepare_panel(
    panel: Panel,
    config: DataConfig,
    longest_window: int,
    split: Callable[[int], Split] | None = None,
    held_out: Collection[str] = (),
) -> PreparedPanel:
    """Split every series at the same dates, and normalize each on its own training rows.

    The ratios split the panel's sessions, those on which any symbol has a row. A symbol that has too few rows in a
    part, or whose training values do not vary, is left out.

    Args:
        panel: clean prices.
        config: ratios of the split, and whether to take the logarithm of prices.
        longest_window: the largest ``sequence_length`` that is trained.
        split: splits a number of sessions in another way; None for the ratios.
        held_out: the held-out symbols: nothing is fitted on them, but their dates count in the split.

    Raises:
        DataError: when no symbol is left.
    """
    kept, left_out = dict(panel.series), dict(panel.left_out)
    while True:
        sessions = np.unique(np.concatenate([series.dates for series in kept.values()]))
        borders = (
            split(len(sessions))
            if split
            else split_rows(len(sessions), config.train_ratio, config.val_ratio_within_train)
        )
        prepared, problems = _prepared(kept, config, sessions, borders, longest_window)
        left_out |= problems
        if not prepared.keys() - set(held_out):
            reasons = [f"; {symbol}: {reason}" for symbol, reason in left_out.items()][:1]
            raise DataError(f"no symbol can be used ({len(left_out)} left out){''.join(reasons)}")
        if not problems:
            break
        # A symbol that is left out has no say in the split: the others are split again without it.
        kept = {symbol: panel.series[symbol] for symbol in prepared}
    every = {symbol: part for symbol, part in prepared.items() if symbol not in held_out}
    parts = list(every.values())
    fitted_on = parts[:: fitting_step(parts)]
    changes = np.concatenate([part.train_changes for part in fitted_on])
    ranges = [found for part in fitted_on if (found := part.train_ranges) is not None]
    shared = fit_recursion(changes)
    shared_range = fit_recursion(changes, np.concatenate(ranges)) if ranges else None
    at = {symbol: np.searchsorted(sessions, panel.series[symbol].dates) for symbol in prepared}
    market, columns = _market(every, at, borders)
    whole = {
        symbol: replace(
            part,
            shared_recursion=shared,
            shared_range_recursion=shared_range,
            market=None if columns is None else columns[at[symbol]],
        )
        for symbol, part in prepared.items()
    }
    return PreparedPanel(
        series={symbol: whole[symbol] for symbol in every},
        provenances={symbol: panel.series[symbol].provenance for symbol in prepared},
        sessions=at,
        left_out=left_out,
        borders=borders,
        dates=sessions,
        market=market,
        held_out={symbol: part for symbol, part in whole.items() if symbol not in every},
    )


def _market(
    prepared: Mapping[str, PreparedSeries], sessions: Mapping[str, NDArray[np.intp]], borders: Split
) -> tuple[Market | None, Array | None]:
    """The units of the market's columns, and the columns (sessions, 2); None where there are too few symbols."""
    moves = moves_of(
        [part.changes for part in prepared.values()],
        [sessions[symbol][1:] for symbol in prepared],
        borders.rows,
    )
    market = Market.fit(moves[: borders.train_end])
    return market, market.columns(moves) if market else None


def require_market(prepared: Prepared) -> None:
    """Check that the market is known.

    Raises:
        DataError: when it is not.
    """
    if prepared.market is None:
        raise DataError(
            f"`market` needs sessions in which at least {LEAST_SYMBOLS} symbols have a change; give more `symbols`, or "
            "omit `market`"
        )


def fitting_step(parts: Sequence[PreparedSeries]) -> int:
    """Every how many of a panel's series a shared recursion is fitted on, for about ``FITTED_CHANGES`` changes."""
    return -(-sum(part.split.train_end for part in parts) // FITTED_CHANGES)


def _prepared(
    kept: Mapping[str, Series], config: DataConfig, sessions: Dates, borders: Split, longest_window: int
) -> tuple[dict[str, PreparedSeries], dict[str, str]]:
    """Each series, normalized and split at the borders; and why each of the others cannot be used."""
    prepared, problems = {}, {}
    for symbol, series in kept.items():
        own = _split_at(borders, np.searchsorted(sessions, series.dates))
        problem = too_few(own, longest_window, tested=borders.validation_end < borders.rows)
        if problem is None:
            try:
                prepared[symbol] = prepare(series, config, own)
            except DataError as error:
                problem = str(error)
        if problem is not None:
            problems[symbol] = problem
    return prepared, problems


def _split_at(borders: Split, sessions: NDArray[np.intp]) -> Split:
    """The split, at the panel's borders, of a series whose rows have these session numbers."""
    train_end, validation_end = np.searchsorted(sessions, [borders.train_end, borders.validation_end])
    return Split(int(train_end), int(validation_end), len(sessions))


def too_few(split: Split, longest_window: int, *, tested: bool) -> str | None:
    """Why a symbol has too few rows, in one line; None when it has enough."""
    parts: dict[Part, str] = {"train": "training", "validation": "validation"}
    if tested:
        parts["test"] = "test"
    for part, name in parts.items():
        count = len(split.targets(part, longest_window))
        if count < MIN_TARGETS:
            return (
                f"{count} {name} rows can be forecast from windows of {longest_window}, but at least {MIN_TARGETS} "
                "are needed: its history is too short or ends too early; shorter windows (sequence_length) need fewer "
                "rows"
            )
    return None
