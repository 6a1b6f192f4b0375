"""Options of a backtest that are not the model's; this file does not import torch, so that ``--help`` is fast."""

from __future__ import annotations

import itertools
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from forecast.config import Config
from forecast.names import split_names

Baseline = Literal["drift", "EWMA", "GARCH", "GJR", "HAR"]

FOLD_SHARE = 0.1
"""Default share of all rows that a fold is scored on."""


def _from_one_on(horizons: tuple[int, ...]) -> tuple[int, ...]:
    """The horizons with that of one step, which is always scored."""
    if any(first >= second for first, second in itertools.pairwise((0, *horizons))):
        raise ValueError("each number of steps must be at least 1, and larger than the one before")
    return tuple(sorted({1, *horizons}))


class BacktestSettings(Config):
    """Folds, seeds, horizons and baselines of a backtest."""

    folds: int = Field(
        5, ge=1, le=1000, description="number of origins at which the model is trained and scored"
    )
    fold_rows: int | None = Field(
        None,
        ge=1,
        description="rows that each fold is scored on (default: a tenth of all); folds follow one another up to the "
        "last row",
    )
    window: Literal["expanding", "sliding"] = Field(
        "expanding",
        description="rows that a fold is trained on: all rows before the fold (expanding), or as many as the first "
        "fold has (sliding)",
    )
    seeds: int = Field(
        3,
        ge=1,
        le=1000,
        description="number of training runs per fold; each of its `members` has a seed of its own, from `seed` on",
    )
    horizons: Annotated[tuple[int, ...], BeforeValidator(split_names), AfterValidator(_from_one_on)] = Field(
        (1, 5, 10, 20), description="numbers of steps ahead that are scored, ascending; one step always is"
    )
    baselines: Annotated[tuple[Baseline, ...] | None, BeforeValidator(split_names)] = Field(
        None,
        description="baselines to compare with, in addition to persistence: drift, EWMA, GARCH, GJR (GJR-GARCH with a "
        "skewed t distribution), HAR (of the bar's range; `input_columns` must have High and Low); default: all that "
        "the columns allow",
    )
