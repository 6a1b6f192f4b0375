"""Helpers that train a model again from its checkpoint and compare the two."""

from __future__ import annotations

import datetime as dt

from forecast.errors import CheckpointError, DataError, UsageError
from forecast.model.card import ModelCard
from forecast.model.checkpoint import Checkpoint
from forecast.prices.series import Series
from forecast.prices.source import Notify, say_on_stderr, series_from_config


def series_of(
    checkpoint: ModelCard, source: str | None = None, notify: Notify | None = say_on_stderr
) -> Series:
    """Load exactly the rows that a checkpoint was trained, validated and tested on.

    Args:
        checkpoint: the model to train again.
        source: source of the rows; by default the one they were first read from.
        notify: called with a line when a source falls back.

    Raises:
        CheckpointError: when the checkpoint does not record its rows.
        UsageError: when it is a model of many symbols.
        DataError: when the source now has other values for them.
    """
    if checkpoint.symbols:
        raise UsageError(
            f"`from_trial` needs a model of one symbol, and this one has {len(checkpoint.symbols)}; give its options "
            "and `symbols` to `train`"
        )
    where = checkpoint.provenance
    if where is None:
        raise CheckpointError(
            "this checkpoint is from the original system, which does not record the training rows; "
            "give the options instead of `from_trial`"
        )
    # The cache holds Yahoo's prices: read Yahoo again, and the hash shows whether its prices have changed.
    read_from = "auto" if where["source"] in ("yahoo", "cache") else where["source"]
    first, last = (dt.datetime.fromisoformat(where[name]).date() for name in ("first_date", "last_date"))
    found = series_from_config(
        checkpoint.config.model_copy(
            update={
                "source": source or read_from,
                "start": first,
                "end": last + dt.timedelta(days=1),
            }
        ),
        notify=notify,
    )
    if found.provenance.sha256 != where["sha256"]:
        raise DataError(
            f"{found.provenance.source} has {len(found)} rows from {found.provenance.first_date} to "
            f"{found.provenance.last_date} (sha256 {found.provenance.sha256[:12]}), not the {where['rows']} rows "
            f"(sha256 {where['sha256'][:12]}) of this checkpoint: the metrics cannot be compared; give "
            "the rows of the checkpoint as `source`"
        )
    return found


def differing_versions(checkpoint: Checkpoint, again: Checkpoint) -> list[str]:
    """Lines on the versions and the device that differ between two training runs and may change the last digits."""
    before, now = checkpoint.versions or {}, again.versions or {}
    return [
        f"{name} {before[name]} then, {value} now"
        for name, value in now.items()
        if name in before and before[name] != value
    ]


def again_of(trial: Checkpoint, trained: Checkpoint) -> Checkpoint:
    """The retrained checkpoint, with the trial's record of the search that chose its configuration."""
    origin = (
        "trial_number",
        "trial_params",
        "configurations_tried",
        "searched_rows",
        "search_p_value",
    )
    return trained.model_copy(update={name: getattr(trial, name) for name in origin})


def same_metrics(trial: Checkpoint, trained: Checkpoint) -> bool:
    """Whether the validation metrics that both checkpoints have are equal."""
    before, after = trial.metrics_validation or {}, trained.metrics_validation or {}
    return all(after[name] == value for name, value in before.items() if name in after)
