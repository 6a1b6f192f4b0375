"""What the commands say of a series, in plain words; the same for each of them."""

from __future__ import annotations

from forecast.config import DataConfig
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
