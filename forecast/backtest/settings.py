"""The options of a backtest that are not the model's; in a file without torch, which ``--help`` need not wait for."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from forecast.config import Config
from forecast.names import split_names

Baseline = Literal["drift", "EWMA", "GARCH"]

FOLD_SHARE = 0.1
"""Share of all rows that a fold is scored on, unless told otherwise."""


class BacktestSettings(Config):
    """The folds."""

    folds: int = Field(5, ge=1, le=1000, description="times the model is trained and scored")
    fold_rows: int | None = Field(
        None,
        ge=1,
        description="rows each fold is scored on, one after the other up to the last row (a tenth of all)",
    )
    window: Literal["expanding", "sliding"] = Field(
        "expanding",
        description="rows a fold is trained on: all before it, or as many as the first fold has",
    )
    seeds: int = Field(3, ge=1, le=1000, description="trainings of each fold, from `seed` on")
    baselines: Annotated[tuple[Baseline, ...], BeforeValidator(split_names)] = Field(
        ("drift", "EWMA", "GARCH"),
        description="compared with, in addition to persistence; EWMA and GARCH need the package arch",
    )
