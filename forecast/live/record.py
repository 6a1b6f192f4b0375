"""The reading side of a ledger: the published forecasts, and the live record of each name."""

from __future__ import annotations

import datetime as dt
import functools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import sqlalchemy as sa

from forecast.errors import LevelError
from forecast.live.ledger import Ledger
from forecast.live.limits import MOST_CHANGES, MOST_SESSIONS
from forecast.live.store import CHANGES
from forecast.live.tables import EVENTS, FORECASTS, PUBLISHED, REQUESTS, SCORES, SESSIONS
from forecast.names import matching
from forecast.prices.timeline import Timeline
from forecast.scores.distribution import PROBABILITIES, interval_probabilities
from forecast.scores.metrics import interval_bounds
from forecast.scores.sequential import coverage_bounds

HISTORY = ("added", "kept", "waits", "shadow", *CHANGES)
"""The events of a name's versions."""
ALARM_EVENTS = ("alarm", "alarm_over")
COVERED = {0.5: SESSIONS.c.inside_50, 0.9: SESSIONS.c.inside_90}
"""By level, the number of prices inside the central intervals."""


@dataclass(frozen=True)
class Interval:
    """A central interval, in price units."""

    level: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Step:
    """The forecast of one bar.

    Attributes:
        target: date or time of the bar, ISO 8601.
        horizon: number of steps after the last known bar.
        prediction: point forecast, in price units.
        intervals: one interval for each level.
    """

    target: str
    horizon: int
    prediction: float
    intervals: list[Interval]


@dataclass(frozen=True)
class SettledStep(Step):
    """The forecast of a bar whose price has arrived, in the price units of its day.

    Attributes:
        realized: the price.
        crps: the score of the forecast, in price units.
    """

    realized: float
    crps: float


@dataclass(frozen=True)
class Published:
    """The published forecast of a symbol.

    Attributes:
        symbol: the symbol.
        name: the model's name in the store.
        sha256: hash of the model's file.
        origin: date or time of the last known bar, ISO 8601.
        last_price: the price of this bar.
        issued_at: time of publication, UTC, ISO 8601.
        steps: the forecasts, nearest bar first.
        settled: earlier forecasts of one step, oldest first.
        timeline: the bars of the symbol; None if they were not recorded.
    """

    symbol: str
    name: str
    sha256: str
    origin: str
    last_price: float
    issued_at: str
    steps: list[Step]
    settled: list[SettledStep] = field(default_factory=list)
    timeline: Timeline | None = None

    @property
    def age_seconds(self) -> float:
        """Seconds since publication."""
        return (dt.datetime.now(dt.UTC) - _moment(self.issued_at)).total_seconds()

    @property
    def age_sessions(self) -> int | None:
        """The number of bars after the origin that have ended, by the symbol's calendar; None if that is not known."""
        if self.timeline is None:
            return None
        now = dt.datetime.now(dt.UTC).replace(tzinfo=None, second=0, microsecond=0)
        return _ended_since(self.timeline, self.origin, np.datetime64(now, "s"))


@dataclass(frozen=True)
class Covered:
    """The coverage of the published intervals of one level.

    Attributes:
        level: share of prices that should be inside.
        coverage: mean over the sessions of the share of symbols whose price was inside.
        lower: lower bound of the probability that a price is inside, valid at all sessions together.
        upper: upper bound of this probability, valid in the same way.
        inside: number of prices inside.
        prices: number of prices.
    """

    level: float
    coverage: float
    lower: float
    upper: float
    inside: int
    prices: int


@dataclass(frozen=True)
class Skill:
    """A name's published forecasts against those of one baseline, on the sessions with both.

    Attributes:
        baseline: name of the baseline.
        horizon: number of steps.
        sessions: number of sessions.
        crps: sum over the sessions of the mean CRPS over symbols, in the ledger's units.
        baseline_crps: the same sum for the baseline.
    """

    baseline: str
    horizon: int
    sessions: int
    crps: float
    baseline_crps: float

    @property
    def ratio(self) -> float | None:
        """The CRPS divided by the baseline's; None if the baseline made no error."""
        return self.crps / self.baseline_crps if self.baseline_crps else None


@dataclass(frozen=True)
class LiveRecord:
    """The live record of a name: the scores of its published forecasts.

    Attributes:
        name: name in the model store.
        symbols: number of symbols with a published forecast.
        version: the current version; None before the first promotion.
        since: time of its promotion, UTC, ISO 8601.
        latest: the last published forecast, of one of the symbols.
        sessions: number of sessions with scores of one step.
        first: the first of these sessions.
        last: the last of these sessions.
        skill: skill for each number of steps and baseline.
        coverage: coverage of one step, by level.
        alarms: the events of the alarms that are on.
        known_alarms: names of all alarms that were ever on.
        history: the events of the versions, latest first.
    """

    name: str
    symbols: int
    version: str | None
    since: str | None
    latest: Published
    sessions: int
    first: str | None
    last: str | None
    skill: list[Skill]
    coverage: list[Covered]
    alarms: list[dict[str, Any]]
    known_alarms: list[str]
    history: list[dict[str, Any]]


class Record(Ledger):
    """A ledger with the queries that a server needs, and with the server's sample of requests."""

    def forecasts(
        self, text: str, offset: int, limit: int, levels: Sequence[float]
    ) -> tuple[list[Published], int]:
        """One page of the published forecasts of symbols that contain a text, in any case, and the number of all.

        Args:
            text: the text; symbols that begin with it come first.
            offset: number of forecasts to skip.
            limit: largest number of forecasts.
            levels: levels of the intervals.

        Raises:
            LevelError: when a level is not kept.
            LedgerError: when the ledger cannot be used.
        """
        require_kept(levels)
        names = defaultdict(list)
        for row in self.rows(sa.select(PUBLISHED).order_by(PUBLISHED.c.symbol, PUBLISHED.c.name)):
            names[row["symbol"]].append(row["name"])
        found = [(name, symbol) for symbol in matching(text, names) for name in names[symbol]]
        return self._published(found[offset : offset + limit], levels), len(found)

    def forecast(self, symbol: str, levels: Sequence[float], settled: int = 0) -> Published | None:
        """The last published forecast of a symbol; None if there is none.

        Args:
            symbol: the symbol.
            levels: levels of the intervals.
            settled: largest number of earlier forecasts, those of the last sessions.

        Raises:
            LevelError: when a level is not kept.
            LedgerError: when the ledger cannot be used.
        """
        require_kept(levels)
        names = self.rows(sa.select(PUBLISHED.c.name).where(PUBLISHED.c.symbol == symbol))
        found = self._published([(row["name"], symbol) for row in names], levels)
        if not found:
            return None
        latest = max(found, key=lambda each: each.issued_at)
        if settled:
            rows = self.settled(latest.name, symbol, settled)
            steps = [
                SettledStep(**vars(step), realized=row["realized"], crps=row["crps"])
                for row, step in zip(rows, _steps(rows, levels), strict=True)
            ]
            latest.settled.extend(steps)
        return latest

    def symbols(self) -> list[str]:
        """The symbols with a published forecast, sorted."""
        query = sa.select(PUBLISHED.c.symbol).distinct().order_by(PUBLISHED.c.symbol)
        return [row["symbol"] for row in self.rows(query)]

    def add_requests(self, requests: Sequence[Mapping[str, Any]]) -> None:
        """Add answered requests to the server's sample.

        Args:
            requests: rows of ``REQUESTS``.

        Raises:
            LedgerError: when the ledger cannot be written; no request is added then.
        """
        with self.writing() as connection:
            connection.execute(sa.insert(REQUESTS), requests)

    def publishes(self, symbol: str) -> bool:
        """Whether there is a published forecast of a symbol."""
        return bool(self.rows(sa.select(PUBLISHED.c.name).where(PUBLISHED.c.symbol == symbol).limit(1)))

    def stamp(self) -> dict[str, Any]:
        """Values, at least one of which changes whenever the answer of ``live`` may change."""
        values = [sa.func.max(table.c.id).label(table.name) for table in (FORECASTS, SCORES, EVENTS)]
        values.append(sa.func.group_concat(PUBLISHED.c.model.distinct()).label(PUBLISHED.name))
        (row,) = self.rows(
            sa.select(*(sa.select(value).scalar_subquery().label(value.name) for value in values))
        )
        return row

    def live(
        self,
        *,
        name: str | None = None,
        symbol: str | None = None,
        sessions: int | None = None,
        offset: int = 0,
        limit: int | None = None,
    ) -> tuple[list[LiveRecord], int]:
        """One page of the live records, sorted by name, and the number of all names.

        Args:
            name: only this name.
            symbol: only names with published forecasts of this symbol.
            sessions: number of last sessions in each record, of all versions, at most ``MOST_SESSIONS``; None selects
                the sessions since the current version was promoted.
            offset: number of names to skip.
            limit: largest number of names; None selects all.

        Raises:
            LedgerError: when the ledger cannot be used.
        """
        # SQLite takes the other columns from the row with the maximum.
        query = sa.select(
            PUBLISHED.c.name,
            PUBLISHED.c.symbol,
            sa.func.max(PUBLISHED.c.origin),
            sa.func.count().label("symbols"),
        ).group_by(PUBLISHED.c.name)
        if name is not None:
            query = query.where(PUBLISHED.c.name == name)
        if symbol is not None:
            of_symbol = sa.select(PUBLISHED.c.name).where(PUBLISHED.c.symbol == symbol)
            query = query.where(PUBLISHED.c.name.in_(of_symbol))
        every = self.rows(query.order_by(PUBLISHED.c.name))
        latest = every[offset : None if limit is None else offset + limit]
        if not latest:
            return [], len(every)
        symbols = {row["name"]: row["symbols"] for row in latest}
        forecasts = self._published([(row["name"], row["symbol"]) for row in latest], ())
        starts = self._starts({each.name: each.sha256 for each in forecasts}, sessions)
        skill, counts = self._skill(starts), self._counts(starts)
        coverage = _coverage(counts)
        names = list(symbols)
        promotions, alarms, history = self._promotions(names), self._alarms(names), self._history(names)
        found = []
        for forecast in forecasts:
            name = forecast.name
            count, promotion = counts.get(name, {}), promotions.get(name, {})
            found.append(
                LiveRecord(
                    name=name,
                    symbols=symbols[name],
                    version=promotion.get("version"),
                    since=promotion.get("at"),
                    latest=forecast,
                    sessions=count.get("sessions", 0),
                    first=count.get("first"),
                    last=count.get("last"),
                    skill=skill[name],
                    coverage=coverage.get(name, []),
                    alarms=[event for event in alarms[name] if event["kind"] == "alarm"],
                    known_alarms=[event["details"]["alarm"] for event in alarms[name]],
                    history=history[name],
                )
            )
        return found, len(every)

    def _published(self, keys: Sequence[tuple[str, str]], levels: Sequence[float]) -> list[Published]:
        """The published forecasts of these names and symbols, in the same order."""
        rows = defaultdict(list)
        for row in self.published(*{symbol for _, symbol in keys}) if keys else ():
            rows[row["name"], row["symbol"]].append(row)
        return [
            Published(
                symbol=symbol,
                name=name,
                sha256=own[0]["model"],
                origin=own[0]["origin"],
                last_price=own[0]["last_price"],
                issued_at=own[0]["issued_at"],
                steps=_steps(own, levels),
                timeline=Timeline.of(own[0]["timeline"]),
            )
            for name, symbol in keys
            if (own := rows[name, symbol])
        ]

    def _starts(self, models: Mapping[str, str], sessions: int | None) -> dict[str, _Start]:
        """The start of each name's record, given the hash of its current model."""
        starts = {name: _Start("", model) for name, model in models.items()}
        starts = self._later(starts, sessions or MOST_SESSIONS)
        if sessions is not None:
            return {name: _Start(start.target, None) for name, start in starts.items()}
        return self._later(starts, 1, SESSIONS.c.model != _START.c.model)

    def _later(
        self, starts: Mapping[str, _Start], count: int, *conditions: sa.ColumnElement[bool]
    ) -> dict[str, _Start]:
        """The starts, each moved to the ``count``-th last published session that meets the conditions."""
        target = (
            sa.select(SESSIONS.c.target)
            .where(SESSIONS.c.name == _START.c.name, SESSIONS.c.target >= _START.c.target)
            .where(SESSIONS.c.horizon == 1, SESSIONS.c.role == "champion", _last_published(), *conditions)
            .order_by(SESSIONS.c.target.desc())
            .limit(1)
            .offset(count - 1)
            .correlate(_START)
            .scalar_subquery()
        )
        query = sa.select(_START.c.name, sa.func.coalesce(target, _START.c.target).label("target"))
        return {
            row["name"]: _Start(row["target"], starts[row["name"]].model)
            for row in self.rows(query.add_cte(_starting(starts)))
        }

    def _skill(self, starts: Mapping[str, _Start]) -> Mapping[str, list[Skill]]:
        """By name, the skill at each number of steps against each baseline."""
        other = SESSIONS.alias()
        # With an expression here, SQLite looks up each session; otherwise it would read all sessions from the start on.
        same = [other.c[key] == SESSIONS.c[key] for key in ("name", "horizon")]
        same.append(other.c.target == SESSIONS.c.target.concat(""))
        query = (
            _published_sessions(starts)
            .add_columns(
                SESSIONS.c.horizon,
                other.c.model.label("baseline"),
                sa.func.count().label("sessions"),
                sa.func.sum(SESSIONS.c.crps).label("crps"),
                sa.func.sum(other.c.crps).label("baseline_crps"),
            )
            .join(other, sa.and_(*same, other.c.role == "baseline"))
            .group_by(SESSIONS.c.name, SESSIONS.c.horizon, other.c.model)
        )
        found = defaultdict(list)
        for row in self.rows(query):
            found[row.pop("name")].append(Skill(**row))
        return found

    def _counts(self, starts: Mapping[str, _Start]) -> dict[str, dict[str, Any]]:
        """By name, the counts of the sessions of one step."""
        prices = SESSIONS.c.symbols
        counts = [
            column
            for level, inside in COVERED.items()
            for column in (
                sa.func.sum(inside).label(f"inside {level}"),
                sa.func.sum(1.0 * inside / prices).label(f"shares {level}"),
            )
        ]
        query = (
            _published_sessions(starts)
            .add_columns(
                sa.func.count().label("sessions"),
                sa.func.min(SESSIONS.c.target).label("first"),
                sa.func.max(SESSIONS.c.target).label("last"),
                sa.func.sum(prices).label("prices"),
                *counts,
            )
            .where(SESSIONS.c.horizon == 1)
            .group_by(SESSIONS.c.name)
        )
        return {row["name"]: row for row in self.rows(query)}

    def _promotions(self, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """By name, the event that made its current version current."""
        return {row["name"]: row for row in self._last_events(names, CHANGES, EVENTS.c.name)}

    def _alarms(self, names: Sequence[str]) -> Mapping[str, list[dict[str, Any]]]:
        """By name, the last event of each alarm, sorted by alarm."""
        alarm = EVENTS.c.details["alarm"].as_string()
        return _by_name(self._last_events(names, ALARM_EVENTS, EVENTS.c.name, alarm))

    def _last_events(
        self, names: Sequence[str], kinds: Sequence[str], *groups: sa.ColumnElement[Any]
    ) -> list[dict[str, Any]]:
        """The last event of each group, in the order of the groups."""
        last = (
            sa.select(sa.func.max(EVENTS.c.id))
            .where(EVENTS.c.name.in_(names), EVENTS.c.kind.in_(kinds))
            .group_by(*groups)
        )
        return self.rows(sa.select(EVENTS).where(EVENTS.c.id.in_(last)).order_by(*groups))

    def _history(self, names: Sequence[str]) -> Mapping[str, list[dict[str, Any]]]:
        """By name, the last events of its versions, latest first."""
        place = sa.func.row_number().over(partition_by=EVENTS.c.name, order_by=EVENTS.c.id.desc())
        ranked = (
            sa.select(EVENTS.c.id, place.label("place"))
            .where(EVENTS.c.name.in_(names), EVENTS.c.kind.in_(HISTORY))
            .subquery()
        )
        latest = sa.select(ranked.c.id).where(ranked.c.place <= MOST_CHANGES)
        return _by_name(
            self.rows(sa.select(EVENTS).where(EVENTS.c.id.in_(latest)).order_by(EVENTS.c.id.desc()))
        )


@dataclass(frozen=True)
class _Start:
    """The first session of a record, and its model; None for all models."""

    target: str
    model: str | None


_START = sa.table("start", sa.column("name"), sa.column("target"), sa.column("model"))
"""Starts by name, in a query."""


def _starting(starts: Mapping[str, _Start]) -> sa.CTE:
    """The rows of ``_START``."""
    columns = [sa.column(column.name, sa.Text) for column in _START.c]
    rows = [(name, start.target, start.model) for name, start in starts.items()]
    return sa.values(*columns).data(rows).cte(_START.name)


def _published_sessions(starts: Mapping[str, _Start]) -> sa.Select[Any]:
    """The sessions of each name's published forecasts, from the name's start on."""
    return (
        sa.select(SESSIONS.c.name)
        .join(_START, sa.and_(_START.c.name == SESSIONS.c.name, SESSIONS.c.target >= _START.c.target))
        .where(SESSIONS.c.role == "champion", _last_published())
        .where(SESSIONS.c.model == sa.func.coalesce(_START.c.model, SESSIONS.c.model))
        .add_cte(_starting(starts))
    )


def _last_published() -> sa.ColumnElement[bool]:
    """Whether no other champion published forecasts of the same session later, as after a promotion by hand."""
    later = SESSIONS.alias()
    # With an expression here, SQLite looks up the session, as in ``Record._skill``.
    same = [later.c.name == SESSIONS.c.name, later.c.target == SESSIONS.c.target.concat("")]
    same += [later.c.horizon == SESSIONS.c.horizon, later.c.role == SESSIONS.c.role]
    return ~sa.exists().where(*same, later.c.last_forecast_id > SESSIONS.c.last_forecast_id)


@functools.lru_cache(maxsize=4096)
def _ended_since(timeline: Timeline, origin: str, now: np.datetime64) -> int | None:
    """The number of bars after the origin that have ended at ``now`` (UTC); None outside the calendar."""
    last = timeline.parse(origin)
    if timeline.next_dates(last, 1) is None:
        return None
    bars = timeline.expected(last, now.astype(last.dtype))
    bars = bars[bars > last]
    return int((timeline.calendar.closes(bars, timeline.interval, timeline.grid) <= now).sum())


def _by_name(rows: Iterable[dict[str, Any]]) -> Mapping[str, list[dict[str, Any]]]:
    found = defaultdict(list)
    for row in rows:
        found[row["name"]].append(row)
    return found


def _coverage(counts: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Covered]]:
    """By name, the coverage at each level, from the counts of sessions."""
    shares = np.array([[count[f"shares {level}"] for level in COVERED] for count in counts.values()])
    sessions = np.array([[count["sessions"]] for count in counts.values()])
    lower, upper = coverage_bounds(shares, sessions)
    return {
        name: [
            Covered(
                level=level,
                coverage=float(shares[i, k] / sessions[i, 0]),
                lower=float(lower[i, k]),
                upper=float(upper[i, k]),
                inside=count[f"inside {level}"],
                prices=count["prices"],
            )
            for k, level in enumerate(COVERED)
        ]
        for i, (name, count) in enumerate(counts.items())
    }


def _steps(rows: Sequence[Mapping[str, Any]], levels: Sequence[float]) -> list[Step]:
    """The forecasts in these rows of the ledger."""
    if not rows:
        return []
    quantiles = np.stack([row["quantiles"] for row in rows])
    bounds = {level: np.stack(interval_bounds(quantiles, level), axis=1).tolist() for level in levels}
    return [
        Step(
            target=row["target"],
            horizon=row["horizon"],
            prediction=row["prediction"],
            intervals=[Interval(level, *bounds[level][i]) for level in levels],
        )
        for i, row in enumerate(rows)
    ]


def _moment(text: str) -> dt.datetime:
    """A date or time as the ledger writes it; a date is its midnight in UTC."""
    found = dt.datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=dt.UTC)


def require_kept(levels: Iterable[float]) -> None:
    """Check that the ledger keeps the quantiles that bound the central intervals of these levels.

    Raises:
        LevelError: when it does not.
    """
    for level in levels:
        bounds = interval_probabilities([level])
        if not np.isclose(bounds[:, np.newaxis], PROBABILITIES, rtol=0, atol=1e-9).any(axis=1).all():
            raise LevelError(
                f"the ledger has no interval of level {level:g}; choose a whole percentage from 0.01 to 0.99"
            )
