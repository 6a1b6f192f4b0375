"""Where prices come from: Yahoo, the local cache, the bundled snapshot, or a file."""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from forecast import cache, snapshot, yahoo
from forecast.command import parse_settings
from forecast.config import DataConfig
from forecast.errors import DataError, UsageError
from forecast.files import READABLE, read_file
from forecast.integrity import check_integrity
from forecast.series import Provenance, Series, hash_rows
from forecast.table import Table

Notify = Callable[[str], None]


def say_on_stderr(line: str) -> None:
    """Print one line for a person, away from the output for machines."""
    print(line, file=sys.stderr)


def _say_nothing(line: str) -> None:
    pass


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
) -> Series:
    """Prices of one feature of one symbol, clean, oldest first.

    Args:
        symbol: as Yahoo Finance spells it.
        feature: the column of prices; case, spaces and underscores do not matter.
        source: ``auto`` (Yahoo, else the local cache, else the bundled snapshot), ``yahoo``, ``snapshot``, or
            the path of a ``.csv`` or ``.parquet`` file.
        start: first day, ISO date; all history unless given.
        end: day to stop before, ISO date.
        input_columns: further columns to take along.
        keep_non_positive: keep zero and negative prices instead of dropping them as errors.
        notify: gets a line when ``auto`` had to fall back; None to say nothing.

    Raises:
        UsageError: when ``start`` is not before ``end``, or an argument is not what it should be.
        DataError: when the prices cannot be had or hold nothing usable; the message names the remedy.
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
        },
    )
    return series_from_config(config, notify=notify)


def series_from_config(config: DataConfig, *, notify: Notify | None = say_on_stderr) -> Series:
    """Prices as ``config`` asks for them; see ``load_series``."""
    table, used, fallback = _read(config, notify or _say_nothing)
    columns = [config.feature, *config.input_columns]
    values = np.stack([table.values(name) for name in columns], axis=-1)
    # The rules see the whole history, so that a repair does not depend on the range that was asked for;
    # the report is of the whole history too.
    dates, values, report = check_integrity(
        table.dates,
        values if len(columns) > 1 else values[:, 0],
        as_of=table.as_of,
        keep_non_positive=config.keep_non_positive,
        names=columns,
    )
    if not len(dates):
        raise DataError(
            f"{table.origin} has no usable {' and '.join(columns)} of {config.symbol} ({report.rows_in} rows, none of "
            "them good); choose another --feature or --source"
        )
    wanted = np.ones(len(dates), dtype=bool)
    if config.start:
        wanted &= dates >= np.datetime64(config.start)
    if config.end:
        wanted &= dates < np.datetime64(config.end)
    if not wanted.any():
        asked = [f"from {config.start}"] if config.start else []
        asked += [f"before {config.end}"] if config.end else []
        raise DataError(
            f"{table.origin} has {config.symbol} from {dates[0]} to {dates[-1]}, nothing {' and '.join(asked)}; "
            "change --start or --end"
        )
    dates, values = dates[wanted], values[wanted]
    provenance = Provenance(
        source=used,
        requested=config.source,
        first_date=str(dates[0]),
        last_date=str(dates[-1]),
        rows=len(values),
        sha256=hash_rows(dates, values),
        fallback=fallback,
        retrieved=table.retrieved.isoformat() if table.retrieved else None,
    )
    matrix = values.reshape(len(values), -1)
    further = {name: matrix[:, i].copy() for i, name in enumerate(columns) if i}
    return Series(dates, matrix[:, 0].copy(), config.symbol, config.feature, provenance, report, further)


def _read(config: DataConfig, notify: Notify) -> tuple[Table, str, str | None]:
    """The table, what it was read from, and why that is not what was asked for."""
    if config.source == "auto":
        return _read_auto(config.symbol, notify)
    if config.source == "yahoo":
        table = yahoo.fetch(config.symbol)
        _keep(config.symbol, table, notify)
        return table, "yahoo", None
    if config.source == "snapshot":
        bundled = snapshot.load(config.symbol)
        if bundled is None:
            raise DataError(
                f"there is no snapshot of {config.symbol!r}, only of {', '.join(snapshot.RETRIEVED)}; "
                "use --source yahoo or a file"
            )
        return bundled, "snapshot", None
    path = Path(config.source).expanduser()
    if path.suffix.lower() not in READABLE and not path.exists():
        raise UsageError(
            f"--source {config.source}: give auto, yahoo, snapshot, or the path of a .csv or .parquet file"
        )
    return read_file(path, config.symbol), config.source, None


def _read_auto(symbol: str, notify: Notify) -> tuple[Table, str, str | None]:
    try:
        table = yahoo.fetch(symbol)
    except DataError as error:
        reason = str(error)
    else:
        _keep(symbol, table, notify)
        return table, "yahoo", None
    for name, copy in (("cache", cache.load(symbol)), ("snapshot", snapshot.load(symbol))):
        if copy is not None:
            first, last = copy.dates.min(), copy.dates.max()
            notify(f"{reason}; using {copy.origin} of {symbol} instead, {first} to {last}")
            return copy, name, reason
    raise DataError(
        f"{reason}, and there is no cached copy or snapshot of {symbol!r}; check the network and the symbol, or give "
        "a file with --source"
    )


def _keep(symbol: str, table: Table, notify: Notify) -> None:
    problem = cache.store(symbol, table)
    if problem:
        notify(problem)
