"""Prices from DataFrames in the long format, and forecasts as such DataFrames.

The long format has one row per series and date: a column that names the series, one of dates or times, and one of
prices, by default ``unique_id``, ``ds`` and ``y``. A frame of any library that narwhals reads, such as pandas or
polars, is read by the rules of price files and answered with a frame of the same library.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd
import pyarrow as pa
from narwhals.exceptions import DuplicateError, NarwhalsError
from numpy.typing import NDArray

from forecast.config import DataConfig
from forecast.errors import DataError, ForecastError, UsageError, spell_parameters
from forecast.names import listed
from forecast.notices import Notify
from forecast.prices import calendars
from forecast.prices.cells import cells_of
from forecast.prices.dates import Stamps, parse_dates
from forecast.prices.files import table_of_rows
from forecast.prices.panel import Panel, panel_of_readers
from forecast.prices.symbols import find_column
from forecast.prices.table import Table

Array = NDArray[np.float64]
Dates = NDArray[np.datetime64]

SOURCE = "DataFrame"
"""The source of series that come from a frame; it cannot be read again."""
ORIGIN = "the DataFrame"
"""What messages call the frame."""
PARAMETERS = {"feature": "target_col", "symbol_column": "id_col", "date_column": "time_col"}
"""The parameter of a frame for each option of a file that chooses a column."""
CUTOFF = "cutoff"
"""Column of a cross-validation with the last date that each forecast knows."""


@dataclass(frozen=True)
class Columns:
    """Names of a long frame's columns.

    Attributes:
        id_col: the column that names each row's series.
        time_col: the column of dates or times.
        target_col: the column of prices.
    """

    id_col: str = "unique_id"
    time_col: str = "ds"
    target_col: str = "y"


@dataclass(frozen=True)
class Rows:
    """Rows of a result that belong to one series.

    Attributes:
        symbol: the series' name as text.
        dates: days (``datetime64[D]``), or times in UTC (``datetime64[s]``), shape (n,).
        values: numbers by column, each of shape (n,).
        cutoff: the last date that the forecasts know; None for a result without this column.
    """

    symbol: str
    dates: Dates
    values: Mapping[str, Array]
    cutoff: np.datetime64 | None = None


@dataclass(frozen=True)
class Form:
    """How results are written: in the library, the columns and the types of the frame that was read.

    Attributes:
        columns: names of the columns.
        ids: the series' names as the frame writes them, sorted.
        symbols: the same names as text, in the same order.
        times: an empty column of the type of the dates.
        targets: an empty column of the type of the prices.
        zones: by symbol, the zone whose clock shows the frame's times, where they have no zone of their own.
    """

    columns: Columns
    ids: nw.Series[Any]
    symbols: tuple[str, ...]
    times: nw.Series[Any]
    targets: nw.Series[Any]
    zones: Mapping[str, str]

    @classmethod
    def of_symbols(cls, symbols: Sequence[str]) -> Form:
        """The form of a pandas DataFrame, for forecasts of symbols without a frame."""
        names, columns = tuple(sorted(symbols)), Columns()
        # Not an empty index, whose unit would not be that of dates.
        one = pd.DataFrame({columns.time_col: pd.to_datetime(["2000-01-01"]), columns.target_col: [1.0]})
        empty = nw.from_native(one, eager_only=True).head(0)
        ids = nw.from_native(pd.Series(names, name=columns.id_col), series_only=True)
        return cls(columns, ids, names, empty[columns.time_col], empty[columns.target_col], {})

    @property
    def several(self) -> bool:
        """Whether the frame has several series, which train one model together."""
        return len(self.symbols) > 1

    def frame(self, rows: Sequence[Rows]) -> Any:
        """A frame with the columns of names and dates, that of cutoffs where there are any, and those of the values.

        Args:
            rows: at least one, all with the same columns; they are sorted by name, then by cutoff.
        """
        places = {symbol: place for place, symbol in enumerate(self.symbols)}
        rows = sorted(rows, key=lambda each: (places[each.symbol], each.cutoff))
        at = np.repeat([places[each.symbol] for each in rows], [len(each.dates) for each in rows])
        names = self.columns
        found = {
            names.id_col: nw.maybe_reset_index(self.ids[at]),
            names.time_col: self._dated([(each.symbol, each.dates) for each in rows]),
        }
        if rows[0].cutoff is not None:
            cutoffs = [(each.symbol, np.full(len(each.dates), each.cutoff)) for each in rows]
            found[CUTOFF] = self._dated(cutoffs)
        for name in rows[0].values:
            column = self._column(np.concatenate([each.values[name] for each in rows]))
            if name == names.target_col and self.targets.dtype.is_numeric():
                column = _like(column, self.targets)
            found[name] = column
        # Not from a dictionary, which loses some types of pandas.
        first, *others = [column.alias(name) for name, column in found.items()]
        return first.to_frame().with_columns(*others).to_native()

    def _column(self, values: NDArray[Any]) -> nw.Series[Any]:
        return nw.new_series("", values, backend=self.ids.implementation)

    def _dated(self, parts: Sequence[tuple[str, Dates]]) -> nw.Series[Any]:
        """Dates of one symbol after the other, as the frame writes them; those of text become dates."""
        zone = _zone_of(self.times)
        written = []
        for symbol, dates in parts:
            if dates.dtype != "datetime64[D]":
                own = dates if zone else calendars.to_zone(dates, self.zones.get(symbol, "UTC"))
            elif zone:
                # Some clocks skip midnight when they are put forward.
                local = pd.DatetimeIndex(dates).tz_localize(
                    zone, nonexistent="shift_forward", ambiguous=np.ones(len(dates), bool)
                )
                own = local.tz_convert("UTC").tz_localize(None).to_numpy()
            else:
                own = dates
            written.append(own.astype("datetime64[us]"))
        column = self._column(np.concatenate(written))
        if zone:
            column = column.dt.replace_time_zone("UTC").dt.convert_time_zone(zone)
        return _like(column, self.times) if zone or self.times.dtype.is_temporal() else column


def _zone_of(times: nw.Series[Any]) -> str | None:
    """The zone of a column of times; None for one without a zone, and of other columns."""
    if times.implementation.is_pandas():
        # narwhals does not know the pandas types of zones with a sign in their name, such as America/New_York.
        native = times.to_native()
        zone = native.dt.tz if pd.api.types.is_datetime64_any_dtype(native) else None
        return None if zone is None else str(zone)
    return getattr(times.dtype, "time_zone", None)


def _like(column: nw.Series[Any], other: nw.Series[Any]) -> nw.Series[Any]:
    """The column with the type of another one of the same library."""
    if column.implementation.is_pandas():
        # Of the types of pandas, several are one in narwhals.
        return nw.from_native(column.to_native().astype(other.to_native().dtype), series_only=True)
    return column.cast(other.dtype)


@dataclass(frozen=True)
class LongFrame:
    """The clean series of a frame.

    Attributes:
        panel: the series by symbol, and why each of the others cannot be used.
        form: how results are written.
    """

    panel: Panel
    form: Form


def read_frame(df: Any, config: DataConfig, columns: Columns, *, notify: Notify) -> LongFrame:
    """Read the series of a frame, each cleaned on its own by the rules of price files.

    What the rules found is said in lines. A series that cannot be used is left out, which is said too.

    Args:
        df: the frame.
        config: the input columns, the bars, and the other options of reading.
        columns: names of the columns; case, spaces and underscores do not matter.
        notify: called with each line.

    Raises:
        UsageError: when it is no frame, its dates are numbers or periods, or two series have the same name as text.
        DataError: when a column is missing, a date is none, or no series can be used.
    """
    frame = _eager(df)
    names = [str(name) for name in frame.columns]

    def named(option: str, name: str) -> str:
        return names[find_column(names, name, ORIGIN, option)]

    columns = Columns(**{option: named(option, name) for option, name in vars(columns).items()})
    inputs = [named("input_columns", name) for name in config.input_columns]
    if not len(frame):
        raise DataError(f"{ORIGIN} has no rows; give a DataFrame with prices")
    dates, stamps = frame[columns.time_col], _stamps(frame[columns.time_col], config)
    future = _in_future(stamps)
    if future.any():
        notify(
            f"{ORIGIN} has {future.sum()} rows with a date in the future (the first is "
            f"{stamps.days[future].min()}); they are left out"
        )
    texts, codes, ids = _series_of(frame[columns.id_col])
    order = np.argsort(codes, kind="stable")
    ends = np.searchsorted(codes[order], np.arange(len(texts) + 1))
    own = {symbol: order[ends[place] : ends[place + 1]] for place, symbol in enumerate(texts)}
    nameless = int((codes < 0).sum())
    if nameless:
        notify(f"{ORIGIN} has {nameless} rows without a {columns.id_col}; they are left out")
    prices = frame.select(columns.target_col, *inputs).to_pandas()
    for name in prices.columns:
        _require_readable(prices[name])

    def read(its: NDArray[np.intp]) -> Table:
        its = its[~future[its]]
        if not len(its):
            raise DataError("all of its dates are in the future; give prices up to today")
        return table_of_rows(stamps[its], prices.iloc[its], ORIGIN, decimal=config.decimal)

    reading = config.model_copy(update={"feature": columns.target_col, "source": SOURCE})
    if reading.interval is None:
        # Hours are not to become days, as those of a file do: a frame is read in its own bars.
        reading = reading.model_copy(update={"interval": "auto"})
    try:
        panel = panel_of_readers({symbol: partial(read, its) for symbol, its in own.items()}, reading, notify)
    except ForecastError as error:
        raise type(error)(_in_terms_of_frames(str(error))) from None
    left_out = {symbol: _in_terms_of_frames(reason) for symbol, reason in panel.left_out.items()}
    panel = replace(panel, left_out=left_out)
    report = panel.integrity if len(panel) > 1 else next(iter(panel.series.values())).integrity
    if any(rule.found for rule in report.rules):
        for line in report.lines():
            notify(line)
    say_left_out(panel.left_out, notify)
    zones = {}
    for symbol, series in panel.series.items():
        if series.timeline.is_intraday and stamps.offsets is None:
            in_utc = bool(np.isin(series.dates, stamps.local[own[symbol]]).all())
            zones[symbol] = "UTC" if in_utc else series.timeline.calendar.zone
    form = Form(columns, ids, texts, dates.head(0), frame[columns.target_col].head(0), zones)
    return LongFrame(panel, form)


def say_left_out(left_out: Mapping[str, str], notify: Notify) -> None:
    """Say in a line which series are left out, and why."""
    if left_out:
        notify(f"left out: {listed(f'{symbol} ({reason})' for symbol, reason in left_out.items())}")


def _eager(df: Any) -> nw.DataFrame[Any]:
    """The frame as narwhals has it.

    Raises:
        UsageError: when it is none.
    """
    kind = type(df).__name__
    try:
        frame: nw.DataFrame[Any] | nw.LazyFrame[Any] = nw.from_native(df)
    except DuplicateError:
        # Those of a table of pyarrow are its columns' names only by this attribute.
        names = getattr(df, "column_names", None) or df.columns
        twice = listed(repr(name) for name, count in Counter(names).items() if count > 1)
        raise UsageError(f"`df` has several columns called {twice}; give each column its own name") from None
    except (TypeError, NarwhalsError):
        raise UsageError(
            f"`df` cannot be used, because its type is {kind}; give a pandas or polars DataFrame in the long format"
        ) from None
    if isinstance(frame, nw.LazyFrame):
        raise UsageError(
            f"`df` cannot be used, because a {kind} has no rows yet; give a DataFrame, its `.collect()`"
        )
    return frame


def _require_readable(column: pd.Series[Any]) -> None:
    """Check that numbers can be looked for in a column's cells.

    Raises:
        DataError: when they are of another kind, such as complex numbers.
    """
    try:
        cells_of(column)
    except pa.ArrowException:
        raise DataError(
            f"{ORIGIN} has no real numbers in its column {column.name} ({column.dtype}); choose another column"
        ) from None


def _in_terms_of_frames(message: str) -> str:
    """A message on the rows of a file with the parameters of a frame."""
    message = message.replace("`feature` or `source`", "`feature`")
    return spell_parameters(
        message, lambda name, value: f"`{PARAMETERS.get(name, name)}{'' if value is None else f'={value}'}`"
    )


def _in_future(stamps: Stamps) -> NDArray[np.bool_]:
    """Which rows have a date or time in the future, shape (n,)."""
    now = np.datetime64(dt.datetime.now(dt.UTC).replace(tzinfo=None), "s")
    if stamps.offsets is None:
        # Some clocks are ahead of UTC, and the rules of prices find the last bars that are not complete.
        late: NDArray[np.bool_] = stamps.local > now + calendars.DAY
    else:
        late = stamps.local - stamps.offsets.astype("timedelta64[s]") > now
    return late


def _stamps(times: nw.Series[Any], config: DataConfig) -> Stamps:
    """The dates or times of all rows.

    Raises:
        UsageError: for numbers and for periods.
        DataError: when one is no date.
    """
    if times.dtype.is_numeric() and config.date_format is None:
        raise UsageError(
            f"`time_col` {times.name} has numbers ({times.dtype}), which no calendar can date; give dates or times, or "
            "`date_format`"
        )
    written = times.to_pandas().reset_index(drop=True)
    if isinstance(written.dtype, pd.PeriodDtype):
        raise UsageError(
            f"`time_col` {times.name} has periods of pandas ({written.dtype}); turn them into dates with "
            "`.dt.to_timestamp()`"
        )
    try:
        return parse_dates(
            written,
            lambda row: f"{ORIGIN}, column {times.name}, row {row + 1},",
            date_format=config.date_format,
        )
    except DataError as error:
        raise DataError(_in_terms_of_frames(str(error))) from None


def _series_of(names: nw.Series[Any]) -> tuple[tuple[str, ...], NDArray[np.intp], nw.Series[Any]]:
    """The series' names as text, sorted; the place of each row's among them, -1 for none; and as the frame has them.

    Raises:
        UsageError: when two names are the same as text.
        DataError: when no row has a name.
    """
    codes, values = pd.factorize(np.array(names.to_list(), dtype=object))
    texts = [str(value).strip() for value in values]
    named = [place for place, text in enumerate(texts) if text]
    if not named:
        raise DataError(
            f"{ORIGIN} has no names of series in its column {names.name}; choose another `id_col`"
        )
    if len(set(texts)) < len(texts):
        twice = next(text for text in texts if texts.count(text) > 1)
        raise UsageError(
            f"`id_col` {names.name} has {twice!r} as different values, such as a number and text; write it in one form"
        )
    try:
        named.sort(key=lambda place: values[place])
    except TypeError:  # values of types that have no order
        named.sort(key=lambda place: texts[place])
    places = np.full(len(texts) + 1, -1)
    places[named] = np.arange(len(named))
    codes = places[codes]  # -1 stands for a missing cell, and is the last of the places
    _, first = np.unique(codes, return_index=True)
    return tuple(texts[place] for place in named), codes, names[first[-len(named) :]]
