"""Start training from a trained model, such as one of many symbols.

The new model has the same network as the trained one, and sees prices in the same way, with the same recursions of the
volatility. Before its first epoch it is the trained model, normalized for its own series; training keeps that state
unless a later one has a lower validation loss.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

from forecast.config import ExperimentConfig, TrainConfig, parse_settings
from forecast.errors import UsageError
from forecast.model.checkpoint import Checkpoint, Member, load_checkpoint
from forecast.model.panel import Prepared
from forecast.model.split import moment
from forecast.model.windows import RECURSIONS, PreparedSeries

AnyConfig = TypeVar("AnyConfig", bound=ExperimentConfig)

SAME = (
    "network",
    "target",
    "likelihood",
    "log_prices",
    "input_columns",
    "volatility",
    "market",
    "hidden_size",
    "num_layers",
)
"""Options that decide what a network is and sees."""


def same_options(config: AnyConfig, start: Checkpoint, given: Collection[str] = ()) -> AnyConfig:
    """Return the options with those of ``SAME`` taken from the model that training starts from.

    The window length is also taken, if it is one of the options and not given.

    Args:
        config: the options.
        start: the model.
        given: names of the options that the user set.

    Raises:
        UsageError: when the user set one of them to another value.
    """
    taken = {}
    for name in SAME:
        if name not in type(config).model_fields:
            continue
        own, wanted = getattr(config, name), getattr(start.config, name)
        if name in given and own != wanted:
            raise UsageError(
                f"`{name}` {own} cannot be used with `start_from` {config.start_from}, whose model has {wanted}; omit "
                "one of the two"
            )
        taken[name] = wanted
    if "sequence_length" not in given and "sequence_length" in type(config).model_fields:
        taken["sequence_length"] = start.config.sequence_length
    return parse_settings(type(config), {**config.model_dump(by_alias=True), **taken})


def member_of(start: Checkpoint, config: TrainConfig, number: int) -> Member:
    """Return the member of ``start`` that member ``number`` of a new model starts from.

    Raises:
        UsageError: when the new model has another network, or sees other things.
    """
    member = start.members[number % len(start.members)]
    for name in SAME:
        own, wanted = getattr(config, name), getattr(member.config, name)
        if own != wanted:
            raise UsageError(
                f"`{name}` {own} cannot be used with `start_from` {config.start_from}, whose model has {wanted}"
            )
    return member


def with_recursions_of(start: Checkpoint, prepared: Prepared) -> Prepared:
    """Return the prepared series with the recursions of the model that training starts from."""
    names = RECURSIONS[start.config.volatility]
    found = dict(zip(names, start.members[0].recursions, strict=True))

    def changed(part: PreparedSeries) -> PreparedSeries:
        return replace(part, shared_recursion=found.get("gjr"), shared_range_recursion=found.get("range"))

    if isinstance(prepared, PreparedSeries):
        return changed(prepared)
    return replace(prepared, series={symbol: changed(part) for symbol, part in prepared.series.items()})


def require_same_start(trained: Checkpoint) -> None:
    """Check that the file that a model started from is still the same, so that it can be trained again.

    Raises:
        CheckpointError: when there is no such file.
        UsageError: when the file holds another model now.
    """
    path = trained.config.start_from
    if path is not None and load_checkpoint(path).sha256 != trained.started_from:
        raise UsageError(
            f"`start_from` {path} is no longer the model that this one started from; put that file back to train "
            "this model again"
        )


class Spanned(Protocol):
    """Something with ends of training and validation: a checkpoint, a symbol's part of one, or a prepared series."""

    @property
    def trained_until(self) -> str | None:
        """Date or time of the last training row, ISO 8601."""
        ...

    @property
    def validated_until(self) -> str | None:
        """Date or time of the last validation row, ISO 8601."""
        ...


def doubts(start: Checkpoint, config: ExperimentConfig, interval: str, own: Sequence[Spanned]) -> list[str]:
    """Reasons to doubt a start, one line each: its training data differ, or it has seen later days.

    Args:
        start: the model that training starts from.
        config: the options of the training.
        interval: length of a bar of the series that are trained on.
        own: these series, or the models that are trained on them.
    """
    lines = []
    theirs = (start.provenance or {}).get("interval", interval)
    if (start.config.feature, theirs) != (config.feature, interval):
        lines.append(
            f"the model of `start_from` was trained on {start.config.feature} of bars of {theirs}, not on "
            f"{config.feature} of {interval}"
        )
    models: Sequence[Spanned] = [*start.symbols.values()] or [start]
    for rows, end in (("validation", "trained_until"), ("test", "validated_until")):
        ends = [getattr(model, end) for model in models]
        allowed = min((moment(getattr(each, end)) for each in own if getattr(each, end)), default=None)
        if allowed is None:
            continue
        seen = [moment(each) for each in ends if each]
        if len(seen) < len(ends):
            lines.append(
                f"it is not known which days the model of `start_from` has seen: {rows} scores may be too good"
            )
        elif max(seen) > allowed:
            lines.append(
                f"the model of `start_from` has seen days up to {max(ends)}, but {rows} rows begin after "
                f"{allowed.date()}: their scores may be better than those of new days"
            )
    return lines
