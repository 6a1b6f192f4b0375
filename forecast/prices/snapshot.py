"""The bundled snapshot: real prices that need no network; see ``data/PROVENANCE.md``."""

from __future__ import annotations

import dataclasses
import datetime as dt
from importlib.resources import as_file, files

from forecast.prices.files import read_file
from forecast.prices.table import Table

RETRIEVED = {"BTC-USD": dt.date(2020, 1, 17)}
"""The bundled symbols, and the day each one's prices were taken; that day's row is incomplete."""


def load(symbol: str) -> Table | None:
    """Load the snapshot of ``symbol``; None when none is bundled."""
    if symbol not in RETRIEVED:
        return None
    with as_file(files("forecast") / "data" / f"{symbol}.csv") as path:
        table = read_file(path, symbol)
    taken = RETRIEVED[symbol]
    return dataclasses.replace(table, as_of=taken, retrieved=taken, origin="the bundled snapshot")
