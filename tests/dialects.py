"""Random price files in the dialects that people have, with the prices that each of them holds.

``price_files`` is a Hypothesis strategy of such files, ``random_file`` makes one without Hypothesis, and ``verdict``
reads a file back and compares.
"""

from __future__ import annotations

import csv
import datetime as dt
import gzip
import io
import random
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from forecast import load_series
from forecast.errors import ForecastError

LATEST = dt.date(2025, 12, 31)
MIDNIGHT = dt.time()
SYMBOLS = ("AAPL", "PETR4.SA", "BTC-USD", "NA", "TRUE", "600000", "A", "^GSPC")
OTHERS = ("MSFT", "VALE3.SA", "ETH-USD", "FALSE", "000001", "AA", "NULL")
EMPTY = ("", "null", "NA", ".", "N/A", "-")
MONTHS = {
    "pt": ("jan", "fev", "mar", "abr", "mai", "jun", "jul", "ago", "set", "out", "nov", "dez"),
    "de": (
        "Januar", "Februar", "März", "April", "Mai", "Juni", "Juli", "August", "September", "Oktober", "November",
        "Dezember",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class PriceFile:
    """A file, and the prices of ``symbol`` in it: none where the file holds other symbols only."""

    name: str
    content: bytes
    symbol: str
    dates: list[dt.date]
    values: list[float]
    dialect: dict[str, Any]

    def __repr__(self) -> str:
        return f"PriceFile({self.name}, {self.symbol}, {self.dialect}, {self.content[:1500]!r})"


@dataclass(frozen=True)
class Verdict:
    """What became of a file: ``read`` as it was written, ``refused``, or ``misread``."""

    kind: str
    reason: str = ""


def verdict(file: PriceFile, folder: Path) -> Verdict:
    """Read the file and compare its prices with those that it holds."""
    path = folder / file.name
    path.write_bytes(file.content)
    try:
        series = load_series(file.symbol, "Close", str(path), notify=None)
    except ForecastError as error:
        return Verdict("refused", str(error).replace(str(path), "FILE"))
    except Exception as error:
        return Verdict("misread", f"{type(error).__name__}: {error}")
    finally:
        path.unlink()
    dates, values = series.dates.astype("datetime64[D]").tolist(), series.values.tolist()
    if dates == file.dates and values == file.values:
        return Verdict("read")
    return Verdict("misread", f"{_shown(dates, values)} rather than {_shown(file.dates, file.values)}")


def _shown(dates: list[dt.date], values: list[float]) -> str:
    rows = [f"{date} {value}" for date, value in zip(dates, values, strict=True)]
    return f"{len(rows)} rows ({', '.join([*rows[:3], '...', *rows[-2:]])})"


Pick = Callable[..., Any]
"""Chooses one of several options for what its first argument names."""


@st.composite
def price_files(draw: st.DrawFn) -> PriceFile:
    """Files of any dialect."""
    chance = random.Random(draw(st.integers(0, 2**32 - 1)))
    rows = draw(st.one_of(st.integers(5, 12), st.integers(5, 120)))
    return _file(lambda options: draw(st.sampled_from(options)), chance, rows)


def random_file(chance: random.Random) -> PriceFile:
    """A file of any dialect."""
    return _file(chance.choice, chance, chance.choice([chance.randint(5, 12), chance.randint(5, 120)]))


def _file(choose: Callable[[tuple[Any, ...]], Any], chance: random.Random, rows: int) -> PriceFile:
    dialect: dict[str, Any] = {}

    def pick(what: str, *options: Any) -> Any:
        dialect[what] = choose(options)
        return dialect[what]

    sessions = pick("sessions", "weekdays", "weekdays", "every day", "weekly", "monthly")
    gaps = pick("gaps", 0, 0, 0.05, 0.3)
    days = random_days(chance, rows, sessions, gaps)
    symbol = pick("symbol", *SYMBOLS)
    table = _Table(pick, chance, _number_form(pick), _stamp_form(pick, sessions))
    layout = pick(
        "layout", "one", "one", "one", "one, named", "one, spelled otherwise", "rows", "rows", "rows, absent",
        "two headers", "flat",
    )  # fmt: skip
    prices = {symbol: table.random_prices(days)}
    if not layout.startswith("one"):
        for other in chance.sample(OTHERS, 2 if layout == "rows, absent" else pick("others", 1, 2, 3)):
            own = days if layout in ("two headers", "flat") or pick("same days", True, False) else None
            prices[other] = table.random_prices(own or random_days(chance, rows, sessions, gaps))
    lines, header = table.lines(layout, prices, symbol)
    content = table.packed(header, lines)
    held = {} if layout == "rows, absent" else {d: p for d, p in prices[symbol].items() if p not in EMPTY}
    ending = {"gz": ".csv.gz", "zip": ".zip"}.get(dialect["packed"], ".csv")
    return PriceFile(
        "prices" + ending, content, symbol, sorted(held), [float(held[d]) for d in sorted(held)], dialect
    )


def random_days(chance: random.Random, rows: int, sessions: str, gaps: float) -> list[dt.date]:
    """Days of sessions, oldest first, some of them left out."""
    day = dt.date(1975, 1, 1) + dt.timedelta(chance.randrange(365 * 50))
    if sessions == "monthly":
        day = day.replace(day=1)
    day = min(day, LATEST - dt.timedelta(rows * {"weekly": 10, "monthly": 45}.get(sessions, 2)))
    if sessions == "monthly":
        day = day.replace(day=1)
    step = {"weekly": 7}.get(sessions, 1)
    found: list[dt.date] = []
    while len(found) < rows and day <= LATEST:
        if (chance.random() >= gaps or not found) and (sessions != "weekdays" or day.weekday() < 5):
            found.append(day)
        day = (
            (day.replace(day=28) + dt.timedelta(5)).replace(day=1)
            if sessions == "monthly"
            else day + dt.timedelta(step)
        )
    return found


@dataclass(frozen=True)
class _Number:
    """How numbers are written."""

    decimal: str
    thousands: str
    decimals: int
    trimmed: bool
    prefix: str
    suffix: str

    def of(self, text: str) -> str:
        """A number of plain digits in this form."""
        if text in EMPTY:
            return text
        whole, point, fraction = text.partition(".")
        if self.thousands and "e" not in text:
            whole = f"{int(whole):,}".replace(",", self.thousands)
        return self.prefix + whole + point.replace(".", self.decimal) + fraction + self.suffix


def _number_form(pick: Pick) -> _Number:
    decimal = pick("decimal", ".", ".", ",")
    thousands = pick(
        "thousands", "", "", "", *(sign for sign in (",", ".", " ", "'", "\u00a0") if sign != decimal)
    )
    prefix, suffix = pick(
        "currency", ("", ""), ("", ""), ("", ""), ("$", ""), ("R$ ", ""), ("R$", ""), ("", " €"), ("€", "")
    )
    return _Number(
        decimal,
        thousands,
        pick("decimals", 2, 2, 0, 1, 3, 4, 6, 8),
        pick("trimmed", False, True),
        prefix,
        suffix,
    )


@dataclass(frozen=True)
class _Stamp:
    """How dates are written, and what stands beside them."""

    write: Callable[[dt.datetime, int], str]
    time: dt.time
    beside: str


def _stamp_form(pick: Pick, sessions: str) -> _Stamp:
    kind = pick(
        "dates", "iso", "iso", "numeric", "numeric", "numeric", "numeric", "named", "digits", "epoch", "ctime", "excel",
        *(["month"] if sessions == "monthly" else []),
    )  # fmt: skip
    beside = pick(
        "beside", "", "", "", "weekday", "epoch", *(["time"] if kind in ("iso", "numeric", "named") else [])
    )
    if kind in ("excel", "month"):
        time = MIDNIGHT
    else:
        time = pick("time", MIDNIGHT, MIDNIGHT, MIDNIGHT, dt.time(12), dt.time(9, 30))
    tail: Callable[[dt.datetime], str] = lambda _: ""  # noqa: E731
    if time != MIDNIGHT and beside != "time" and kind in ("iso", "numeric", "named"):
        tail = _clock(pick)
    elif kind == "iso" and beside != "time":
        tail = pick("midnight", lambda _: "", lambda _: "", lambda _: " 00:00:00", lambda _: "T00:00:00Z",
                    lambda _: " 00:00:00-05:00", lambda _: "T00:00:00.000")  # fmt: skip
    return _Stamp(_day_form(pick, kind, tail), time, beside)


def _clock(pick: Pick) -> Callable[[dt.datetime], str]:
    clock = pick("clock", " %H:%M", "T%H:%M:%S", " %H:%M:%S", " %I:%M %p", ", %H:%M:%S", " %H:%M:%S.000")
    zone = pick("zone", "", "", "Z", "+00:00", "-05:00", "-0300", " UTC", "New York")

    def written(stamp: dt.datetime) -> str:
        summer = 4 <= stamp.month <= 10
        return stamp.strftime(clock) + (("-04:00" if summer else "-05:00") if zone == "New York" else zone)

    return written


def _day_form(pick: Pick, kind: str, tail: Callable[[dt.datetime], str]) -> Callable[[dt.datetime, int], str]:
    """Writes a stamp; the row's number matters where a column mixes two forms."""
    if kind == "epoch":
        unit = pick("unit", 1, 1, 10**3, 10**6, 10**9, "ms, then us")
        pointed = pick("pointed", False, False, True)

        def epoch(stamp: dt.datetime, row: int) -> str:
            per_second = (10**3 if row < 4 else 10**6) if isinstance(unit, str) else unit
            whole = int(stamp.replace(tzinfo=dt.UTC).timestamp()) * per_second
            return f"{whole}.0" if pointed else str(whole)

        return epoch
    if kind == "excel":
        return lambda stamp, _: str((stamp.date() - dt.date(1899, 12, 30)).days)
    if kind == "iso":
        return lambda stamp, _: stamp.strftime("%Y-%m-%d") + tail(stamp)
    if kind == "numeric":
        order = pick("order of date", "dmy", "mdy", "ymd")
        sign = pick("sign", "/", ".", "-")
        padded = pick("padded", True, True, False)
        short = pick("short years", False, False, True)
        ahead = pick("weekday ahead", "", "", "", "%a ", "%A, ")

        def numeric(stamp: dt.datetime, _: int) -> str:
            year = f"{stamp.year % 100:02d}" if short else str(stamp.year)
            two = "02d" if padded else "d"
            parts = {"d": f"{stamp.day:{two}}", "m": f"{stamp.month:{two}}", "y": year}
            date = str(sign.join(parts[part] for part in order))
            return stamp.strftime(ahead) + date + tail(stamp)

        return numeric
    if kind == "named" and pick("language", "en", "en", "pt", "de") != "en":
        language = pick("other language", *MONTHS)
        join = pick("join", " ", "-", "/", " de " if language == "pt" else ". ")
        return lambda stamp, _: (
            f"{stamp.day:02d}{join}{MONTHS[language][stamp.month - 1]}{' ' if join == '. ' else join}{stamp.year}"
            + tail(stamp)
        )
    form = {
        "named": ("%d-%b-%Y", "%d-%b-%y", "%b %d, %Y", "%B %d, %Y", "%d %B %Y", "%Y-%b-%d",
                  "%a, %d %b %Y", "%b %d, %y", "%y-%b-%d"),
        "digits": ("%Y%m%d", "%Y%m%d", "%Y%m%d%H%M", "%Y%m%d%H%M%S", "%Y%m%d %H:%M", "%Y%m%dT%H%M%S"),
        "ctime": ("%a %b %d %H:%M:%S %Y", "%H:%M:%S %d/%m/%Y", "%H:%M %d-%b-%Y"),
        "month": ("%b %Y", "%Y-%m", "%m/%Y", "%b-%y", "%B %Y", "%Y %b"),
    }[kind]  # fmt: skip
    written = pick("form", *form)
    return lambda stamp, _: stamp.strftime(written) + tail(stamp)


class _Table:
    """Writes tables in one dialect."""

    def __init__(self, pick: Pick, chance: random.Random, number: _Number, stamp: _Stamp) -> None:
        self.pick, self.chance, self.number, self.stamp = pick, chance, number, stamp
        self.order = pick("order", "oldest first", "oldest first", "newest first", "shuffled")
        self.delimiter = pick("delimiter", ",", ",", ";", "\t", "|")
        self.date_name = pick(
            "date name", "Date", "date", "ds", "timestamp", "unix", "Data", "Datum", "observation_date", "Gmt time",
            "<DATE>", "",
        )  # fmt: skip
        self.before = pick(
            "before", (), (), ("Open",), ("Open", "High", "Low"), ("Note",), ("No",), ("Grade",)
        )
        self.after = pick(
            "after",
            (),
            (),
            ("Volume",),
            ("Adj Close", "Volume"),
            ("Change %",),
            ("Preço Médio",),
            ("Note", "Low"),
        )
        self.junk = pick(
            "junk", "", "", "", "", "comment", "title", "URL", "blank lines", "footer", "repeated header",
            "title with a comma", "footer with a comma",
            "trailing delimiters", "trailing delimiters, header too", "blank tail",
        )  # fmt: skip
        self.missing = pick("missing", *([None] * 5), *EMPTY)
        self.dashes = pick("quoting", csv.QUOTE_MINIMAL, csv.QUOTE_MINIMAL, csv.QUOTE_ALL)

    def random_prices(self, days: list[dt.date]) -> dict[dt.date, str]:
        """A walk of prices by day, as plain digits, some of them missing."""
        price = (
            10 ** self.chance.uniform(-6, 6)
            if self.chance.random() < 0.3
            else 10 ** self.chance.uniform(0, 4)
        )
        step = self.chance.choice([0.001, 0.01, 0.05])
        found = {}
        for day in days:
            price = min(max(price * (1 + self.chance.gauss(0, step)), 1e-6), 1e6)
            found[day] = self._digits(price)
        if self.missing is not None:
            for day in self.chance.sample(days, len(days) // 5):
                found[day] = self.missing
        return found

    def _digits(self, price: float) -> str:
        places = self.number.decimals
        text = f"{max(Decimal(price), Decimal(1).scaleb(-places)):.{places}f}"
        return repr(float(text)) if self.number.trimmed else text

    def lines(
        self, layout: str, prices: dict[str, dict[dt.date, str]], symbol: str
    ) -> tuple[list[list[str]], list[list[str]]]:
        """The rows of the table, and the lines of its header."""
        if layout in ("two headers", "flat"):
            return self._columns(layout, prices)
        held = {name: rows for name, rows in prices.items() if layout != "rows, absent" or name != symbol}
        named = layout != "one"
        column = (
            self.pick("symbol column", "symbol", "Ticker", "tic", "Company", "Index", "unique_id")
            if named
            else ""
        )
        spelled = {symbol: "X " + symbol} if layout == "one, spelled otherwise" else {}
        rows = [(day, name, price) for name, by_day in held.items() for day, price in by_day.items()]
        if self.pick("interleaved", True, False):
            rows.sort(key=lambda row: row[0])
        first = self.pick("symbol first", True, False)
        names = [*self.before, "Close", *self.after]
        stamps, date_names = self._stamps([day for day, _, _ in rows])
        lines = []
        for number, ((_, name, price), stamp) in enumerate(zip(rows, stamps, strict=True)):
            cells = [self._cell(text, price, number) for text in names]
            who = [spelled.get(name, name)] if named else []
            lines.append([*who, *stamp, *cells] if first else [*stamp, *who, *cells])
        who = [column] if named else []
        header = [*who, *date_names, *names] if first else [*date_names, *who, *names]
        return self._ordered(lines), [header]

    def _columns(
        self, layout: str, prices: dict[str, dict[dt.date, str]]
    ) -> tuple[list[list[str]], list[list[str]]]:
        names = [
            *(n for n in self.before if n not in ("Note", "No", "Grade")),
            "Close",
            *(n for n in self.after if n != "Note"),
        ]
        days = sorted(next(iter(prices.values())))
        stamps, date_names = self._stamps(days)
        pairs = [(name, symbol) for name in names for symbol in prices]
        if self.pick("grouped by symbol", True, False):
            pairs = [(name, symbol) for symbol in prices for name in names]
        lines = [
            [*stamp, *(self._cell(name, prices[symbol][day], row) for name, symbol in pairs)]
            for row, (day, stamp) in enumerate(zip(days, stamps, strict=True))
        ]
        if layout == "flat":
            form = self.pick(
                "flat form",
                "{0}_{1}",
                "{1} {0}",
                "('{0}', '{1}')",
                "('{1}', '{0}')",
                "{1}_{0}",
                "{0}.{1}",
                "{0}",
            )
            if form == "{0}" and len(prices) > 1:
                form = "{0}_{1}"
            return self._ordered(lines), [[*date_names, *(form.format(*pair) for pair in pairs)]]
        blank = [""] * (len(date_names) - 1)
        labels = self.pick("labels", ("Price", "Ticker"), ("Price", "Ticker"), ("", ""))
        header = [
            [labels[0], *blank, *(name for name, _ in pairs)],
            [labels[1], *blank, *(symbol for _, symbol in pairs)],
        ]
        if self.pick("symbols above", False, True):
            header.reverse()
        if self.pick("third line", True, True, False) or len(date_names) > 1:
            header.append([*date_names, *([""] * len(pairs))])
        return self._ordered(lines), header

    def _ordered(self, lines: list[list[str]]) -> list[list[str]]:
        if self.order == "newest first":
            lines.reverse()
        if self.order == "shuffled":
            self.chance.shuffle(lines)
        return lines

    def _stamps(self, days: list[dt.date]) -> tuple[list[list[str]], list[str]]:
        """The cells of each row's date, and the names of their columns."""
        moments = [dt.datetime.combine(day, self.stamp.time) for day in days]
        written = [self.stamp.write(moment, row) for row, moment in enumerate(moments)]
        match self.stamp.beside:
            case "weekday":
                form = self.pick("weekday", "%a", "%A")
                return (
                    [[moment.strftime(form), text] for moment, text in zip(moments, written, strict=True)],
                    [self.pick("weekday name", "Day", "Weekday"), self.date_name],
                )
            case "time":
                form = self.pick("time form", "%H:%M", "%H:%M:%S", "%H%M", "%H%M%S", "%I:%M %p")
                name = self.pick("time name", "Time", "<TIME>", "Hour")
                return (
                    [[text, moment.strftime(form)] for moment, text in zip(moments, written, strict=True)],
                    [self.date_name, name],
                )
            case "epoch":
                unit = self.pick("epoch unit", 1, 1000)
                seconds = [int(moment.replace(tzinfo=dt.UTC).timestamp()) * unit for moment in moments]
                return (
                    [[str(second), text] for second, text in zip(seconds, written, strict=True)],
                    ["unix" if self.date_name != "unix" else "timestamp", self.date_name],
                )
        return [[text] for text in written], [self.date_name]

    def _cell(self, name: str, price: str, row: int) -> str:
        match name:
            case "Close":
                return self.number.of(price)
            case "Note":
                return self.chance.choice(["ok", "late", "ok, checked"])
            case "Grade":
                return self.chance.choice(["A", "B", "NA"])
            case "No":
                return str(row + 1)
            case "Volume":
                form = _Number(self.number.decimal, self.number.thousands, 0, False, "", "")
                return form.of(str(self.chance.randrange(1, 10**7)))
            case "Change %":
                return f"{self.chance.gauss(0, 2):.2f}%".replace(".", self.number.decimal)
        known = price if price not in EMPTY else "7.25"
        return self.number.of(self._digits(float(known) * self.chance.uniform(0.97, 1.03)))

    def packed(self, header: list[list[str]], lines: list[list[str]]) -> bytes:
        """The bytes of a file with these lines."""
        width = len(header[0])
        top: list[str] = []
        footer = ""
        rows: list[list[str]] = [*header, *lines]
        match self.junk:
            case "comment":
                top = ["# written by a tool, 2020-01-02", "# unit: USD"]
            case "title":
                top = ["Prices of a share", ""]
            case "title with a comma":
                top = ["Prices of a share, in dollars"]
            case "URL":
                top = ["https://www.CryptoDataDownload.com"]
            case "blank lines":
                rows.insert(len(header) + len(lines) // 2, [])
                rows.insert(len(header), [])
                top = [""]
            case "footer":
                footer = "Source: the exchange. All rights reserved."
            case "footer with a comma":
                footer = "Source: the exchange, 2024"
            case "repeated header":
                rows[len(header) + len(lines) // 2 : len(header) + len(lines) // 2] = header
            case "trailing delimiters":
                rows = [*header, *([*line, ""] for line in lines)]
            case "trailing delimiters, header too":
                rows = [[*line, ""] for line in rows]
            case "blank tail":
                rows += [[""] * width] * 3
        buffer = io.StringIO()
        end = self.pick("line end", "\n", "\n", "\r\n")
        writer = csv.writer(buffer, delimiter=self.delimiter, quoting=self.dashes, lineterminator=end)
        writer.writerows(rows)
        text = "".join(line + end for line in top) + buffer.getvalue() + (footer and footer + end)
        return self._bytes(text)

    def _bytes(self, text: str) -> bytes:
        encoding = self.pick("encoding", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1")
        try:
            content = text.encode(encoding)
        except UnicodeEncodeError:  # a euro sign
            content = text.encode("cp1252")
        packing = self.pick("packed", "", "", "", "gz", "zip")
        if packing == "gz":
            return gzip.compress(content)
        if packing == "zip":
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w") as archive:
                archive.writestr("prices.csv", content)
            return buffer.getvalue()
        return content
