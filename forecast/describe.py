"""What the commands say of a series and of intervals, in plain words; the same for each of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich import box
from rich.table import Table

from forecast.config import DataConfig
from forecast.evaluation import LEVELS, Evaluation
from forecast.series import Series
from forecast.split import split_rows


def series_lines(series: Series, config: DataConfig) -> list[str]:
    """Lines on where the prices came from, what was repaired and how they are split."""
    where, dates = series.provenance, series.dates
    split = split_rows(len(series), config.train_ratio, config.val_ratio_within_train)
    return [
        f"{series.symbol} {series.feature} from {where.source}: {len(series)} rows, {where.first_date} to "
        f"{where.last_date}",
        *(f"  {line}" for line in series.integrity.lines()),
        f"  train {split.train_end} rows to {dates[split.train_end - 1]}, validation "
        f"{split.validation_end - split.train_end} to {dates[split.validation_end - 1]}, test "
        f"{split.rows - split.validation_end} to {dates[-1]}",
    ]


def intervals_table(evaluations: Sequence[Evaluation]) -> Table:
    """Share of rows in the intervals of each level and their mean width, beside persistence's.

    Args:
        evaluations: of one model, or of several trainings of it on the same rows, over which the mean is taken.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for title in ("interval", "rows in it", "mean width", "persistence's", "mean width"):
        table.add_column(title, justify="left" if title == "interval" else "right", no_wrap=True)
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
