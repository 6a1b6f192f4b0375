"""Training a model again from what its checkpoint says."""

from __future__ import annotations

import datetime as dt
from typing import Any

from forecast.checkpoint import Checkpoint
from forecast.config import TrainConfig
from forecast.errors import CheckpointError, DataError
from forecast.series import Series
from forecast.source import Notify, say_on_stderr, series_from_config


def series_of(checkpoint: Checkpoint, notify: Notify | None = say_on_stderr) -> Series:
    """The very rows that a checkpoint was trained, validated and tested on, from the source it names.

    Raises:
        CheckpointError: when the checkpoint does not know its rows.
        DataError: when the source has other values for them now.
    """
    where = checkpoint.provenance
    if where is None:
        raise CheckpointError(
            "this checkpoint does not say which rows it was trained on: it was made by the original system"
        )
    last = dt.date.fromisoformat(where["last_date"])
    found = series_from_config(
        checkpoint.config.model_copy(
            update={"start": dt.date.fromisoformat(where["first_date"]), "end": last + dt.timedelta(days=1)}
        ),
        notify=notify,
    )
    if found.provenance.sha256 != where["sha256"]:
        raise DataError(
            f"{found.provenance.source} has {len(found)} rows from {found.provenance.first_date} to "
            f"{found.provenance.last_date} (sha256 {found.provenance.sha256[:12]}), not the {where['rows']} rows "
            f"(sha256 {where['sha256'][:12]}) of this checkpoint: its numbers cannot be compared; give it the file it "
            "was trained on"
        )
    return found


def differing_versions(checkpoint: Checkpoint, again: Checkpoint) -> list[str]:
    """What may change the last digits: lines on versions, and the device, that differ between two trainings."""
    before, now = checkpoint.versions or {}, again.versions or {}
    return [
        f"{name} {before[name]} then, {value} now"
        for name, value in now.items()
        if name in before and before[name] != value
    ]


def configuration_of(checkpoint: Checkpoint, **changes: Any) -> TrainConfig:
    """The checkpoint's configuration, with changes."""
    return checkpoint.config.model_copy(update=changes)
