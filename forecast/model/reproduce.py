"""Training a model again from what its checkpoint says."""

from __future__ import annotations

import datetime as dt

from forecast.errors import CheckpointError, DataError
from forecast.model.checkpoint import Checkpoint
from forecast.prices.series import Series
from forecast.prices.source import Notify, say_on_stderr, series_from_config


def series_of(
    checkpoint: Checkpoint, source: str | None = None, notify: Notify | None = say_on_stderr
) -> Series:
    """The very rows that a checkpoint was trained, validated and tested on.

    Args:
        checkpoint: what to train again.
        source: where to read them; the source they were read from unless given.
        notify: gets a line when a source had to fall back.

    Raises:
        CheckpointError: when the checkpoint does not know its rows.
        DataError: when the source has other values for them now.
    """
    where = checkpoint.provenance
    if where is None:
        raise CheckpointError(
            "this checkpoint does not say which rows it was trained on: it was made by the original system"
        )
    # The cache is no source of its own: what Yahoo says now is compared with it by its hash.
    read_from = "auto" if where["source"] in ("yahoo", "cache") else where["source"]
    last = dt.date.fromisoformat(where["last_date"])
    found = series_from_config(
        checkpoint.config.model_copy(
            update={
                "source": source or read_from,
                "start": dt.date.fromisoformat(where["first_date"]),
                "end": last + dt.timedelta(days=1),
            }
        ),
        notify=notify,
    )
    if found.provenance.sha256 != where["sha256"]:
        raise DataError(
            f"{found.provenance.source} has {len(found)} rows from {found.provenance.first_date} to "
            f"{found.provenance.last_date} (sha256 {found.provenance.sha256[:12]}), not the {where['rows']} rows "
            f"(sha256 {where['sha256'][:12]}) of this checkpoint: its numbers cannot be compared; give "
            "the rows it was trained on as `source`"
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


def again_of(trial: Checkpoint, trained: Checkpoint) -> Checkpoint:
    """What was trained again, with what is known of the search that found its configuration."""
    origin = ("trial_number", "trial_params", "configurations_tried", "searched_rows")
    return trained.model_copy(update={name: getattr(trial, name) for name in origin})


def same_metrics(trial: Checkpoint, trained: Checkpoint) -> bool:
    """Whether the validation metrics that both know are equal."""
    before, after = trial.metrics_validation or {}, trained.metrics_validation or {}
    return all(after[name] == value for name, value in before.items() if name in after)
