"""Numbers from text, in the decimal sign that the cells prove.

``1.234`` is a thousand in Germany and little more than one in England. A cell such as ``1,234.5``, ``1.234.567`` or
``1.23`` can be read in one way only; it proves the decimal sign of its column, and of the file. A column without any
proof is refused, because a wrong guess is wrong by a factor of a thousand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from forecast.errors import DataError
from forecast.prices.cells import Cells, any_true, first_true, matches

Sign = Literal[".", ","]

EMPTY = ("", "null", "none", "na", "n/a", "#n/a", "nan", "nat", "-", "--", ".")
"""Cells without a number, in lower case."""
CURRENCY = r"(?:[A-Za-z]{0,3}[$€£¥₹₿]|USD|EUR|GBP|BRL|CHF|JPY)"
SPACE = r"[\s\x{a0}\x{202f}'\x{2019}]"
SPACED = rf"^[+-]?\d{{1,3}}(?:{SPACE}\d{{3}})+(?:[.,]\d+)?$"
"""A number with spaces or apostrophes between thousands, whatever its decimal sign."""
PAIR = r"^[+-]?(?P<a>\d{1,3}) (?P<b>\d{3}(?:[.,]\d+)?)$"
"""A number with one space between thousands, or two numbers of a similar size, such as a bid and an ask."""
EXPONENT = r"(?:[eE][+-]?\d{1,3})?"
FARTHEST = 100.0
"""Largest factor between a number and the one before it, where other cells prove the decimal sign."""
SAMPLE = 1000
"""Number of cells in which a proof is sought first."""


def _proof(sign: Sign) -> str:
    """The form of cells that can be numbers with this decimal sign, and with no other."""
    point, comma = ("[.]", ",") if sign == "." else (",", "[.]")
    fraction = (
        rf"(?:\d*{point}(?:\d{{1,2}}|\d{{4,}})|\d{{4,}}{point}\d{{3}}|0+{point}\d{{3}}|{point}\d+|\d+{point})"
    )
    thousands = rf"[1-9]\d{{0,2}}(?:{comma}\d{{2,3}})*{comma}\d{{3}}"
    return rf"^[+-]?(?:{fraction}|{thousands}(?:{point}\d+)|{thousands}{comma}\d{{3}}){EXPONENT}$"


def _form(sign: Sign) -> str:
    """The form of all numbers with this decimal sign."""
    point, comma = ("[.]", ",") if sign == "." else (",", "[.]")
    whole = rf"(?:\d+|[1-9]\d{{0,2}}(?:{comma}\d{{2,3}})*{comma}\d{{3}})"
    return rf"^[+-]?(?:{whole}(?:{point}\d*)?|{point}\d+){EXPONENT}$"


PROOFS: dict[Sign, str] = {".": _proof("."), ",": _proof(",")}
FORMS: dict[Sign, str] = {".": _form("."), ",": _form(",")}
NOT_FINITE = r"(?i)^[+-]?inf(?:inity)?$"


def parse_numbers(
    text: Cells,
    where: Callable[[int], str],
    *,
    decimal: Sign | None = None,
    others: Callable[[], Collection[Sign]] = tuple,
) -> NDArray[np.float64]:
    """Numbers of a column of text, shape (n,); cells without a number are NaN.

    Args:
        text: the column.
        where: describes a row's place for a message, such as ``prices.csv, column Close, row 3``.
        decimal: the decimal sign; None to find the sign that the cells prove.
        others: returns the signs that the file's other cells prove; called where this column proves none.

    Raises:
        DataError: when a cell is not a number, or nothing proves the decimal sign; names the cell and the remedy.
    """
    text = pc.utf8_trim_whitespace(text)
    quick = _cast(text) if decimal != "," else None
    if quick is not None and (decimal == "." or _points_are_decimal(text)):
        return quick
    empty = pc.fill_null(pc.is_in(pc.utf8_lower(text), pa.array(EMPTY)), True)
    cells = _plain(pc.if_else(empty, None, text), where)
    sign = decimal or _sign(cells, text, where, others)
    if (row := _first_other(cells, FORMS[sign])) is not None:
        raise DataError(
            f"{where(row)} has {text[row].as_py()!r}, which is not a number with the decimal sign {sign!r}; correct "
            "the cell, choose another `feature`, or give the sign with `decimal`"
        )
    return _read(cells, sign)


def _read(cells: Cells, sign: Sign) -> NDArray[np.float64]:
    """Numbers with this decimal sign."""
    cells = pc.replace_substring(cells, "," if sign == "." else ".", "")
    return _float(pc.cast(pc.replace_substring(cells, ",", "."), pa.float64()))


def _cast(text: Cells) -> NDArray[np.float64] | None:
    """Numbers where each cell is a plain number with a decimal point, or empty; None otherwise."""
    try:
        return _float(pc.cast(pc.if_else(pc.equal(text, ""), None, text), pa.float64()))
    except pa.ArrowInvalid:
        return None


def _float(numbers: Cells) -> NDArray[np.float64]:
    found: NDArray[np.float64] = pc.fill_null(numbers, float("nan")).to_numpy()
    return found


def _points_are_decimal(text: Cells) -> bool:
    """Whether plain numbers have no point at all, or one of them proves that it is the decimal sign."""
    # Most files prove it within a few rows; only then are all cells searched.
    return any(any_true(matches(part, PROOFS["."])) for part in (text[:SAMPLE], text)) or not any_true(
        pc.match_substring(text, ".")
    )


def _plain(text: Cells, where: Callable[[int], str]) -> Cells:
    """Cells without currency signs and without spaces or apostrophes between thousands."""
    text = pc.replace_substring(text, "\N{MINUS SIGN}", "-")
    priced = matches(text, CURRENCY)
    if any_true(priced):
        signs = pc.struct_field(pc.extract_regex(text, f"(?P<sign>{CURRENCY})"), "sign")
        kinds = pc.unique(signs.drop_null())
        if len(kinds) > 1:
            row = pc.index(signs, kinds[1]).as_py()
            raise DataError(
                f"{where(row)} has {text[row].as_py()!r} in a column of {kinds[0].as_py()}; keep one currency in it"
            )
        text = pc.utf8_trim_whitespace(
            pc.replace_substring_regex(text, rf"^([+-]?)\s*{CURRENCY}\s*|\s*{CURRENCY}$", r"\1")
        )
    spaced = pc.fill_null(matches(text, SPACED), False)
    if not any_true(spaced):
        return text
    pairs = pc.extract_regex(text.filter(spaced).combine_chunks(), PAIR)
    if not pairs.null_count:
        first, second = (
            pc.cast(pc.replace_substring(pairs.field(name), ",", "."), pa.float64()).to_numpy()
            for name in ("a", "b")
        )
        if ((first < 2 * second) & (second < 2 * first)).all():
            row = first_true(spaced) or 0
            raise DataError(
                f"{where(row)} has {text[row].as_py()!r}, which can be one number or two; write numbers without spaces"
            )
    return pc.if_else(spaced, pc.replace_substring_regex(text, SPACE, ""), text)


def _sign(
    cells: Cells, text: Cells, where: Callable[[int], str], others: Callable[[], Collection[Sign]]
) -> Sign:
    """The decimal sign that the cells prove, or else the others of the file.

    Raises:
        DataError: when nothing proves it, or two cells prove the opposite.
    """
    proofs = {sign: row for sign in PROOFS if (row := first_true(matches(cells, PROOFS[sign]))) is not None}
    if len(proofs) == 2:
        first, second = (text[row].as_py() for row in proofs.values())
        raise DataError(
            f"{where(proofs[','])} has {second!r} beside {first!r}: one has a decimal comma, the other a decimal "
            "point; write all cells in one form"
        )
    if proofs:
        return next(iter(proofs))
    unproved = first_true(matches(cells, "[.,]"))
    if unproved is None or _first_other(cells, f"{FORMS['.']}|{FORMS[',']}") is not None:
        return "."
    proved = set(others())
    if len(proved) == 1 and not _is_doubtful(cells, *proved):
        return proved.pop()
    raise DataError(
        f"{where(unproved)} has {text[unproved].as_py()!r}, where the sign can stand for decimals or for thousands, "
        "and no other cell settles it; give the decimal sign as `decimal=.` or `decimal=,`"
    )


def _is_doubtful(cells: Cells, sign: Sign) -> bool:
    """Whether numbers such as 987 and 1.234 differ a hundredfold with this decimal sign, but less with the other."""

    def farthest(read: Sign) -> float:
        sizes = np.abs(_read(cells, read))
        sizes = np.log(sizes[np.isfinite(sizes) & (sizes > 0)])
        return float(np.max(np.abs(np.diff(sizes)), initial=0.0))

    return farthest(sign) > max(math.log(FARTHEST), farthest("," if sign == "." else "."))


def proved_signs(columns: Iterable[Cells]) -> set[Sign]:
    """The decimal signs that columns of text prove; percentages and amounts such as 32.94M count too."""
    proved: set[Sign] = set()
    for text in columns:
        text = pc.replace_substring_regex(pc.utf8_trim_whitespace(text), r"\s*[%KMBT]$", "")
        proved.update(sign for sign in PROOFS if any_true(matches(text, PROOFS[sign])))
    return proved


def _first_other(cells: Cells, form: str) -> int | None:
    """The first row of another form than ``form``; empty and infinite cells have any form."""
    return first_true(pc.invert(pc.fill_null(matches(cells, f"{form}|{NOT_FINITE}"), True)))
