"""Start training from a trained model, such as one of many symbols.

The new model has the same network, and sees prices as the first one does: with the same recursions of the volatility.
Before its first epoch it is the trained model, normalized for its own series; training keeps that state unless a later
one has a lower validation loss.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import TypeVar

from forecast.config import ExperimentConfig, TrainConfig
from forecast.errors import UsageError
from forecast.model.checkpoint import Checkpoint, Member
from forecast.model.panel import Prepared
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
    return config.model_copy(update=taken)


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


def seen_too_late(start: Checkpoint, validated_until: Iterable[str | None]) -> str | None:
    """Say, in one line, that the model has seen days after the rows that may be seen; None when it has not.

    Args:
        start: the model that training starts from.
        validated_until: the last validation row of each series that is trained on, after which test rows begin.
    """
    ends = [part.validated_until for part in start.symbols.values()] or [start.validated_until]
    seen, allowed = max(end or "" for end in ends)[:10], min(end or "" for end in validated_until)[:10]
    if seen <= allowed:
        return None
    return (
        f"the model of `start_from` has seen days up to {seen}, but the rows after {allowed} are test rows: scores on "
        "them may be better than those of new days"
    )
