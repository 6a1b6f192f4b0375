"""The options of ``python -m tune_jobs.update``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, field_validator, model_validator

from forecast.names import split_names
from tune_jobs.options import UNIVERSE, SearchOptions, TuneOptions

MODELS = Path("models")


class UpdateOptions(SearchOptions):
    """The update after a session."""

    models: Path = Field(MODELS, description="directory of the model store and its ledger")
    name: str | None = Field(
        None,
        min_length=1,
        description=f"name of the model in the store (unless given, `symbol`, or {UNIVERSE} for many symbols)",
    )
    horizons: Annotated[tuple[int, ...], BeforeValidator(split_names)] = Field(
        (1, 5, 20),
        min_length=1,
        description="numbers of steps to forecast, separated by commas; 1 is added if it is missing",
    )
    retune_every: int = Field(
        20,
        ge=5,
        description="sessions after which a tuning job trains a challenger; an alarm may ask for one earlier",
    )
    renew_samples: int = Field(
        6, ge=1, description="number of trials of such a job; the first job has `num_samples`"
    )
    shadow_sessions: int = Field(
        0,
        ge=0,
        description="sessions for which a challenger without a significant advantage runs as a shadow, unpublished, "
        "before it may be promoted; 0 promotes it at once",
    )
    max_age: int | None = Field(
        None,
        ge=1,
        description="largest age of the current version in sessions; above it, an alarm is on (default: three times "
        "`retune_every`)",
    )
    max_silence: int = Field(
        2, ge=0, description="number of sessions whose prices the source may lack; above it, an alarm is on"
    )
    notify: str | None = Field(
        None,
        pattern=r"^https?://\S+$",
        description="address (https:// or http://) to which each new alarm is posted as JSON",
    )

    @field_validator("horizons")
    @classmethod
    def _in_order(cls, horizons: tuple[int, ...]) -> tuple[int, ...]:
        if min(horizons) < 1:
            raise ValueError("a number of steps must be at least 1")
        return tuple(sorted({1, *horizons}))

    @model_validator(mode="after")
    def _all_rows(self) -> UpdateOptions:
        if self.end is not None:
            raise ValueError(f"`end` {self.end}: an update uses every row; omit this option")
        return self

    @property
    def store_name(self) -> str:
        """The name in the store."""
        return self.name or self.default_name

    @property
    def most_age(self) -> int:
        """Largest age of a model in sessions."""
        return self.max_age or 3 * self.retune_every

    def job(self, output: Path, test_share: float | None, earlier: Path | None) -> TuneOptions:
        """The options of a tuning job.

        Args:
            output: the job's output directory; a job that was interrupted there is continued.
            test_share: share of the rows that are test rows; None for the default.
            earlier: directory of the job for the warm start; None for the first job.
        """
        own = {
            name: getattr(self, name) for name in self.model_fields_set & SearchOptions.model_fields.keys()
        }
        # On a terminal, a job shows its progress; the mail of cron has only the result.
        quiet = self.quiet or self.json_output or not sys.stderr.isatty()
        own |= {"output_dir": output, "resume": True, "warm_start": earlier, "quiet": quiet, "json": False}
        # The session logs the job itself, under the store's name, and an update goes on without MLflow.
        own.pop("mlflow", None)
        own.pop("json_output", None)
        if earlier is not None:
            own["num_samples"] = self.renew_samples
        if test_share is not None:
            own["train_ratio"] = 1 - test_share
        return TuneOptions(**own)
