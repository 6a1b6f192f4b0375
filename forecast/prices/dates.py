"""Dates and times from text and numbers, in the form that the column proves.

``03/04/2020`` is a day in March or in April. A form is accepted when every cell has it and no other form fits as well;
where two do, the order of the rows, other columns of dates and the names of weekdays decide, or the column is refused.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from forecast.errors import DataError, UsageError
from forecast.prices.calendars import weekday
from forecast.prices.cells import Cells, all_true, matches, text_of

Days = NDArray[np.datetime64]
Where = Callable[[int], str]
Evidence = Callable[[Days], bool]
"""Tells whether days agree with another column."""

FEWEST_ORDERED = 10
"""Fewest rows whose order can prove a form: a few rows can be in order by chance."""
LONGEST_SHUFFLED = 50 * 366
"""Most days from the first to the last with two-digit years where the rows are in no order."""
REGULAR, IRREGULAR = 4, 20
"""A series is regular when its longest step is at most 4 times the median step, and irregular from 20 times on."""
YEARS = (1800, 2199)
"""Years that digits such as 20191104 may have."""
EARLIEST_EPOCH = 1e8
"""Seconds since 1970 (March 1973) below which numbers alone are not taken for times: they may be row numbers."""
EPOCH_UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
"""Units of times since 1970, in parts of a second."""
EXCEL_DAYS = (20_000, 80_000)
"""Excel's serial numbers of the days from 1954 to 2119."""
EXCEL_ZERO = np.datetime64("1899-12-30")
DAY = 86_400
LONGEST_MONTH = 31

SAMPLE = 20
"""Number of cells that a form is tried on first."""
WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MONTHS = {
    name: number
    for number, names in enumerate(
        (
            "jan january januar janeiro enero ene janvier janv gennaio gen jän januari",
            "feb february februar fevereiro fev febrero février févr fév febbraio februari",
            "mar march märz mär mrz março marzo mars maart mrt",
            "apr april abril abr avril avr aprile",
            "may mai maio mayo maggio mag mei",
            "jun june juni junho junio juin giugno giu",
            "jul july juli julho julio juillet juil luglio lug",
            "aug august agosto ago août augustus",
            "sep sept september setembro set septiembre septembre settembre",
            "oct october okt oktober outubro out octubre octobre ottobre ott",
            "nov november novembro noviembre novembre",
            "dec december dez dezember dezembro diciembre dic décembre déc dicembre",
        ),
        start=1,
    )
    for name in names.split()
}
"""Months by their names and short names in English, German, Portuguese, Spanish, French, Italian and Dutch."""

TIME = (
    r"(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2})(?:[.,]\d+)?)?(?:\s*(?P<half>[ap])\.?m\.?)?"
    r"(?:\s*(?P<zone>z|(?:utc|gmt)?[+-]\d{2}:?\d{2}|(?:utc|gmt)[+-]\d{1,2}|[+-]\d{2}|utc|gmt))?"
)
NAME = r"(?P<n>\pL{3,})\.?"
SEP = r"(?:\s*[-./ ]\s*|\s+de\s+)"
WEEKDAY = r"^(?P<weekday>mon|tue|wed|thu|fri|sat|sun)(?:[a-z]*)[.,]?\s+"


@dataclass(frozen=True)
class Form:
    """One way to write a date.

    Attributes:
        pattern: matches it, in lower case; its groups are parts of the date.
        readings: groups with the year, the month and the day; several where the form can be read in several ways.
    """

    pattern: str
    readings: tuple[tuple[str, str, str | None], ...]

    @cached_property
    def regex(self) -> re.Pattern[str]:
        """The pattern for single cells; it is in RE2's syntax, which fits whole columns."""
        return re.compile(self.pattern.replace(r"\pL", r"[^\W\d_]"))

    def fits(self, cells: Any) -> bool:
        """Whether all cells have this form; most forms fail within a few cells."""
        return all(self.regex.match(cell) for cell in cells[:SAMPLE].to_pylist()) and (
            len(cells) <= SAMPLE or all_true(matches(cells, self.pattern))
        )


def _dated(date: str, *readings: tuple[str, str, str | None]) -> list[Form]:
    """The forms of a date alone or before its time, and after its time."""
    return [
        Form(rf"^{date}(?:(?:t|\s*,?\s+)\s*{TIME})?$", readings),
        Form(rf"^{TIME}\s*,?\s+{date}$", readings),
    ]


FORMS = (
    *_dated(rf"(?P<y>\d{{4}}){SEP}(?P<m>\d{{1,2}}){SEP}(?P<d>\d{{1,2}})", ("y", "m", "d")),
    *_dated(rf"(?P<a>\d{{1,2}}){SEP}(?P<b>\d{{1,2}}){SEP}(?P<y>\d{{4}})", ("y", "b", "a"), ("y", "a", "b")),
    *_dated(
        rf"(?P<a>\d{{1,2}}){SEP}(?P<b>\d{{1,2}}){SEP}(?P<c>\d{{2}})",
        ("c", "b", "a"),
        ("c", "a", "b"),
        ("a", "b", "c"),
    ),
    *_dated(rf"(?P<d>\d{{1,2}})(?:st|nd|rd|th)?(?:{SEP})?{NAME},?{SEP}(?P<y>\d{{4}})", ("y", "n", "d")),
    *_dated(rf"(?P<a>\d{{1,2}})(?:{SEP})?{NAME}{SEP}?(?P<c>\d{{2}})", ("c", "n", "a"), ("a", "n", "c")),
    *_dated(rf"{NAME}{SEP}(?P<d>\d{{1,2}})(?:st|nd|rd|th)?,?{SEP}(?P<y>\d{{4}})", ("y", "n", "d")),
    *_dated(rf"{NAME}{SEP}(?P<d>\d{{1,2}}),{SEP}(?P<c>\d{{2}})", ("c", "n", "d")),
    *_dated(rf"(?P<y>\d{{4}}){SEP}{NAME}{SEP}(?P<d>\d{{1,2}})", ("y", "n", "d")),
    Form(rf"^{NAME}\s+(?P<d>\d{{1,2}})\s+{TIME}\s+(?P<y>\d{{4}})$", (("y", "n", "d"),)),
    Form(rf"^{NAME}{SEP}?(?P<y>\d{{4}})$", (("y", "n", None),)),
    Form(rf"^{NAME}{SEP}?(?P<c>\d{{2}})$", (("c", "n", None),)),
    Form(rf"^(?P<y>\d{{4}}){SEP}{NAME}$", (("y", "n", None),)),
    # With a point, these would be prices: 1905.12, 12.2019.
    Form(r"^(?P<y>\d{4})[-/](?P<m>\d{1,2})$", (("y", "m", None),)),
    Form(r"^(?P<m>\d{1,2})[-/](?P<y>\d{4})$", (("y", "m", None),)),
)
DIGITS = Form(
    r"^(?P<y>\d{4})(?P<m>\d{2})(?P<d>\d{2})"
    r"(?:[t ]?(?P<hour>\d{2})(?:(?P<minute>\d{2})(?P<second>\d{2})?)?)?(?:[.]0+)?$",
    (("y", "m", "d"),),
)
COLONS = Form(rf"^(?P<y>\d{{4}})(?P<m>\d{{2}})(?P<d>\d{{2}})(?:t|\s+){TIME}$", (("y", "m", "d"),))
NUMBER = r"^-?\d+(?:[.]\d+)?(?:[eE][+]?\d+)?$"
TIME_OF_DAY = rf"^(?:{TIME}|\d{{3,4}}|\d{{5,6}}|0)$"


@dataclass(frozen=True)
class Stamps:
    """The dates or times of n rows.

    Attributes:
        local: shape (n,), ``datetime64[s]``, as written.
        offsets: shape (n,), seconds that each is ahead of UTC; None where no zone is written.
    """

    local: Days
    offsets: NDArray[np.int64] | None = None

    def __getitem__(self, rows: Any) -> Stamps:
        return Stamps(self.local[rows], None if self.offsets is None else self.offsets[rows])

    @property
    def days(self) -> Days:
        """The days as written, shape (n,), ``datetime64[D]``."""
        return self.local.astype("datetime64[D]")


def is_date_like(column: pd.Series[Any]) -> bool:
    """Whether a column's cells are dates by their type, or by a form of text that only dates have."""
    if pd.api.types.is_datetime64_any_dtype(column):
        return True
    text = text_of(column)
    if text is None or not len(text):
        return False
    _, cells = _without_weekday(pc.utf8_lower(text))
    return any(form.fits(cells) for form in (*FORMS, COLONS))


@lru_cache(maxsize=4096)
def is_date_text(cell: str) -> bool:
    """Whether one cell of text is a date, as ``is_date_like`` has it."""
    text = re.sub(WEEKDAY, "", cell.strip().lower())
    return any(form.regex.match(text) for form in (*FORMS, COLONS))


def parse_dates(
    column: pd.Series[Any],
    where: Where,
    *,
    date_format: str | None = None,
    evidence: Callable[[], Sequence[Evidence]] = tuple,
) -> Stamps:
    """Dates and times of a column of any type.

    Args:
        column: text, numbers, or dates.
        where: describes a row's place for a message.
        date_format: strptime's directives, such as ``%d/%m/%Y``; or ``excel`` for Excel's serial numbers, or ``s``,
            ``ms``, ``us`` or ``ns`` since 1970; None to find the form that the column proves.
        evidence: returns what other columns tell of a reading's days; called where several readings are possible.

    Raises:
        DataError: when a cell is not a date, or two forms fit the column; names the cell and the remedy.
        UsageError: when ``date_format`` is impossible.
    """
    if pd.api.types.is_datetime64_any_dtype(column):
        return _require_dates(_typed(column), column, where)
    text = text_of(column)
    if text is None:
        raise DataError(
            f"{where(0)} has {column.iloc[0]!r} where a date should be; use a date such as 2024-12-31"
        )
    if date_format is not None:
        return _told(text, date_format, where)
    if (stamps := _iso(text)) is not None:
        return stamps
    cells, codes = _distinct(pc.utf8_lower(text))
    if all_true(matches(cells, NUMBER)):
        return _numbers(cells, codes, text, where)
    candidates = [stamps[codes] for stamps in _all_readings(cells, codes)]
    if not candidates:
        raise _not_a_date(text, where)
    return _decide(candidates, evidence, text, where)


def join_time(dates: pd.Series[Any], times: pd.Series[Any]) -> pd.Series[Any] | None:
    """The dates with the times of day in another column, as text; None when that column is not one of times."""
    text = text_of(times)
    text = text and pc.utf8_lower(text)
    if text is None or not all_true(matches(text, TIME_OF_DAY)):
        return None
    digits = all_true(matches(text, r"^\d+$"))
    if digits:
        longest = pc.max(pc.utf8_length(text)).as_py()
        padded = pc.utf8_lpad(text, 6 if longest > 4 else 4, padding="0")
        text = pc.replace_substring_regex(padded, r"^(\d{2})(\d{2})(\d{2})?$", r"\1:\2:\3")
        text = pc.replace_substring_regex(text, ":$", "")
    days = text_of(dates)
    return pd.Series(pc.binary_join_element_wise(days, text, " "), dtype=pd.ArrowDtype(pa.string()))


def _iso(text: Cells) -> Stamps | None:
    """Dates of the standard form, of which there is one reading; None where a cell has another form or an odd year."""
    try:
        local = pc.cast(text, pa.timestamp("s")).to_numpy()
        return Stamps(local) if _within(_years(local), YEARS) else None
    except pa.ArrowInvalid:
        pass
    try:
        utc = pc.cast(text, pa.timestamp("s", "UTC")).to_numpy()
    except pa.ArrowInvalid:
        return None
    zones = pc.extract_regex(pc.utf8_lower(text.combine_chunks()), r"(?P<zone>z|[+-]\d{2}(?::?\d{2})?)$")
    offsets = _offsets({"zone": zones.field("zone")})
    return None if offsets is None or not _within(_years(utc), YEARS) else Stamps(utc + offsets, offsets)


def _years(stamps: Days) -> NDArray[np.int64]:
    return stamps.astype("datetime64[Y]").astype(np.int64) + 1970


def _distinct(text: Cells) -> tuple[pa.Array, NDArray[np.int64]]:
    """The distinct cells, and each row's index among them: a file of many symbols repeats its dates."""
    encoded = text.combine_chunks().dictionary_encode()
    return encoded.dictionary, encoded.indices.to_numpy()


def _all_readings(cells: pa.Array, codes: NDArray[np.int64]) -> list[Stamps]:
    """What distinct cells can mean, in any form that all of them have."""
    weekdays, cells = _without_weekday(cells)
    return [
        stamps
        for form in (*FORMS, DIGITS, COLONS)
        if form.fits(cells)
        for stamps in _readings(form, cells, codes, weekdays)
    ]


def _without_weekday(cells: Any) -> tuple[NDArray[np.int64] | None, Any]:
    """The cells without a leading weekday, and the weekday's number, Monday 0; None where not all have one."""
    if not all_true(matches(cells, WEEKDAY)):
        return None, cells
    names = pc.struct_field(pc.extract_regex(cells, WEEKDAY), "weekday")
    numbers = pc.index_in(names, pa.array(WEEKDAYS)).to_numpy()
    return numbers, pc.replace_substring_regex(cells, WEEKDAY, "")


def _readings(
    form: Form, cells: pa.Array, codes: NDArray[np.int64], weekdays: NDArray[np.int64] | None
) -> list[Stamps]:
    """What distinct cells of this form can mean; a reading with an impossible date is left out."""
    groups = pc.extract_regex(cells, form.pattern)
    parts = {field.name: groups.field(field.name) for field in groups.type}
    seconds, offsets = _time_of_day(parts), _offsets(parts)
    if seconds is None or (offsets is not None and len(offsets) < len(cells)):
        return []
    found = []
    for year, month, day in form.readings:
        days = _days(parts, year, month, day, codes)
        if days is not None and (weekdays is None or (weekday(days) == weekdays).all()):
            found.append(Stamps(np.add(days.astype("datetime64[s]"), seconds), offsets))
    return found


def _days(
    parts: dict[str, pa.Array], year: str, month: str, day: str | None, codes: NDArray[np.int64]
) -> Days | None:
    """Days of one reading of the groups; None when one of them is impossible."""
    if month == "n":
        months = pc.index_in(parts["n"], pa.array(list(MONTHS)))
        if months.null_count:
            return None
        numbers = np.array(list(MONTHS.values()))[months.to_numpy()]
    else:
        numbers = _integers(parts[month])
    days_of_month = np.ones(len(numbers), np.int64) if day is None else _integers(parts[day])
    if ((numbers < 1) | (numbers > 12) | (days_of_month < 1)).any():
        return None
    years = _integers(parts[year])
    if year == "y":
        return _calendar_days(years, numbers, days_of_month) if _within(years, YEARS) else None
    if not all_true(pc.equal(pc.utf8_length(parts[year]), 2)):
        return None
    found = _two_digit_years(years, numbers, days_of_month, codes)
    if day is None and found is not None and not _are_months(found):
        return None  # Jan-02 is a day of a year that is not written
    return found


def _are_months(days: Days) -> bool:
    """Whether most steps between different days are those of consecutive months."""
    steps = np.diff(np.unique(days)).astype(np.int64)
    return len(steps) > 1 and float(np.median(steps)) <= LONGEST_MONTH


def _two_digit_years(
    years: NDArray[np.int64], months: NDArray[np.int64], days: NDArray[np.int64], codes: NDArray[np.int64]
) -> Days | None:
    """Days in the latest hundred years without a day in the future in which the rows lie close or run in order."""
    today = np.datetime64(dt.datetime.now(dt.UTC).date())
    last = int(str(today)[:4])
    for first in range(last - 99, last - 199, -1):
        found = _calendar_days(first + (years - first) % 100, months, days)
        if found is None or (found > today).any():
            continue
        if int(np.ptp(found.astype(np.int64))) <= LONGEST_SHUFFLED or _in_order(found[codes]):
            return found
    return None


def _calendar_days(
    years: NDArray[np.int64], months: NDArray[np.int64], days: NDArray[np.int64]
) -> Days | None:
    month = np.add((years - 1970).astype("datetime64[Y]").astype("datetime64[M]"), months - 1)
    found: Days = np.add(month.astype("datetime64[D]"), days - 1)
    return found if (found.astype("datetime64[M]") == month).all() else None


def _time_of_day(parts: dict[str, pa.Array]) -> NDArray[np.timedelta64] | None:
    """Times since midnight, zero where none is written; None when one is impossible."""
    if "hour" not in parts:
        return np.zeros(1, "timedelta64[s]")
    hours, minutes, seconds = (_integers(parts[name]) for name in ("hour", "minute", "second"))
    if "half" in parts and (halves := pc.not_equal(parts["half"], "")).true_count:
        if halves.true_count < len(halves) or not _within(hours, (1, 12)):
            return None
        hours = hours % 12 + 12 * pc.equal(parts["half"], "p").to_numpy(zero_copy_only=False)
    if not (_within(hours, (0, 23)) and _within(minutes, (0, 59)) and _within(seconds, (0, 59))):
        return None
    return (hours * 3600 + minutes * 60 + seconds).astype("timedelta64[s]")


def _offsets(parts: dict[str, pa.Array]) -> NDArray[np.int64] | None:
    """Seconds ahead of UTC; None where no zone is written, and an empty array where only some cells have one."""
    if "zone" not in parts:
        return None
    zoned = pc.not_equal(parts["zone"], "").true_count
    if zoned < len(parts["zone"]):
        return np.empty(0, np.int64) if zoned else None
    encoded = parts["zone"].dictionary_encode()
    offsets = np.array([_offset(zone) for zone in encoded.dictionary.to_pylist()], np.int64)
    found: NDArray[np.int64] = offsets[encoded.indices.to_numpy()]
    return found


def _offset(zone: str) -> int:
    digits = zone.removeprefix("utc").removeprefix("gmt").removeprefix("z").replace(":", "")
    if not digits:
        return 0
    sign, digits = (-1 if digits[0] == "-" else 1), digits[1:]
    hours, minutes = (digits[:-2], digits[-2:]) if len(digits) > 2 else (digits, "0")
    return sign * (int(hours) * 3600 + int(minutes) * 60)


def _integers(texts: pa.Array) -> NDArray[np.int64]:
    """Whole numbers of groups; 0 for a group that a cell lacks."""
    found: NDArray[np.int64] = pc.cast(pc.if_else(pc.equal(texts, ""), "0", texts), pa.int64()).to_numpy()
    return found


def _within(numbers: NDArray[np.int64], limits: tuple[int, int]) -> bool:
    return bool(((numbers >= limits[0]) & (numbers <= limits[1])).all())


def _in_order(stamps: Days) -> bool:
    steps = np.diff(stamps).astype(np.int64)
    return bool((steps >= 0).all() or (steps <= 0).all())


def _decide(
    candidates: list[Stamps], evidence: Callable[[], Sequence[Evidence]], text: Cells, where: Where
) -> Stamps:
    """The only reading that is possible, or else the only one that the evidence allows.

    Raises:
        DataError: when none is possible, or more than one; names the cell and the remedy.
    """
    distinct: list[Stamps] = []
    for candidate in candidates:
        if not any(np.array_equal(candidate.local, other.local) for other in distinct):
            distinct.append(candidate)
    if len(distinct) == 1:
        return distinct[0]
    tomorrow = np.datetime64(dt.datetime.now(dt.UTC).replace(tzinfo=None), "s") + DAY
    rules: list[Callable[[Stamps], bool]] = [
        lambda stamps: bool((stamps.local <= tomorrow).all()),
        *(lambda stamps, agrees=agrees: agrees(stamps.days) for agrees in evidence()),
        *([lambda stamps: _in_order(stamps.local)] if len(text) >= FEWEST_ORDERED else []),
    ]
    for rule in rules:
        if len(distinct) > 1:
            distinct = [stamps for stamps in distinct if rule(stamps)] or distinct
    if len(distinct) > 1 and len(text) >= FEWEST_ORDERED:
        gaps = [_unevenness(stamps.days) for stamps in distinct]
        if (
            sum(gap <= REGULAR for gap in gaps) == 1
            and sum(gap >= IRREGULAR for gap in gaps) == len(gaps) - 1
        ):
            distinct = [distinct[int(np.argmin(gaps))]]
    if len(distinct) == 1:
        return distinct[0]
    row = int(np.argmax(distinct[0].local != distinct[1].local))
    first, second = (stamps.local[row].astype("datetime64[D]") for stamps in distinct[:2])
    raise DataError(
        f"{where(row)} has {text[row].as_py()!r}, which can be {first} or {second}, and nothing in the file settles "
        "it; give the form as `date_format`, for example `date_format=%d/%m/%Y`"
    )


def _unevenness(days: Days) -> float:
    """The longest step between days over their median step."""
    steps = np.diff(np.unique(days)).astype(np.int64)
    return float(steps.max() / np.median(steps)) if len(steps) else 1.0


def _not_a_date(text: Cells, where: Where) -> DataError:
    """The error for a column without a reading: names the first cell that does not go with the cells before it."""
    good, bad = 0, len(text)
    while bad - good > 1:
        middle = (good + bad) // 2
        cells, codes = _distinct(pc.utf8_lower(text[:middle]))
        readable = all_true(matches(cells, NUMBER)) or _all_readings(cells, codes)
        good, bad = (middle, bad) if readable else (good, middle)
    return DataError(
        f"{where(bad - 1)} has {text[bad - 1].as_py()!r} where a date should be; correct the cell, choose another "
        "column with `date_column`, or give the form as `date_format`"
    )


def _numbers(cells: pa.Array, codes: NDArray[np.int64], text: Cells, where: Where) -> Stamps:
    """Times from numbers: digits such as 20191104, or parts of seconds since 1970, each in the only unit it can have.

    Raises:
        DataError: when the numbers are neither.
    """
    if DIGITS.fits(cells) and (found := _readings(DIGITS, cells, codes, None)):
        return found[0][codes]
    numbers = pc.cast(cells, pa.float64()).to_numpy()
    now = dt.datetime.now(dt.UTC).timestamp() + DAY
    per_second = np.array(list(EPOCH_UNITS.values()))
    possible = (numbers[:, np.newaxis] >= EARLIEST_EPOCH * per_second) & (
        numbers[:, np.newaxis] <= now * per_second
    )
    units = np.where(possible.any(axis=1), per_second[possible.argmax(axis=1)], 0)
    known = np.unique(units[units > 0])
    if len(known) == 1:
        # Earlier times are in the unit of the later ones.
        units[(units == 0) & (numbers < EARLIEST_EPOCH * known[0])] = known[0]
    wrong = np.flatnonzero(units[codes] == 0)
    if len(wrong):
        row = int(wrong[0])
        number = numbers[codes[row]]
        if EXCEL_DAYS[0] <= number <= EXCEL_DAYS[1]:
            raise DataError(
                f"{where(row)} has {text[row].as_py()} where a date should be; if this is Excel's number of the day "
                f"{EXCEL_ZERO + int(number)}, add `date_format=excel`"
            )
        raise _not_a_date(text, where)
    return _since_1970(cells, units)[codes]


def _since_1970(cells: pa.Array, units: NDArray[np.int64]) -> Stamps:
    """Times in UTC; whole numbers of nanoseconds would lose digits as floats."""
    if all_true(matches(cells, r"^-?\d+$")):
        seconds: Any = pc.cast(cells, pa.int64()).to_numpy() // units
    else:
        seconds = np.floor(pc.cast(cells, pa.float64()).to_numpy() / units).astype(np.int64)
    return Stamps(seconds.astype("datetime64[s]"), np.zeros(len(seconds), np.int64))


def _told(text: Cells, date_format: str, where: Where) -> Stamps:
    """The dates of a column whose form is given."""
    cells, codes = _distinct(text)
    if date_format in ("excel", *EPOCH_UNITS):
        if not all_true(matches(cells, NUMBER)):
            raise DataError(
                f"{where(0)} has {text[0].as_py()!r}, not a number; correct the cell or `date_format`"
            )
        if date_format == "excel":
            numbers = pc.cast(cells, pa.float64()).to_numpy()
            return Stamps(
                (EXCEL_ZERO.astype("datetime64[s]") + np.round(numbers * DAY).astype(np.int64))[codes]
            )
        return _since_1970(cells, np.full(len(cells), EPOCH_UNITS[date_format]))[codes]
    if not (re.search("%[yYGcxDF]", date_format) and re.search("%[mbBhjVUWcxDF]", date_format)):
        raise UsageError(
            f"`date_format` {date_format} has no year or no month; use directives such as %d/%m/%Y"
        )
    try:
        told = pd.Series(cells.to_pylist(), dtype=object)
        found = pd.to_datetime(told, format=date_format, errors="coerce", utc="%z" in date_format)
    except ValueError as error:
        raise UsageError(f"`date_format` {date_format}: {error}; use directives such as %d/%m/%Y") from None
    wrong = np.flatnonzero(found.isna().to_numpy()[codes])
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"{where(row)} has {text[row].as_py()!r}, which is not of the form {date_format}; correct the cell or "
            "`date_format`"
        )
    return _typed(found)[codes]


def _typed(column: pd.Series[Any]) -> Stamps:
    """The dates of a column that has the type of dates."""
    if column.dt.tz is None:
        return Stamps(column.to_numpy().astype("datetime64[s]"))
    local = column.dt.tz_localize(None).to_numpy().astype("datetime64[s]")
    utc = column.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy().astype("datetime64[s]")
    return Stamps(local, (local - utc).astype(np.int64))


def _require_dates(stamps: Stamps, column: pd.Series[Any], where: Where) -> Stamps:
    wrong = np.flatnonzero(np.isnat(stamps.local))
    if len(wrong):
        raise DataError(f"{where(int(wrong[0]))} has no date; correct the cell or delete the row")
    return stamps
