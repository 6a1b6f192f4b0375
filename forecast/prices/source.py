"""Sources of prices: Yahoo, the local cache, the bundled snapshot, a file, or a source that a package adds."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from forecast.config import DataConfig, home_expanded, parse_settings
from forecast.errors import DataError, UsageError
from forecast.notices import Notify as Notify
from forecast.notices import each_once as each_once
from forecast.notices import say_on_stderr as say_on_stderr
from forecast.prices import cache, locations, snapshot, yahoo
from forecast.prices.bars import arrange
from forecast.prices.files import PACKED, READABLE, Sheet, open_file, read_file
from forecast.prices.integrity import RuleResult, check_integrity
from forecast.prices.many import Answer, ask_for_many, given
from forecast.prices.series import Provenance, Series, hash_rows
from forecast.prices.table import Table
from forecast.registry import Registry


def _say_nothing(line: str) -> None:
    pass


@dataclass(frozen=True)
class Request:
    """A request to a source.

    Attributes:
        symbol: symbol whose prices are requested.
        notify: called with a line for a person.
        interval: name of the bar length; ``auto`` or None for days.
    """

    symbol: str
    notify: Notify
    interval: str | None = None

    @property
    def bars(self) -> str:
        """Name of the bar length that a source without a length of its own gives."""
        return self.interval if self.interval not in (None, "auto") else "1d"


Source = Callable[[Request], Table]
"""Returns the whole history of a symbol.

It raises SourceUnavailable when it gets no answer, RateLimited when it is asked too often, and UnknownSymbol when it is
sure that the symbol has no prices. For many symbols, it is called for one after the other.
"""


def read_yahoo(request: Request) -> Table:
    """Read prices from Yahoo Finance and store them in the local cache."""
    table = yahoo.fetch(request.symbol, request.bars)
    problem = cache.store(request.symbol, table, request.bars)
    if problem:
        request.notify(problem)
    return table


def read_snapshot(request: Request) -> Table:
    """Read the snapshot that is bundled with the package.

    Raises:
        DataError: when the symbol has no snapshot.
    """
    bundled = snapshot.load(request.symbol)
    if bundled is None:
        raise DataError(
            f"there is no snapshot of {request.symbol!r}, only of {', '.join(snapshot.RETRIEVED)}; "
            "use `source=yahoo` or a file"
        )
    return bundled


def read_auto(request: Request) -> Table:
    """Read Yahoo, else the cached copy, else the snapshot; a fallback is noted in the table.

    Raises:
        DataError: when none of the three has prices.
    """
    return _or_a_copy(request, partial(read_yahoo, request))


def _or_a_copy(request: Request, read: Callable[[], Table]) -> Table:
    """The table that ``read`` returns, else the cached copy or the snapshot of the symbol, which says why."""
    symbol = request.symbol
    try:
        return replace(read(), source="yahoo")
    except DataError as error:
        reason, kind = str(error), type(error)
    for name, copy in (("cache", cache.load(symbol, request.bars)), ("snapshot", snapshot.load(symbol))):
        if copy is not None:
            return replace(copy, source=name, fallback=reason)
    raise kind(
        f"{reason}, and there is no cached copy or snapshot of {symbol!r}; check the network and the symbol, or give "
        "a file as `source`"
    )


SOURCES: Registry[Source] = Registry(
    "source", "forecast.sources", {"auto": read_auto, "yahoo": read_yahoo, "snapshot": read_snapshot}
)
"""Every source by name; any other ``source`` is the path of a file or a directory, or the address of a file or a
database."""


def load_series(
    symbol: str = DataConfig.model_fields["symbol"].default,
    feature: str = DataConfig.model_fields["feature"].default,
    source: str = DataConfig.model_fields["source"].default,
    start: str | dt.date | None = None,
    end: str | dt.date | None = None,
    *,
    input_columns: Sequence[str] = (),
    keep_non_positive: bool = False,
    notify: Notify | None = say_on_stderr,
    **reading: Any,
) -> Series:
    """Load the prices of one feature of one symbol, clean, oldest first.

    Args:
        symbol: as Yahoo Finance spells it.
        feature: the column of prices; case, spaces and underscores do not matter.
        source: ``auto`` (Yahoo, else the local cache, else the bundled snapshot), ``yahoo``, ``snapshot``, another name
            in ``SOURCES``, the path of a file or a directory, or the address of a file or a database, with ``${NAME}``
            for secrets.
        start: first day, ISO date; by default all history.
        end: day to stop before, ISO date.
        input_columns: other columns that the model sees.
        keep_non_positive: keep zero and negative prices instead of dropping them as errors.
        notify: called with a line when ``auto`` falls back; None for no notice.
        reading: ``interval``, ``calendar`` and the fields of ``FileConfig``, such as ``decimal``.

    Raises:
        UsageError: when ``start`` is not before ``end``, or an argument is invalid.
        DataError: when the prices cannot be read or hold nothing usable; the message names the remedy.
    """
    config = parse_settings(
        DataConfig,
        {
            "symbol": symbol,
            "feature": feature,
            "source": source,
            "start": start,
            "end": end,
            "input_columns": tuple(input_columns),
            "keep_non_positive": keep_non_positive,
            "log_prices": not keep_non_positive,
            **reading,
        },
    )
    return series_from_config(config, notify=notify)


def series_from_config(config: DataConfig, *, notify: Notify | None = say_on_stderr) -> Series:
    """Load the prices that ``config`` describes; see ``load_series``."""
    say = notify or _say_nothing
    table = _read(config, say)
    if table.fallback is not None:
        first, last = table.dates.min(), table.dates.max()
        say(f"{table.fallback}; using {table.origin} of {config.symbol} instead, {first} to {last}")
    if line := assumed_symbol(config):
        say(line)
    return series_of_table(table, config, notify=say)


def assumed_symbol(config: DataConfig) -> str | None:
    """A line that says which symbol the rows of a file or a table get, if none was given; else None."""
    if "symbol" in config.model_fields_set or config.source in SOURCES:
        return None
    return (
        f"no symbol is given: the prices are taken to be those of {config.symbol}; name another with `symbol`"
    )


def series_of_table(table: Table, config: DataConfig, *, notify: Notify) -> Series:
    """The clean series of a table, as ``config`` describes it; errors as ``load_series``."""
    columns = (config.feature, *config.input_columns)
    bars = arrange(
        table,
        np.stack([table.values(name) for name in columns], axis=-1),
        columns,
        symbol=config.symbol,
        interval=config.interval,
        calendar=config.calendar,
    )
    for note in (*table.notes, *bars.notes):
        notify(note)
    timeline, as_of = bars.timeline, table.as_of
    # The rules see the whole history, so that a repair does not depend on the requested range; the report covers the
    # whole history too.
    dates, matrix, report = check_integrity(
        bars.dates,
        bars.matrix,
        columns,
        as_of=timeline.first_incomplete(np.sort(bars.dates), as_of)
        if isinstance(as_of, dt.datetime)
        else as_of,
        expected=timeline.expected,
        unit=timeline.unit,
        show=timeline.text,
        keep_non_positive=config.keep_non_positive,
    )
    outside = RuleResult(
        "lines_outside", len(table.outside), "not rows of the table", "; ".join(table.outside[:1])
    )
    report = replace(report, rules=(outside, *report.rules))
    if not len(dates):
        raise DataError(
            f"{table.origin} has no usable {' and '.join(columns)} of {config.symbol} ({report.rows_in} rows, none of "
            "them good); choose another `feature` or `source`"
        )
    asked_for, local = np.ones(len(dates), dtype=bool), timeline.local(dates)
    if config.start:
        asked_for &= local >= np.datetime64(config.start)
    if config.end:
        asked_for &= local < np.datetime64(config.end)
    if not asked_for.any():
        limits = [f"from {config.start}"] if config.start else []
        limits += [f"before {config.end}"] if config.end else []
        raise DataError(
            f"{table.origin} has {config.symbol} from {local[0]} to {local[-1]}, but nothing {' and '.join(limits)}; "
            "change `start` or `end`"
        )
    dates, matrix = dates[asked_for], matrix[asked_for]
    first_date, last_date = timeline.text(dates[[0, -1]])
    provenance = Provenance(
        source=table.source or config.source,
        requested=config.source,
        first_date=first_date,
        last_date=last_date,
        rows=len(dates),
        sha256=hash_rows(dates, matrix),
        fallback=table.fallback,
        retrieved=table.retrieved.isoformat() if table.retrieved else None,
        **timeline.described(),
        calendar_fit=str(bars.choice),
    )
    return Series(dates, matrix, columns, config.symbol, provenance, timeline, report)


def _read(config: DataConfig, notify: Notify) -> Table:
    if config.source in SOURCES:
        return SOURCES[config.source](Request(config.symbol, notify, config.interval))
    path = source_path(config.source)
    if path is not None and path.is_dir():
        return read_file(locations.Folder(path).file_of(config.symbol), config.symbol, config)
    return open_source(config, [config.symbol]).table(config.symbol, config)


def readers_of_many(
    symbols: Sequence[str], config: DataConfig, notify: Notify
) -> dict[str, Callable[[], Table]]:
    """Ask a named source for all symbols; the functions return each one's table, or raise why there is none.

    Yahoo is not asked for a symbol whose cached copy is still complete.
    """
    requests = {symbol: Request(symbol, notify, config.interval) for symbol in symbols}
    read, at_a_time, copies = SOURCES[config.source], 1, dict[str, Answer]()
    if config.source in ("auto", "yahoo"):
        read, at_a_time = read_yahoo, yahoo.AT_A_TIME
        for symbol, request in requests.items():
            if (copy := cache.load_current(symbol, request.bars, dt.datetime.now(dt.UTC))) is not None:
                copies[symbol] = copy
    if copies:
        notify(
            f"prices of {len(copies)} of {len(symbols)} symbols were fetched before, and no bar has ended since; "
            "these symbols are not fetched again"
        )
    missing = [symbol for symbol in symbols if symbol not in copies]
    answers = copies | ask_for_many(
        missing, lambda symbol: read(requests[symbol]), notify, at_a_time=at_a_time
    )
    if config.source == "auto":
        return {
            symbol: partial(_or_a_copy, request, partial(given, answers[symbol]))
            for symbol, request in requests.items()
        }
    return {symbol: partial(given, answers[symbol]) for symbol in symbols}


def source_path(source: str) -> Path | None:
    """The path of a file or a directory; None where the source is an address.

    Raises:
        UsageError: when it is neither an address, nor the path of something, nor that of a file that could be read.
    """
    resolved = locations.resolve(source)
    if locations.is_address(resolved):
        return None
    path = home_expanded(resolved)
    if not path.exists() and not {ending.lower() for ending in path.suffixes} & {*READABLE, *PACKED}:
        raise UsageError(
            f"`source` {source}: give {', '.join(SOURCES)}, the path of a file such as prices.csv or of a directory, "
            "or the address of a file or a database"
        )
    return path


def open_source(config: DataConfig, symbols: Sequence[str] | None) -> Sheet:
    """The cells of a file or a database; of a database only those of ``symbols``, if some are given."""
    if (path := source_path(config.source)) is not None:
        return open_file(path, config)
    from forecast.prices import database

    address = locations.resolve(config.source)
    if database.is_database(address):
        return database.open_database(config.source, address, symbols, config)
    return locations.open_address(config.source, address, config)
