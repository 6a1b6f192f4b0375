"""Prepared panels: the normalized series of many symbols, split at the same dates, for one model of all.

Each symbol is normalized on its own training rows. The recursions of the volatility are shared: in units of its own
training changes, every symbol's variance is one, and all of them together tell a recursion better than one alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from forecast.config import DataConfig
from forecast.errors import DataError
from forecast.model.split import MIN_TARGETS, Part, Split, split_rows
from forecast.model.volatility import fit_recursion
from forecast.model.windows import PreparedSeries, prepare
from forecast.prices.panel import Panel
from forecast.prices.series import Provenance, Series

FITTED_CHANGES = 100_000
"""Most changes, of as many symbols, that the shared recursion is fitted on: more take time and hardly change it."""


@dataclass(frozen=True)
class PreparedPanel:
    """Normalized series by symbol, split at the same dates.

    Attributes:
        series: by symbol.
        provenances: the origin of each series.
        left_out: why each of the other symbols cannot be used, in one line.
        first_validated, first_tested: the dates or times at which the validation and the test rows begin.
    """

    series: Mapping[str, PreparedSeries]
    provenances: Mapping[str, Provenance]
    left_out: Mapping[str, str]
    first_validated: np.datetime64
    first_tested: np.datetime64

    @property
    def parts(self) -> tuple[PreparedSeries, ...]:
        """The series, in the order of their symbols."""
        return tuple(self.series.values())

    def without_test(self) -> PreparedPanel:
        """The same panel without its test rows, for a search, which must not see them."""
        return replace(self, series={symbol: part.without_test() for symbol, part in self.series.items()})


def prepare_panel(panel: Panel, config: DataConfig, longest_window: int) -> PreparedPanel:
    """Split every series at the same dates, and normalize each on its own training rows.

    The dates part the panel's sessions, those on which any symbol has a row, by the ratios. A symbol that has too few
    rows in a part, or whose training values do not vary, is left out.

    Args:
        panel: clean prices.
        config: ratios of the split, and whether to take the logarithm of prices.
        longest_window: the largest ``sequence_length`` that is trained.

    Raises:
        DataError: when no symbol is left.
    """
    sessions = np.unique(np.concatenate([series.dates for series in panel.series.values()]))
    borders = split_rows(len(sessions), config.train_ratio, config.val_ratio_within_train)
    if borders.validation_end >= len(sessions):
        raise DataError(f"the panel has {len(sessions)} sessions, too few to split; give a longer history")
    validated, tested = sessions[[borders.train_end, borders.validation_end]]
    prepared, left_out = {}, dict(panel.left_out)
    for symbol, series in panel.series.items():
        split = _split(series, validated, tested)
        problem = _too_few(split, longest_window)
        if problem is None:
            try:
                prepared[symbol] = prepare(series, config, split)
            except DataError as error:
                problem = str(error)
        if problem is not None:
            left_out[symbol] = problem
    if not prepared:
        first, reason = next(iter(left_out.items()))
        raise DataError(f"none of the {len(left_out)} symbols can be used; {first}: {reason}")
    changes = np.concatenate([part.train_changes for part in prepared.values()])
    share = -(-len(changes) // FITTED_CHANGES)
    shared = fit_recursion(np.concatenate([part.train_changes for part in list(prepared.values())[::share]]))
    return PreparedPanel(
        {symbol: replace(part, shared_recursion=shared) for symbol, part in prepared.items()},
        {symbol: panel.series[symbol].provenance for symbol in prepared},
        left_out,
        validated,
        tested,
    )


def _split(series: Series, validated: np.datetime64, tested: np.datetime64) -> Split:
    train_end, validation_end = np.searchsorted(series.dates, np.array([validated, tested]))
    return Split(int(train_end), int(validation_end), len(series))


def _too_few(split: Split, longest_window: int) -> str | None:
    """Why a symbol's rows are too few, in one line; None when they are enough."""
    parts: dict[Part, str] = {
        "train": "training",
        "validation": "validation",
        "test": "test",
    }
    for part, name in parts.items():
        count = len(split.targets(part, longest_window))
        if count < MIN_TARGETS:
            return (
                f"{count} {name} rows can be forecast from windows of {longest_window}, at least {MIN_TARGETS} are "
                "needed; it has too short a history"
            )
    return None
