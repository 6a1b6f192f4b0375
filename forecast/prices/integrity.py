"""Integrity rules that make prices usable, and the report of their findings and actions.

Nothing is dropped without being counted, nothing is filled in, and no large move is ever treated as an
error: real prices move by a third in a day.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Dates = NDArray[np.datetime64]

STALE_RUN = 5
"""Number of identical consecutive values that make a stale run."""


@dataclass(frozen=True)
class RuleResult:
    """The findings of one rule and the action it took."""

    rule: str
    found: int
    action: str
    detail: str = ""


@dataclass(frozen=True)
class IntegrityReport:
    """The results of all rules, in the order they were applied, including those that found nothing."""

    rows_in: int
    rows_out: int
    rules: tuple[RuleResult, ...]

    def lines(self) -> list[str]:
        """Describe the report to a person: one line for each rule that found something."""
        found = [rule for rule in self.rules if rule.found]
        if not found:
            return [f"{self.rows_in} rows read, nothing to repair"]
        return [
            f"{rule.rule.replace('_', ' ')}: {rule.found}, {rule.action}{f' ({rule.detail})' if rule.detail else ''}"
            for rule in found
        ]


def check_integrity(
    dates: Dates,
    matrix: NDArray[np.float64],
    columns: Sequence[str],
    *,
    as_of: dt.date | np.datetime64,
    expected: Callable[[np.datetime64, np.datetime64], Dates] | None = None,
    unit: str = "session",
    show: Callable[[Dates], list[str]] | None = None,
    keep_non_positive: bool = False,
) -> tuple[Dates, NDArray[np.float64], IntegrityReport]:
    """Apply every rule; applying them again to the result finds nothing more to drop.

    Args:
        dates: shape (n,), days or times, in any order.
        matrix: prices, shape (n, columns), the feature first; a row is usable when each of its values is.
        columns: names of the columns.
        as_of: the first day or time that was not complete when the prices were taken.
        expected: returns the bars that the calendar has between two dates; without it, no hole is looked for.
        unit: what a bar is called.
        show: writes dates for a person; without it, as they are.
        keep_non_positive: count zero and negative prices but keep them.

    Returns:
        Dates, strictly increasing; their rows of the matrix, finite; and the report. Empty when no row was usable.
    """
    show = show or _as_written
    rows_in = len(matrix)
    rules = []

    dates, matrix, rule = _usable("non_finite", dates, matrix, np.isfinite(matrix), columns, keep=False)
    rules.append(rule)
    dates, matrix, rule = _usable("non_positive", dates, matrix, matrix > 0, columns, keep=keep_non_positive)
    rules.append(rule)

    steps = np.diff(dates) / np.timedelta64(1, "D")
    rules.append(RuleResult("unsorted", int((steps < 0).sum()), "steps back in time, rows sorted by date"))
    order = np.argsort(dates, kind="stable")
    dates, matrix = dates[order], matrix[order]

    last_of_day = np.append(dates[1:] != dates[:-1], True)[: len(dates)]
    repeated = ~last_of_day
    changed = (matrix[:-1] != matrix[1:]).any(axis=1)
    differing = int((repeated[:-1] & changed).sum())
    detail = f"{differing} disagreed with the next" if repeated.any() else ""
    rules.append(RuleResult("duplicate_dates", int(repeated.sum()), "rows dropped, the last kept", detail))
    dates, matrix = dates[last_of_day], matrix[last_of_day]

    complete = dates < np.datetime64(as_of)
    unfinished = dates[~complete]
    detail = f"from {show(unfinished[:1])[0]} on, not over yet" if len(unfinished) > 1 else ""
    rules.append(RuleResult("partial_last_day", len(unfinished), "rows dropped", detail))
    dates, matrix = dates[complete], matrix[complete]

    rules.append(_holes(dates, expected, unit, show))
    rules.append(_stale_runs(dates, matrix[:, 0], show))
    return dates, matrix, IntegrityReport(rows_in, len(matrix), tuple(rules))


def _usable(
    rule: str,
    dates: Dates,
    matrix: NDArray[np.float64],
    good: NDArray[np.bool_],
    columns: Sequence[str],
    *,
    keep: bool,
) -> tuple[Dates, NDArray[np.float64], RuleResult]:
    """Count the rows with a value that is not good, and drop them unless ``keep``."""
    rows = np.logical_and.reduce(good, axis=1)
    bad = zip(columns, (~good).sum(axis=0), strict=True)
    detail = ", ".join(f"{name} on {count}" for name, count in bad if count)
    result = RuleResult(rule, int((~rows).sum()), "rows kept" if keep else "rows dropped", detail)
    return (dates, matrix, result) if keep else (dates[rows], matrix[rows], result)


def _as_written(dates: Dates) -> list[str]:
    return [str(date) for date in dates]


def _holes(
    dates: Dates,
    expected: Callable[[np.datetime64, np.datetime64], Dates] | None,
    unit: str,
    show: Callable[[Dates], list[str]],
) -> RuleResult:
    """Runs of missing bars."""
    bars = expected(dates[0], dates[-1]) if expected and len(dates) else dates
    missing = ~np.isin(bars, dates)
    if not missing.any():
        return RuleResult("holes", 0, "kept")
    before = np.searchsorted(dates, bars[missing]) - 1
    holes, lengths = np.unique(before, return_counts=True)
    at = int(holes[np.argmax(lengths)])
    units = f"{missing.sum()} {unit}{'' if missing.sum() == 1 else 's'}"
    detail = f"{units} missing, the longest between {' and '.join(show(dates[at : at + 2]))}"
    return RuleResult("holes", len(holes), "kept, never filled in", detail)


def _stale_runs(dates: Dates, values: NDArray[np.float64], show: Callable[[Dates], list[str]]) -> RuleResult:
    starts = np.flatnonzero(np.append(True, values[1:] != values[:-1])) if len(values) else np.array([], int)
    lengths = np.diff(np.append(starts, len(values)))
    runs = np.flatnonzero(lengths >= STALE_RUN)
    if not len(runs):
        return RuleResult("stale_runs", 0, "kept")
    longest = int(runs[np.argmax(lengths[runs])])
    detail = f"the longest of {lengths[longest]} rows from {show(dates[starts[longest : longest + 1]])[0]}"
    return RuleResult("stale_runs", len(runs), "kept", detail)
