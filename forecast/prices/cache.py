"""A local cache of Yahoo's latest answers, one Parquet file per symbol and bar length, for when Yahoo is down."""

from __future__ import annotations

import datetime as dt
import hashlib
import os
from pathlib import Path
from urllib.parse import quote

import numpy as np
import platformdirs
import pyarrow as pa
import pyarrow.parquet as pq

from forecast.atomic import write_atomically
from forecast.errors import DataError
from forecast.prices import calendars
from forecast.prices.intervals import parse_interval
from forecast.prices.table import Table

DIRECTORY_VARIABLE = "FORECAST_CACHE_DIR"
DATE_COLUMN, OFFSET_COLUMN = "__date__", "__offset__"


def cache_path(symbol: str, interval: str = "1d") -> Path:
    """Path of the copy of ``symbol``; ``FORECAST_CACHE_DIR`` overrides the user's cache directory."""
    given = os.environ.get(DIRECTORY_VARIABLE)
    directory = Path(given) if given else platformdirs.user_cache_path("pareto-price-forecaster")
    bars = "" if interval == "1d" else f"@{interval}"
    return directory / f"{quote(symbol, safe='')}{bars}.parquet"


def store(symbol: str, table: Table, interval: str = "1d") -> str | None:
    """Store ``table`` as the copy of ``symbol``; return None, or one line that says why it failed."""
    more = {DATE_COLUMN: table.dates} | ({} if table.offsets is None else {OFFSET_COLUMN: table.offsets})
    content = pa.Table.from_pandas(table.columns.assign(**more), preserve_index=False)
    facts = {
        "symbol": symbol,
        "as_of": table.as_of.isoformat(),
        "exchange": table.exchange or "",
        "retrieved": table.retrieved.isoformat() if table.retrieved else "",
        "sha256": _digest(symbol, table),
    }
    content = content.replace_schema_metadata({**(content.schema.metadata or {}), **facts})
    try:
        write_atomically(cache_path(symbol, interval), lambda stream: pq.write_table(content, stream))
    except OSError as error:
        return (
            f"prices could not be kept in the cache at {cache_path(symbol, interval)} ({error.strerror}); set "
            f"{DIRECTORY_VARIABLE} to a directory that can be written"
        )
    return None


def load(symbol: str, interval: str = "1d") -> Table | None:
    """Load the copy of ``symbol``; None when it is missing, damaged, or of another symbol."""
    try:
        content = pq.read_table(cache_path(symbol, interval))
        facts = {key.decode(): value.decode() for key, value in (content.schema.metadata or {}).items()}
        frame = content.to_pandas()
        offsets = frame.pop(OFFSET_COLUMN).to_numpy() if OFFSET_COLUMN in frame.columns else None
        table = Table(
            dates=frame.pop(DATE_COLUMN)
            .to_numpy()
            .astype("datetime64[s]" if offsets is not None else "datetime64[D]"),
            columns=frame,
            as_of=(dt.datetime if "T" in facts["as_of"] else dt.date).fromisoformat(facts["as_of"]),
            offsets=offsets,
            exchange=facts.get("exchange") or None,
            origin="the local cache",
            retrieved=dt.date.fromisoformat(facts["retrieved"]) if facts["retrieved"] else None,
        )
        whole = facts["symbol"] == symbol and facts["sha256"] == _digest(symbol, table)
    except Exception:  # a damaged file can make the decoders raise anything, and no copy is ever required
        return None
    return table if whole else None


def load_current(symbol: str, interval: str, now: dt.datetime) -> Table | None:
    """The copy of ``symbol``, if no bar has ended since it was taken; None also where nothing names its calendar."""
    copy = load(symbol, interval)
    if copy is None or (name := calendars.named(symbol, copy.exchange)[0]) is None:
        return None
    calendar = calendars.get(name)
    # For daily bars, it is the first day that was not complete: its close comes after the moment of the copy.
    taken = np.datetime64(copy.as_of.isoformat()[:19])
    until = np.datetime64(now.astimezone(dt.UTC).replace(tzinfo=None), "s")
    first, last = taken.astype("datetime64[D]"), until.astype("datetime64[D]") + calendars.DAY
    try:
        if seconds := parse_interval(interval).seconds:
            grids = [calendars.BarGrid(seconds, anchor, "end") for anchor in calendars.ANCHORS]
            ends = np.concatenate([calendar.bars(first - calendars.DAY, last, grid) for grid in grids])
        else:
            ends = calendar.open_close(calendar.sessions(first, last))[1]
    except DataError:  # outside the years that the calendar knows
        return None
    return None if ((ends > taken) & (ends <= until)).any() else copy


def _digest(symbol: str, table: Table) -> str:
    """SHA-256 of everything that is stored: Parquet itself reads many flipped bits as another price."""
    names = [str(name) for name in table.columns.columns]
    digest = hashlib.sha256(repr((symbol, str(table.as_of), str(table.retrieved), names)).encode())
    digest.update(table.dates.astype("<i8").tobytes())
    if table.offsets is not None:
        digest.update(table.offsets.astype("<i8").tobytes())
    digest.update(np.ascontiguousarray(table.columns.to_numpy(dtype="<f8", na_value=np.nan)).tobytes())
    return digest.hexdigest()
