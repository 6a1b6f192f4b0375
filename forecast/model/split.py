"""The split into train, validation and test rows, by the date of the target row.

The boundaries depend on the number of rows and the two ratios alone, never on the window length, so that
models with different windows are scored on the same days. A window may reach back over a boundary; a
target may not.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Literal

from forecast.errors import DataError

Part = Literal["train", "validation", "test"]

MIN_TARGETS = 20
"""Fewest target rows of each part: with fewer, its metrics mean nothing."""


@dataclass(frozen=True)
class Split:
    """Row boundaries of one series: train is [0, train_end), validation [train_end, validation_end), then test."""

    train_end: int
    validation_end: int
    rows: int

    def targets(self, part: Part, sequence_length: int) -> range:
        """Rows of ``part`` that can be forecast from ``sequence_length`` rows before them."""
        start, stop = {
            "train": (sequence_length, self.train_end),
            "validation": (max(sequence_length, self.train_end), self.validation_end),
            "test": (max(sequence_length, self.validation_end), self.rows),
        }[part]
        return range(start, max(start, stop))


def split_rows(rows: int, train_ratio: float, val_ratio_within_train: float) -> Split:
    """Split ``rows`` rows in chronological order; 0.85 and 0.15 give 72.25 %, 12.75 % and 15 %."""
    validation_end = int(rows * train_ratio)
    train_end = int(validation_end * (1 - val_ratio_within_train))
    return Split(train_end=train_end, validation_end=validation_end, rows=rows)


def service_split(rows: int, train_ratio: float) -> Split:
    """The split of a model that is trained for service: the rows after ``train_ratio`` of all validate, none test."""
    return Split(train_end=int(rows * train_ratio), validation_end=rows, rows=rows)


def required_rows(sequence_length: int, train_ratio: float, val_ratio_within_train: float) -> int:
    """Fewest rows that give every part ``MIN_TARGETS`` targets at this window length."""

    def enough(rows: int) -> bool:
        split = split_rows(rows, train_ratio, val_ratio_within_train)
        parts: tuple[Part, ...] = ("train", "validation", "test")
        return all(len(split.targets(part, sequence_length)) >= MIN_TARGETS for part in parts)

    low, high = sequence_length, sequence_length + MIN_TARGETS
    while not enough(high):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def require_rows(rows: int, sequence_length: int, train_ratio: float, val_ratio_within_train: float) -> None:
    """Raise DataError, with the number of rows needed, when ``rows`` are too few for the window length."""
    needed = required_rows(sequence_length, train_ratio, val_ratio_within_train)
    if rows < needed:
        raise DataError(
            f"{rows} rows are too few for windows of {sequence_length}: {needed} rows are needed; "
            "use a longer history or a shorter window"
        )


def moment(text: str) -> dt.datetime:
    """A date or time of ISO 8601; a date, and a time without a zone, are those of UTC."""
    found = dt.datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=dt.UTC)
