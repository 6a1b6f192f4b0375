"""Descriptions of a series and of scores, the same in every command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from rich import box
from rich.table import Table

from forecast.config import DataConfig
from forecast.model.panel import PreparedPanel
from forecast.model.split import split_rows
from forecast.names import listed
from forecast.prices.panel import Panel
from forecast.prices.series import Series
from forecast.scores.metrics import LEVELS, Evaluation, label, value_text

NAMED_LEFT_OUT = 5
"""Number of symbols whose reasons for being left out are printed."""
WIDTH_DIGITS = 5
"""Significant digits of a mean width of intervals."""


def series_lines(series: Series, config: DataConfig) -> list[str]:
    """Lines on the source, the repairs and the split of the prices."""
    where = series.provenance
    split = split_rows(len(series), config.train_ratio, config.val_ratio_within_train)
    ends = np.array([split.train_end, split.validation_end, split.rows])
    train, validation, test = series.timeline.text(series.dates[ends - 1])
    return [
        f"{series.symbol} {series.feature} from {where.source}: {len(series)} rows, {where.first_date} to "
        f"{where.last_date}",
        f"  bars of {where.interval}, calendar {where.calendar}: {where.calendar_fit}",
        *(f"  {line}" for line in series.integrity.lines()),
        f"  train {split.train_end} rows to {train}, validation "
        f"{split.validation_end - split.train_end} to {validation}, test "
        f"{split.rows - split.validation_end} to {test}",
    ]


def panel_lines(panel: Panel) -> list[str]:
    """Lines on the source and the repairs of the prices of many symbols."""
    where = panel.provenance
    return [
        f"{len(panel)} symbols' {panel.feature} from {where.source}: {where.rows} rows, {where.first_date} to "
        f"{where.last_date}",
        f"  {listed(panel.series)}",
        *(f"  {line}" for line in panel.integrity.lines()),
    ]


def sessions_line(panel: Panel, prepared: PreparedPanel) -> str:
    """A line on the split of a panel's sessions."""
    split = prepared.borders
    ends = np.array([split.train_end, split.validation_end, split.rows])
    timeline = next(iter(panel.series.values())).timeline
    train, validation, test = timeline.text(prepared.dates[ends - 1])
    apart = f", {len(prepared.held_out)} held out ({listed(prepared.held_out)})" if prepared.held_out else ""
    return (
        f"  {len(prepared.series)} symbols used{apart}; train {split.train_end} sessions to {train}, validation "
        f"{split.validation_end - split.train_end} to {validation}, test {split.rows - split.validation_end} to {test}"
    )


def left_out_lines(left_out: Mapping[str, str]) -> list[str]:
    """Lines on the symbols that were left out, the first few with their reasons."""
    if not left_out:
        return []
    named = [f"  {symbol}: {reason}" for symbol, reason in list(left_out.items())[:NAMED_LEFT_OUT]]
    more = len(left_out) - NAMED_LEFT_OUT
    return [f"left out: {len(left_out)}", *named, *([f"  and {more} more"] if more > 0 else [])]


def intervals_table(evaluations: Sequence[Evaluation]) -> Table:
    """Table of the coverage and mean width of the intervals of each level, for the model and for persistence.

    Args:
        evaluations: one evaluation per training run of the model, all on the same rows, to be averaged.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for title in ("interval", "coverage", "mean width", "persistence's", "mean width"):
        table.add_column(title, justify="left" if title == "interval" else "right", no_wrap=True)
    for i, level in enumerate(LEVELS):
        found = [evaluation.intervals[i] for evaluation in evaluations]
        table.add_row(
            f"{100 * level:g} %",
            f"{100 * np.mean([interval.coverage for interval in found]):.1f} %",
            value_text(float(np.mean([interval.width for interval in found])), digits=WIDTH_DIGITS),
            f"{100 * found[0].persistence_coverage:.1f} %",
            value_text(found[0].persistence_width, digits=WIDTH_DIGITS),
        )
    return table


def evaluations_table(evaluations: dict[str, Evaluation], *, relative: bool = False) -> Table:
    """Table of the scores of the model and of persistence, one block of rows per part.

    Args:
        evaluations: by part.
        relative: whether the metrics are those of a panel, which have no unit.
    """
    table = Table()
    table.add_column("rows")
    table.add_column("metric")
    for column in ("model", "persistence", "skill"):
        table.add_column(column, justify="right")
    for part, evaluation in evaluations.items():
        for index, (name, value) in enumerate(evaluation.model.items()):
            skill = evaluation.skill[name]
            table.add_row(
                f"{part} ({evaluation.rows})" if index == 0 else "",
                label(name, relative=relative),
                value_text(value, relative=relative),
                value_text(evaluation.persistence[name], relative=relative),
                "" if skill is None else f"{100 * skill:+.2f} %",
            )
        for interval in evaluation.intervals:
            table.add_row(
                "",
                f"in {100 * interval.level:g} % interval",
                f"{100 * interval.coverage:.1f} %",
                f"{100 * interval.persistence_coverage:.1f} %",
                "",
            )
        direction = evaluation.direction
        if direction and direction.accuracy is not None:
            ends = f"{100 * (direction.low or 0):.0f} to {100 * (direction.high or 0):.0f}"
            table.add_row("", "direction right", f"{100 * direction.accuracy:.1f} % ({ends})", "", "")
        table.add_section()
    return table
