"""Panels: the clean series of many symbols, from every kind of source."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from forecast.config import DataConfig, home_expanded, parse_settings
from forecast.errors import DataError, SourceStopped, UsageError
from forecast.names import listed
from forecast.prices.files import Sheet, read_file
from forecast.prices.integrity import IntegrityReport
from forecast.prices.locations import Folder
from forecast.prices.series import Provenance, Series
from forecast.prices.source import (
    SOURCES,
    Notify,
    each_once,
    open_source,
    readers_of_many,
    say_on_stderr,
    series_of_table,
    source_path,
)
from forecast.prices.symbols import require_one_spelling
from forecast.prices.table import Table

ALL = "all"
"""The name that stands for every symbol of a file, a directory or a database."""
UNNAMED = "panel"
"""The name of a panel unless it has its own."""
LISTED = "@"
"""What the path of a file of names starts with; spaces, commas, semicolons or line breaks separate the names."""


@dataclass(frozen=True)
class Panel:
    """The series of many symbols, all of the same feature.

    Attributes:
        series: by symbol, in the order of the request.
        left_out: by symbol, why each of the others cannot be used, in one line.
        symbol: the panel's own name.
    """

    series: Mapping[str, Series]
    left_out: Mapping[str, str] = field(default_factory=dict)
    symbol: str = UNNAMED

    def __len__(self) -> int:
        return len(self.series)

    @property
    def feature(self) -> str:
        """Name of the column that is forecast."""
        return self._first.feature

    @property
    def provenance(self) -> Provenance:
        """The origin of all series together."""
        every = [series.provenance for series in self.series.values()]
        hashed = " ".join(f"{symbol} {each.sha256}" for symbol, each in zip(self.series, every, strict=True))
        return replace(
            every[0],
            first_date=min(each.first_date for each in every),
            last_date=max(each.last_date for each in every),
            rows=sum(each.rows for each in every),
            sha256=hashlib.sha256(hashed.encode()).hexdigest(),
        )

    @property
    def integrity(self) -> IntegrityReport:
        """What the rules found in all series together."""
        reports = [series.integrity for series in self.series.values()]
        rules = [
            replace(of_rule[0], found=sum(each.found for each in of_rule), detail="")
            for of_rule in zip(*(report.rules for report in reports), strict=True)
        ]
        read, kept = (sum(getattr(report, name) for report in reports) for name in ("rows_in", "rows_out"))
        return IntegrityReport(read, kept, tuple(rules))

    @property
    def _first(self) -> Series:
        return next(iter(self.series.values()))


def load_panel(symbols: Sequence[str], *, notify: Notify | None = say_on_stderr, **reading: Any) -> Panel:
    """Load the prices of many symbols, each cleaned on its own.

    A symbol without usable prices is left out, with the reason, and the others are loaded.

    Args:
        symbols: their names; ``all`` for every symbol of a file, a directory or a database; ``@names.txt`` for the
            symbols that a file lists.
        notify: called with a line for a person; None for no notices.
        reading: the fields of ``DataConfig`` other than the symbol, such as ``source``; see ``load_series``.

    Raises:
        UsageError: when no name is given, an argument is invalid, or ``all`` is asked of a source that cannot list its
            symbols.
        DataError: when the source cannot be read or stops answering, or no symbol has usable prices.
    """
    return panel_from_config(symbols, parse_settings(DataConfig, reading), notify=notify)


def panel_from_config(
    symbols: Sequence[str], config: DataConfig, *, notify: Notify | None = say_on_stderr
) -> Panel:
    """Load each symbol's prices as ``config`` describes them; see ``load_panel``."""
    names = named_symbols(symbols)
    if not names:
        raise UsageError("`symbols` gives no name; give names, all, or @ and the path of a file of names")
    say = each_once(notify)
    return panel_of_readers(_readers(names, config, say), config, say)


def panel_of_sheet(
    sheet: Sheet, symbols: Sequence[str], config: DataConfig, *, notify: Notify | None = say_on_stderr
) -> Panel:
    """The prices of symbols in a file that is open, as ``config`` describes them; errors as ``load_panel``."""
    return panel_of_readers(_readers_of_sheet(sheet, symbols, config), config, each_once(notify))


def panel_of_readers(readers: dict[str, Callable[[], Table]], config: DataConfig, say: Notify) -> Panel:
    """The panel of the tables that ``readers`` return; a reader raises why there is none. Empties ``readers``.

    Raises:
        DataError: when no symbol has usable prices.
    """
    series: dict[str, Series] = {}
    left_out: dict[str, str] = {}
    for symbol in list(readers):
        try:
            # A table is much larger than its series, and is not kept.
            table = readers.pop(symbol)()
            found = series_of_table(table, config.model_copy(update={"symbol": symbol}), notify=say)
            first = next(iter(series.values()), found)
            if found.timeline.interval != first.timeline.interval:
                raise DataError(
                    f"its bars are of {found.timeline.interval}, those of {first.symbol} of {first.timeline.interval}; "
                    "give symbols with the same bars, or set `interval`"
                )
            series[symbol] = found
        except SourceStopped:
            raise  # no fault of the symbol
        except DataError as error:
            left_out[symbol] = str(error)
    _say_fallbacks(series, say)
    if not series:
        name, reason = next(iter(left_out.items()))
        raise DataError(f"no symbol has usable prices ({len(left_out)} left out); {name}: {reason}")
    return Panel(series, left_out, config.symbol if "symbol" in config.model_fields_set else UNNAMED)


def named_symbols(symbols: Sequence[str]) -> list[str]:
    """The names, with those that files of names list, each name once.

    Raises:
        UsageError: when a file of names cannot be read.
    """
    names: list[str] = []
    for name in symbols:
        if not name.startswith(LISTED):
            names.append(name)
            continue
        try:
            text = home_expanded(name[len(LISTED) :]).read_text("utf-8-sig")
            names += re.findall(r"[^\s,;]+", text)
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
            raise UsageError(
                f"`symbols` {name}: the file of names cannot be read ({reason}); give {LISTED} and the path of a text "
                "file"
            ) from None
    return list(dict.fromkeys(names))


def _say_fallbacks(series: Mapping[str, Series], say: Notify) -> None:
    """For each reason, say in one line which symbols have prices from another source."""
    groups: dict[tuple[str, str], list[str]] = {}
    for symbol, each in series.items():
        if each.provenance.fallback is not None:
            groups.setdefault((each.provenance.fallback, each.provenance.source), []).append(symbol)
    for (reason, source), symbols in groups.items():
        ends = [series[symbol].provenance.last_date for symbol in symbols]
        say(f"{reason}; using the {source} of {listed(symbols)} instead; the oldest copy ends on {min(ends)}")


def _readers(names: Sequence[str], config: DataConfig, notify: Notify) -> dict[str, Callable[[], Table]]:
    """Functions that read the table of each symbol; what can be read once for all of them is read now."""
    if config.source in SOURCES:
        if ALL in names:
            raise UsageError(
                f"`symbols` all: the source {config.source} cannot list its symbols; name them, or give a file"
            )
        return readers_of_many(names, config, notify)
    path = source_path(config.source)
    if path is not None and path.is_dir():
        folder = Folder(path)

        def read(symbol: str) -> Table:
            return read_file(folder.file_of(symbol), symbol, config)

        return {symbol: partial(read, symbol) for symbol in _with_all(names, folder.symbols)}
    return _readers_of_sheet(open_source(config, None if ALL in names else names), names, config)


def _readers_of_sheet(
    whole: Sheet, names: Sequence[str], config: DataConfig
) -> dict[str, Callable[[], Table]]:
    try:
        readers = whole.readers(config)
    except DataError:
        if ALL in names or len(names) > 1:
            raise
        # The prices of one symbol, in a file that names none.
        readers = {names[0]: partial(whole.table, names[0], config)}
    spellings: dict[str, list[str]] = {}
    for symbol in readers:
        spellings.setdefault(symbol.casefold(), []).append(symbol)

    def choose(symbol: str) -> Table:
        if symbol not in readers:
            raise DataError(f"{whole.name} has no symbol {symbol!r}; choose from {listed(readers)}")
        require_one_spelling(spellings[symbol.casefold()], symbol, whole.name)
        return readers[symbol]()

    return {symbol: partial(choose, symbol) for symbol in _with_all(names, list(readers))}


def _with_all(names: Sequence[str], there: Sequence[str]) -> list[str]:
    """The names, with the symbols that are there in the place of ``all``, each name once."""
    found: list[str] = []
    for name in names:
        found += there if name == ALL else [name]
    return list(dict.fromkeys(found))
