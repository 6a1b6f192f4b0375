"""The ledger: every issued forecast, the prices that arrived, and the scores, in one SQLite database.

A forecast is recorded once for each name in the model store, symbol, bar, number of steps and model. Prices are facts:
a corrected price is a new fact, and the forecasts of its bar get new scores in addition to the old ones. Forecasts that
were made before a correction are superseded by new ones; they stay and are scored, but the record of a session counts
the last ones. After a change of the unit of all prices, such as a split, prices are converted back to the unit of a
forecast.

Scores of several symbols are in units of the persistence forecast that was issued with them: half the distance between
its quartiles. Their mean therefore never adds dollars to yen.
"""

from __future__ import annotations

import bisect
import datetime as dt
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.dialects import sqlite

from forecast.errors import LedgerError
from forecast.live.evidence import Role, Scored, evidence_of
from forecast.live.tables import (
    EVENTS,
    FORECASTS,
    METADATA,
    PRICES,
    PUBLISHED,
    RESCALINGS,
    SCORES,
    SESSIONS,
    SUBJECTS,
)
from forecast.scores.distribution import PROBABILITIES
from forecast.scores.metrics import METRICS, Forecasts
from forecast.scores.sequential import pit

if TYPE_CHECKING:
    from forecast.live.issue import Issued

Array = NDArray[np.float64]
Event = Literal[
    "added", "promoted", "kept", "waits", "shadow", "rolled_back", "alarm", "alarm_over", "notified"
]

LATEST = "0002"
"""The latest migration."""
IMMEDIATE = "immediate"
MIGRATIONS = Path(__file__).with_name("migrations")
LOCK_WAIT = 30.0
"""Seconds to wait for another process's lock on the database."""
WATCHED = 60
"""Number of sessions back in which corrected prices are noticed."""
SAME_PRICE = 1e-6
"""Largest relative difference between prices that count as the same."""
LEAST_OVERLAP = 5
"""Fewest known prices that can show a change of the unit."""
MOST = 0.8
"""Share of the known prices that a change of the unit changes at least."""
SAME_FACTOR = 0.1
"""Largest spread of the factors of single prices, which are rounded, as a share of the change by one factor."""
SAME_CHANGE = 1e-3
"""Largest difference, beyond rounding, between the relative changes of prices that count as those of one series."""
MOST_OTHER = 0.5
"""Largest share of changes that may differ in prices of one series."""
LEAST_CHANGES = 20
"""Fewest known changes that can show another series."""
DECIMALS = 8
"""Most decimal places at which rounding is looked for."""
EXPORTED_AT_ONCE = 5_000
"""Rows of a table that an export holds in memory."""
REFERENCE = "persistence"
"""The baseline whose issued forecasts give the units of scores."""
QUARTILES = np.searchsorted(PROBABILITIES, [0.25, 0.75])


@dataclass(frozen=True)
class Settled:
    """The new prices and scores of a session.

    Attributes:
        prices: number of prices of new bars.
        corrected: symbol and date of each corrected price.
        scored: number of forecasts that were scored, for the first time or again.
        sessions: the dates with new scores.
        others: the reason, by symbol, why its prices are not those of the recorded series; nothing of them is recorded.
    """

    prices: int
    corrected: list[tuple[str, str]]
    scored: int
    sessions: list[str]
    others: dict[str, str]


class Ledger:
    """One database; several processes may read it while one writes."""

    def __init__(self, path: Path) -> None:
        """Open or create the database, and bring its tables up to date.

        Raises:
            LedgerError: when the file cannot be opened, is no ledger, or was written by a later version.
        """
        self.path = path
        # An address in text would be decoded, and a name in the store may have a % in its path.
        address = sa.URL.create("sqlite", database=str(path.absolute()))
        self._engine = sa.create_engine(address, connect_args={"timeout": LOCK_WAIT})
        sa.event.listen(self._engine, "connect", _configure)
        sa.event.listen(self._engine, "begin", _begin)
        with self._errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            _migrate(self._engine)

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    def issue(self, name: str, forecasts: Mapping[Role, Sequence[Issued]]) -> int:
        """Record all forecasts that are not recorded yet, or none, and return their number.

        The forecasts of a model from one origin that differ from its recorded ones supersede these, and so do those of
        a champion after another champion's.

        Args:
            name: name in the model store.
            forecasts: forecasts by role; those of ``champion`` are published, those of persistence give the units of
                scores.
        """
        now = _now()
        units = {
            (each.symbol, each.horizon): _unit(each.quantiles)
            for each in forecasts.get("baseline", ())
            if each.model == REFERENCE
        }
        rows: list[dict[str, Any]] = [
            {
                "name": name,
                "symbol": each.symbol,
                "target": each.target,
                "horizon": each.horizon,
                "model": each.model,
                "role": role,
                "origin": each.origin,
                "last_price": each.last_price,
                "prediction": each.prediction,
                "quantiles": each.quantiles.astype("<f4").tobytes(),
                "unit": units.get((each.symbol, each.horizon)) or _unit(each.quantiles),
                "issued_at": now,
            }
            for role, some in forecasts.items()
            for each in some
        ]
        timelines = {each.symbol: each.timeline for each in forecasts.get("champion", ()) if each.timeline}
        sets: dict[_Set, list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            sets[row["symbol"], row["origin"], row["model"]].append(row)
        new, published = [], []
        with self.writing() as connection:
            recorded = _recorded_sets(connection, name, rows)
            latest = _latest_revisions(connection, name, rows)
            before = _published_revisions(connection, name)
            last_price = connection.scalar(sa.select(sa.func.max(PRICES.c.id))) or 0
            for key, own in sets.items():
                symbol, origin, model = key
                revision, known = recorded.get(key, (-1, set()))
                same = {_content(row) for row in own} <= known
                champion = own[0]["role"] == "champion"
                if champion and symbol in before and before[symbol][0] == origin:
                    same &= before[symbol] == (origin, model, revision)
                if not same:
                    # A bar's forecast has another origin after a session that the calendar does not have.
                    revision = 1 + max(revision, *(latest.get(_bar(row), -1) for row in own))
                    new += [row | {"revision": revision} for row in own]
                if champion:
                    bars = timelines.get(symbol)
                    published.append(
                        {
                            "name": name,
                            "symbol": symbol,
                            "origin": origin,
                            "model": model,
                            "revision": revision,
                            "last_price_id": last_price,
                            "timeline": bars and bars.described(),
                        }
                    )
            if new:
                connection.execute(sa.insert(FORECASTS), new)
            if published:
                connection.execute(sa.insert(PUBLISHED).prefix_with("OR REPLACE"), published)
        return len(new)

    def published_symbols(self, name: str) -> list[str]:
        """The symbols of a name that have published forecasts."""
        query = sa.select(PUBLISHED.c.symbol).where(PUBLISHED.c.name == name).order_by(PUBLISHED.c.symbol)
        return [row["symbol"] for row in self.rows(query)]

    def origins(self, name: str, model: str) -> dict[str, str]:
        """By symbol, the last known session of the published forecasts that this model made."""
        query = sa.select(PUBLISHED).where(PUBLISHED.c.name == name, PUBLISHED.c.model == model)
        return {row["symbol"]: row["origin"] for row in self.rows(query)}

    def outdated(self, name: str) -> set[str]:
        """The symbols for which a price up to the origin of the published forecasts was recorded after these."""
        published = sa.select(PUBLISHED.c.symbol).where(PUBLISHED.c.name == name)
        with self._reading() as connection:
            earliest = connection.scalar(
                sa.select(sa.func.min(PUBLISHED.c.last_price_id)).where(PUBLISHED.c.name == name)
            )
            if earliest is None:
                return set()
            # With an expression for the name, SQLite reads the last prices alone; otherwise it would read all.
            later = sa.and_(
                PRICES.c.id > earliest,
                PRICES.c.id > PUBLISHED.c.last_price_id,
                PRICES.c.name.concat("") == name,
                PRICES.c.symbol.concat("") == PUBLISHED.c.symbol,
                PRICES.c.date <= PUBLISHED.c.origin,
            )
            return set(connection.scalars(published.join(PRICES, later).distinct()))

    def last_timeline(self, name: str) -> dict[str, Any] | None:
        """The bars and the calendar of the last published forecasts, as ``Timeline.described``; None if unknown."""
        query = (
            sa.select(PUBLISHED.c.timeline)
            .where(PUBLISHED.c.name == name, PUBLISHED.c.timeline.is_not(sa.null()))
            .order_by(PUBLISHED.c.origin.desc())
            .limit(1)
        )
        rows = self.rows(query)
        return rows[0]["timeline"] if rows else None

    def subject(self, name: str) -> dict[str, Any] | None:
        """What the models of a name forecast; None if this was not recorded."""
        rows = self.rows(sa.select(SUBJECTS).where(SUBJECTS.c.name == name))
        return rows[0]["details"] if rows else None

    def add_subject(self, name: str, details: Mapping[str, Any]) -> None:
        """Record what the models of a name forecast, once."""
        with self.writing() as connection:
            connection.execute(
                sa.insert(SUBJECTS).prefix_with("OR IGNORE").values(name=name, details=dict(details))
            )

    def settle(self, name: str, prices: Mapping[str, tuple[Sequence[str], Array]]) -> Settled:
        """Record the prices that arrived, and score the forecasts of these bars, in one transaction.

        Prices whose changes differ from those of the recorded prices are another series, for example in another
        currency; nothing of them is recorded.

        Args:
            name: name in the model store.
            prices: by symbol, the dates or times of its bars, ISO 8601, oldest first, and the prices, shape (n,).
        """
        with self.writing() as connection:
            seen = _observe(connection, name, prices)
            count, scored = _score(connection, name, seen.dates)
            _summarize(connection, name, scored)
        return Settled(
            seen.count, seen.corrected, count, sorted({each.target for each in scored}), seen.others
        )

    def add_event(
        self,
        name: str,
        kind: Event,
        *,
        version: str | None = None,
        session: str | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """Record an event of the models of a name.

        Args:
            name: name in the model store.
            kind: the kind of event.
            version: the version that the event concerns.
            session: the last known session.
            details: reasons and figures, plain values.
        """
        with self.writing() as connection:
            connection.execute(
                sa.insert(EVENTS).values(
                    name=name,
                    at=_now(),
                    kind=kind,
                    version=version,
                    session=session,
                    details=dict(details or {}),
                )
            )

    def events(self, name: str, *kinds: Event, limit: int | None = None) -> list[dict[str, Any]]:
        """The events of a name, of these kinds or of all, latest first."""
        query = sa.select(EVENTS).where(EVENTS.c.name == name).order_by(EVENTS.c.id.desc()).limit(limit)
        return self.rows(query.where(EVENTS.c.kind.in_(kinds)) if kinds else query)

    def names(self) -> list[str]:
        """The names that have published forecasts."""
        return [row["name"] for row in self.rows(sa.select(PUBLISHED.c.name).distinct())]

    def published(self, *symbols: str) -> list[dict[str, Any]]:
        """The last published forecasts of these symbols, or of all, with quantiles (199,), nearest bar first.

        They have the columns of the table ``forecasts``, and ``timeline``.
        """
        of = sa.and_(
            FORECASTS.c.name == PUBLISHED.c.name,
            FORECASTS.c.symbol == PUBLISHED.c.symbol,
            FORECASTS.c.origin == PUBLISHED.c.origin,
            FORECASTS.c.model == PUBLISHED.c.model,
            FORECASTS.c.revision == PUBLISHED.c.revision,
            FORECASTS.c.target > PUBLISHED.c.origin,
        )
        # SQLite must begin with the short table; an outer join forces this.
        query = (
            sa.select(FORECASTS, PUBLISHED.c.timeline)
            .select_from(PUBLISHED.outerjoin(FORECASTS, of))
            .order_by(FORECASTS.c.symbol, FORECASTS.c.target)
        )
        if symbols:
            query = query.where(PUBLISHED.c.symbol.in_(symbols))
        rows = [row for row in self.rows(query) if row["id"] is not None]
        return [row | {"quantiles": _quantiles(row["quantiles"])} for row in rows]

    def settled(self, name: str, symbol: str, count: int) -> list[dict[str, Any]]:
        """The last published and scored forecasts of one step, oldest first: of each bar, the one published last.

        They have the columns of the table ``forecasts``, and ``realized``, ``crps`` and ``pit``.
        """
        latest = (
            sa.select(sa.func.max(SCORES.c.id))
            .where(SCORES.c.forecast_id == FORECASTS.c.id)
            .correlate(FORECASTS)
            .scalar_subquery()
        )
        later = FORECASTS.alias()
        same = [later.c[key] == FORECASTS.c[key] for key in ("name", "target", "symbol", "horizon", "role")]
        query = (
            sa.select(FORECASTS, SCORES.c.realized, SCORES.c.crps, SCORES.c.pit)
            .join(SCORES, SCORES.c.id == latest)
            .where(FORECASTS.c.symbol == symbol, FORECASTS.c.name == name)
            .where(FORECASTS.c.role == "champion", FORECASTS.c.horizon == 1)
            .where(~sa.exists().where(*same, later.c.id > FORECASTS.c.id))
            .order_by(FORECASTS.c.target.desc())
            .limit(count)
        )
        rows = self.rows(query)
        return [row | {"quantiles": _quantiles(row["quantiles"])} for row in reversed(rows)]

    def sessions(self, name: str, since: str = "", horizon: int | None = None) -> list[dict[str, Any]]:
        """The scores of each session after ``since``, of every model and baseline, oldest first."""
        query = sa.select(SESSIONS).where(SESSIONS.c.name == name, SESSIONS.c.target > since)
        if horizon is not None:
            query = query.where(SESSIONS.c.horizon == horizon)
        return self.rows(query.order_by(SESSIONS.c.target))

    def last_prices(self, name: str, symbols: Sequence[str]) -> dict[str, str]:
        """By symbol, the date or time of its last recorded price, without symbols that have none."""
        with self._reading() as connection:
            return _last_prices(connection, name, symbols)

    def last_session(self, name: str) -> str | None:
        """The last session with recorded prices; None before the first."""
        with self._reading() as connection:
            found = connection.scalar(sa.select(sa.func.max(PRICES.c.date)).where(PRICES.c.name == name))
        return None if found is None else str(found)

    def tables(self) -> Iterator[tuple[sa.Table, Iterator[list[dict[str, Any]]]]]:
        """Each table and its rows in parts, all as of one moment, for an export; quantiles are arrays (199,)."""

        def parts(connection: sa.Connection, table: sa.Table) -> Iterator[list[dict[str, Any]]]:
            found = connection.execution_options(yield_per=EXPORTED_AT_ONCE).execute(sa.select(table))
            for part in found.mappings().partitions():
                rows = [dict(row) for row in part]
                if table is FORECASTS:
                    rows = [row | {"quantiles": _quantiles(row["quantiles"])} for row in rows]
                yield rows

        with self._reading() as connection:
            for table in METADATA.sorted_tables:
                yield table, parts(connection, table)

    def rows(self, query: sa.Select[Any]) -> list[dict[str, Any]]:
        """The rows that a query selects, as dictionaries.

        Raises:
            LedgerError: when the ledger cannot be read.
        """
        with self._reading() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with self._errors(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction that writes, as a whole or not at all.

        Raises:
            LedgerError: when the ledger cannot be written.
        """
        with self._errors(), self._engine.connect() as connection:
            connection = connection.execution_options(**{IMMEDIATE: True})
            with connection.begin():
                yield connection

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn database errors into one line."""
        try:
            yield
        except sa.exc.SQLAlchemyError as error:
            reason = str(getattr(error, "orig", None) or error).splitlines()[0]
            remedy = "restore the file from a copy"
            if "locked" in reason:
                remedy = "close the other program that uses the file, and try again"
            elif "full" in reason:
                remedy = "free disk space there, and try again"
            raise LedgerError(f"the ledger {self.path} cannot be used ({reason}); {remedy}") from error


@dataclass(frozen=True)
class _Seen:
    """New facts: the number of new bars, the dates of new and corrected prices, and each corrected symbol and date; and
    the symbols with prices of another series."""

    count: int
    dates: list[str]
    corrected: list[tuple[str, str]]
    others: dict[str, str]


_Set = tuple[str, str, str]
"""The symbol, the origin and the model of a set of forecasts."""


def _content(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """The values in which forecasts of a model from one origin can differ."""
    return tuple(row[key] for key in ("role", "target", "horizon", "last_price", "prediction", "quantiles"))


def _recorded_sets(
    connection: sa.Connection, name: str, rows: Sequence[Mapping[str, Any]]
) -> dict[_Set, tuple[int, set[tuple[Any, ...]]]]:
    """The latest revision, and the contents of its forecasts, of each set that has forecasts of the same bars."""
    origins, targets = ({row[key] for row in rows} for key in ("origin", "target"))
    query = (
        sa.select(FORECASTS)
        .where(FORECASTS.c.name == name, FORECASTS.c.target.in_(sa.select(_each_of(sorted(targets)).c.value)))
        .where(FORECASTS.c.origin.in_(sa.select(_each_of(sorted(origins)).c.value)))
        .order_by(FORECASTS.c.revision)
    )
    found: dict[_Set, tuple[int, set[tuple[Any, ...]]]] = {}
    for row in map(dict, connection.execute(query).mappings()):
        key = row["symbol"], row["origin"], row["model"]
        revision, contents = found.get(key, (-1, set()))
        found[key] = row["revision"], (contents if row["revision"] == revision else set()) | {_content(row)}
    return found


def _bar(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What the revisions of a forecast have in common."""
    return tuple(row[key] for key in ("target", "symbol", "horizon", "model"))


def _latest_revisions(
    connection: sa.Connection, name: str, rows: Iterable[Mapping[str, Any]]
) -> dict[tuple[Any, ...], int]:
    """The latest revision of each forecast of these rows' bars, from whatever origin."""
    targets = sorted({row["target"] for row in rows})
    keys = [FORECASTS.c[key] for key in ("target", "symbol", "horizon", "model")]
    query = (
        sa.select(*keys, sa.func.max(FORECASTS.c.revision).label("revision"))
        .where(FORECASTS.c.name == name, FORECASTS.c.target.in_(sa.select(_each_of(targets).c.value)))
        .group_by(*keys)
    )
    return {_bar(row): row["revision"] for row in map(dict, connection.execute(query).mappings())}


def _published_revisions(connection: sa.Connection, name: str) -> dict[str, tuple[str, str, int]]:
    """By symbol, the origin, the model and the revision of the published forecasts."""
    query = sa.select(PUBLISHED).where(PUBLISHED.c.name == name)
    return {
        row["symbol"]: (row["origin"], row["model"], row["revision"])
        for row in connection.execute(query).mappings()
    }


def _last_prices(connection: sa.Connection, name: str, symbols: Iterable[str]) -> dict[str, str]:
    each = _each_of(list(symbols))
    # SQLite reads the index from its end until it finds the symbol, which is soon.
    last = (
        sa.select(PRICES.c.date)
        .where(PRICES.c.name == name, PRICES.c.symbol == each.c.value)
        .order_by(PRICES.c.date.desc())
        .limit(1)
        .scalar_subquery()
    )
    found = connection.execute(sa.select(each.c.value, last))
    return {symbol: date for symbol, date in found if date is not None}


def _known(
    connection: sa.Connection, name: str, spans: Mapping[str, tuple[str, str]]
) -> dict[str, dict[str, float]]:
    """The latest recorded prices by symbol and date, for each symbol from its first to its last date."""
    symbols = defaultdict(list)
    for symbol, span in spans.items():
        symbols[span].append(symbol)
    known: dict[str, dict[str, float]] = defaultdict(dict)
    for (first, last), some in symbols.items():
        query = sa.select(PRICES.c.symbol, PRICES.c.date, PRICES.c.price).where(
            PRICES.c.name == name,
            PRICES.c.date.between(first, last),
            PRICES.c.symbol.in_(sa.select(_each_of(some).c.value)),
        )
        for symbol, date, price in connection.execute(query.order_by(PRICES.c.id)):
            known[symbol][date] = price
    return known


def _observe(
    connection: sa.Connection, name: str, prices: Mapping[str, tuple[Sequence[str], Array]]
) -> _Seen:
    """Record new prices, and prices of the last ``WATCHED`` sessions that have changed.

    The sessions of each symbol are counted from the symbol's last price. So a symbol whose prices arrive late has no
    gap, and a change of its unit in the meantime is noticed. Prices of another series are left out.
    """
    now = _now()
    last = _last_prices(connection, name, prices)
    starts = {
        symbol: max(0, bisect.bisect_right(dates, last.get(symbol, dates[-1])) - WATCHED)
        for symbol, (dates, _) in prices.items()
        if len(dates)
    }
    spans = {
        symbol: (prices[symbol][0][start], last[symbol]) for symbol, start in starts.items() if symbol in last
    }
    known = _known(connection, name, spans)
    facts: list[dict[str, Any]] = []
    dates: set[str] = set()
    corrected: list[tuple[str, str]] = []
    others: dict[str, str] = {}
    new = 0
    for symbol, first in starts.items():
        stamps, values = prices[symbol]
        recent = dict(zip(stamps[first:], np.asarray(values)[first:].tolist(), strict=True))
        if (why := _other_series(known[symbol], recent)) is not None:
            others[symbol] = why
            continue
        factor = _factor(known[symbol], recent)
        if factor != 1:
            connection.execute(
                sa.insert(RESCALINGS).values(name=name, symbol=symbol, factor=factor, observed_at=now)
            )
        rounding = max(SAME_PRICE, SAME_FACTOR * abs(factor - 1))
        for date, price in recent.items():
            before = known[symbol].get(date)
            same = before is not None and abs(price - factor * before) <= rounding * abs(before)
            if same and factor == 1:
                continue
            facts.append({"name": name, "symbol": symbol, "date": date, "price": price, "observed_at": now})
            new += before is None
            if not same:
                dates.add(date)
            if not same and before is not None:
                corrected.append((symbol, date))
    if facts:
        connection.execute(sa.insert(PRICES), facts)
    return _Seen(new, sorted(dates), corrected, others)


def _other_series(known: Mapping[str, float], recent: Mapping[str, float]) -> str | None:
    """Why the recent prices are of another series than the known ones, in one line; None if they are of the same.

    Corrections change single prices and a split changes the unit of all, but most changes from bar to bar stay. In
    another currency, or of another column, most changes differ.
    """
    dates = sorted(known.keys() & recent.keys())
    before, now = (np.array([prices[date] for date in dates]) for prices in (known, recent))
    if len(dates) <= LEAST_CHANGES or min(before.min(), now.min()) <= 0:
        return None
    rounding = _rounding(before) / before + _rounding(now) / now
    tolerance = SAME_CHANGE + rounding[1:] + rounding[:-1]
    differ = np.abs(np.diff(np.log(now)) - np.diff(np.log(before))) > tolerance
    if differ.mean() <= MOST_OTHER:
        return None
    return (
        f"{differ.sum()} of the last {len(differ)} changes of its prices differ from the recorded ones, as in another "
        "currency or column"
    )


def _rounding(prices: Array) -> float:
    """Half the last decimal place of the prices, at most that of whole numbers."""
    exact = (
        digits for digits in range(DECIMALS) if np.allclose(prices, prices.round(digits), rtol=1e-9, atol=0)
    )
    return 0.5 * float(10.0 ** -next(exact, DECIMALS))


def _factor(known: Mapping[str, float], recent: Mapping[str, float]) -> float:
    """The factor by which most prices changed; 1.0 if most did not change, or not by one factor.

    A source that adjusts a split a day late leaves one price of the new unit among those of the old one.
    """
    ratios = np.array([recent[date] / known[date] for date in known.keys() & recent.keys() if known[date]])
    if len(ratios) < LEAST_OVERLAP:
        return 1.0
    factor = float(np.median(ratios))
    change = abs(factor - 1)
    by_factor = np.abs(ratios - factor) <= SAME_FACTOR * change
    return factor if change > SAME_PRICE and by_factor.mean() > MOST else 1.0


def _superseded() -> sa.ColumnElement[bool]:
    """Whether a later revision of a forecast was issued."""
    later = FORECASTS.alias()
    same = [later.c[key] == FORECASTS.c[key] for key in ("name", "target", "symbol", "horizon", "model")]
    return sa.exists().where(*same, later.c.revision > FORECASTS.c.revision)


def _score(connection: sa.Connection, name: str, dates: Sequence[str]) -> tuple[int, list[Scored]]:
    """Score the forecasts of these dates on the latest recorded prices, and record the scores.

    Returns:
        Their number, and those of them that are not superseded, in the order in which they were issued.
    """
    if not dates:
        return 0, []
    listed = sa.select(_each_of(dates).c.value)
    latest = (
        sa.select(sa.func.max(PRICES.c.id))
        .where(PRICES.c.name == name, PRICES.c.date.in_(listed))
        .group_by(PRICES.c.date, PRICES.c.symbol)
    )
    query = (
        sa.select(FORECASTS, PRICES.c.id.label("price_id"), PRICES.c.price, _superseded().label("superseded"))
        .join(PRICES, sa.and_(PRICES.c.symbol == FORECASTS.c.symbol, PRICES.c.date == FORECASTS.c.target))
        .outerjoin(SCORES, sa.and_(SCORES.c.forecast_id == FORECASTS.c.id, SCORES.c.price_id == PRICES.c.id))
        .where(FORECASTS.c.name == name, FORECASTS.c.target.in_(listed), PRICES.c.id.in_(latest))
        .where(SCORES.c.id.is_(None))
        .order_by(FORECASTS.c.id)
    )
    rows = connection.execute(query).mappings().all()
    if not rows:
        return 0, []
    rescalings = connection.execute(
        sa.select(RESCALINGS).where(RESCALINGS.c.name == name).order_by(RESCALINGS.c.id)
    ).all()
    realized = np.array([row["price"] for row in rows])
    for each in rescalings:
        later = [row["symbol"] == each.symbol and row["issued_at"] < each.observed_at for row in rows]
        realized[later] /= each.factor
    quantiles = np.stack([_quantiles(row["quantiles"]) for row in rows])
    points = np.array([row["prediction"] for row in rows])
    crps = METRICS["CRPS"].losses(realized, Forecasts(points, quantiles))
    pits = pit(quantiles, realized)
    connection.execute(
        sa.insert(SCORES),
        [
            {
                "forecast_id": row["id"],
                "price_id": row["price_id"],
                "realized": float(realized[i]),
                "crps": float(crps[i]),
                "pit": float(pits[i]),
            }
            for i, row in enumerate(rows)
        ],
    )
    return len(rows), [
        Scored(
            symbol=row["symbol"],
            target=row["target"],
            horizon=row["horizon"],
            model=row["model"],
            role=row["role"],
            quantiles=quantiles[i],
            crps=float(crps[i]),
            pit=float(pits[i]),
        )
        for i, row in enumerate(rows)
        if not row["superseded"]
    ]


def _summarize(connection: sa.Connection, name: str, scored: Sequence[Scored]) -> None:
    """Compute the rows of ``sessions`` for the scored dates; their evidence stays that of the first scores."""
    dates = sorted({each.target for each in scored})
    if not dates:
        return
    listed = sa.select(_each_of(dates).c.value)
    last = (
        sa.select(sa.func.max(SCORES.c.id))
        .join(FORECASTS, FORECASTS.c.id == SCORES.c.forecast_id)
        .where(FORECASTS.c.name == name, FORECASTS.c.target.in_(listed))
        .group_by(SCORES.c.forecast_id)
    )

    def inside(level: float) -> Any:
        return sa.func.sum(sa.func.abs(SCORES.c.pit - 0.5) <= level / 2)

    key = (FORECASTS.c.name, FORECASTS.c.target, FORECASTS.c.horizon, FORECASTS.c.model)
    means = (
        sa.select(
            *key,
            # A promoted shadow is the champion, even if some symbols have only its forecasts from before.
            sa.func.min(FORECASTS.c.role),
            sa.func.count(),
            sa.func.avg(SCORES.c.crps / FORECASTS.c.unit),
            sa.func.avg(sa.func.abs(FORECASTS.c.prediction - SCORES.c.realized) / FORECASTS.c.unit),
            inside(0.5),
            inside(0.9),
            sa.func.max(FORECASTS.c.id),
        )
        .join(SCORES, SCORES.c.forecast_id == FORECASTS.c.id)
        .where(FORECASTS.c.name == name, FORECASTS.c.target.in_(listed), SCORES.c.id.in_(last))
        .where(~_superseded())
        .group_by(*key)
    )
    names = [column.name for column in SESSIONS.c if column.name != "evidence"]
    insert = sqlite.insert(SESSIONS).from_select(names, means)
    computed = names[4:]
    connection.execute(
        insert.on_conflict_do_update(
            index_elements=["name", "target", "horizon", "model"],
            set_={column: insert.excluded[column] for column in computed},
        )
    )
    for (target, horizon, model), found in evidence_of(scored).items():
        connection.execute(
            sa.update(SESSIONS)
            .where(SESSIONS.c.name == name, SESSIONS.c.target == target, SESSIONS.c.horizon == horizon)
            .where(SESSIONS.c.model == model, SESSIONS.c.evidence.is_(None))
            .values(evidence=found)
        )


def _each_of(values: Sequence[Any]) -> sa.TableValuedAlias:
    """Values as a table in one parameter of a query, because SQLite limits the number of parameters."""
    return sa.func.json_each(json.dumps(values)).table_valued("value")


def _unit(quantiles: Array) -> float:
    """Half the distance between the quartiles; a small positive number if the quartiles are equal."""
    lower, upper = quantiles[QUARTILES]
    return float(max((upper - lower) / 2, abs(upper) * SAME_PRICE, np.finfo(np.float64).tiny))


def _quantiles(packed: bytes) -> Array:
    return np.frombuffer(packed, "<f4").astype(np.float64)


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="microseconds")


def _configure(connection: Any, _record: Any) -> None:
    """Prepare a connection: the driver alone would begin transactions late, and a power cut must lose no forecast."""
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute(f"PRAGMA busy_timeout={round(1000 * LOCK_WAIT)}")
    cursor.close()


def _begin(connection: sa.Connection) -> None:
    """Begin a transaction; a writer takes its lock at once, because a reader's lock cannot always become a writer's."""
    immediate = connection.get_execution_options().get(IMMEDIATE)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def _migrate(engine: sa.Engine) -> None:
    """Bring the tables up to date."""
    found = current(engine)
    if found == LATEST:
        return
    if found is not None and found > LATEST:
        raise LedgerError(
            f"the ledger {engine.url.database} was written by a later version of this project; install that version"
        )
    # Imported here because the tables are usually up to date.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.connect().execution_options(**{IMMEDIATE: True}) as connection:
        # A migration that copies a table drops the old one, to whose rows others refer; only outside a transaction does
        # SQLite take this setting.
        _set_foreign_keys(connection, "OFF")
        with connection.begin():
            config.attributes["connection"] = connection
            command.upgrade(config, LATEST)
        _set_foreign_keys(connection, "ON")


def _set_foreign_keys(connection: sa.Connection, state: Literal["ON", "OFF"]) -> None:
    assert connection.connection.dbapi_connection is not None
    connection.connection.dbapi_connection.cursor().execute(f"PRAGMA foreign_keys={state}")


def current(engine: sa.Engine) -> str | None:
    """The version of the tables; None if there are no tables."""
    with engine.connect() as connection:
        if not sa.inspect(connection).has_table("alembic_version"):
            return None
        found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    return None if found is None else str(found)
