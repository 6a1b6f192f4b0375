"""Options of a backtest that are not the model's; this file does not import torch, so that ``--help`` is fast."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from forecast.config import Config
from forecast.names import split_names

Baseline = Literal["drift", "EWMA", "GARCH"]

FOLD_SHARE = 0.1
"""Default share of all rows that a fold is scored on."""


class BacktestSettings(Config):
    """Folds, seeds and baselines of a backtest."""

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
        3, ge=1, le=1000, description="number of training runs per fold, with seeds from `seed` on"
    )
    baselines: Annotated[tuple[Baseline, ...], BeforeValidator(split_names)] = Field(
        ("drift", "EWMA", "GARCH"),
        description="baselines to compare with, in addition to persistence; EWMA and GARCH need the package arch",
    )
