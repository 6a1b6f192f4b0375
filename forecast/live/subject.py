"""What the models of one name in the store forecast. A name keeps its subject, so that its record is of one series."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from forecast.errors import UsageError
from forecast.live.ledger import Ledger
from forecast.names import plain_name
from forecast.prices.series import Series
from forecast.prices.timeline import Timeline

if TYPE_CHECKING:
    from forecast.model.checkpoint import Checkpoint


@dataclass(frozen=True)
class Subject:
    """What models forecast.

    Attributes:
        symbol: the symbol; None for a universe, whose symbols may change.
        feature: the column of prices.
        interval: name of the bar length.
        calendar: name of the calendar; None for a universe whose symbols have calendars of their own.
    """

    symbol: str | None
    feature: str
    interval: str
    calendar: str | None

    @classmethod
    def of_prices(cls, prices: Mapping[str, Series], *, pooled: bool, calendar: str | None) -> Subject:
        """The subject of series, by symbol, with the calendar that was asked for, if any."""
        series = next(iter(prices.values()))
        return cls(
            symbol=None if pooled else series.symbol,
            feature=series.feature,
            interval=series.timeline.interval,
            calendar=calendar if pooled else series.timeline.calendar_name,
        )

    @classmethod
    def of_model(cls, model: Checkpoint) -> Subject | None:
        """The subject of a model; None for a model that was trained before series had calendars."""
        timeline = Timeline.of(model.provenance)
        if timeline is None:
            return None
        pooled = bool(model.symbols)
        return cls(
            symbol=None if pooled else model.config.symbol,
            feature=model.config.feature,
            interval=timeline.interval,
            calendar=model.config.calendar if pooled else timeline.calendar_name,
        )


def recorded_subject(ledger: Ledger, name: str) -> Subject | None:
    """The subject of a name; None if it was not recorded."""
    found = ledger.subject(name)
    return None if found is None else Subject(**found)


def keep_subject(ledger: Ledger, name: str, subject: Subject) -> None:
    """Record the subject of a name, which has the same subject from then on.

    Raises:
        UsageError: when the name has another subject.
    """
    recorded = recorded_subject(ledger, name)
    if recorded is None:
        ledger.add_subject(name, asdict(subject))
        return
    for field, value in asdict(subject).items():
        before = getattr(recorded, field)
        same = plain_name(str(value)) == plain_name(str(before)) if field == "feature" else value == before
        if not same:
            remedy = f"`{field}={before}`" if before is not None else f"no `{field}`"
            many = "many symbols" if field == "symbol" else "calendars of their own"
            raise UsageError(
                f"the models of {name} forecast {before or many} (`{field}`), and not {value or many}; give {remedy}, "
                "or another `name` or `models`"
            )
