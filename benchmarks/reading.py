"""Reading a CSV of a million rows against pandas with everything told: ``python -m benchmarks.reading``.

Both give the dates and the closes as arrays; pandas is told the delimiter, the form of the dates, the decimal sign and
the two columns, and proves nothing. Rounds alternate; the medians and their ratio are printed.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from forecast.prices.files import read_file

ROWS, ROUNDS = 1_000_000, 7
FORMS = {
    "ISO dates, six columns": ("%Y-%m-%d %H:%M:%S", ",", "."),
    "day first, semicolons, decimal commas": ("%d.%m.%Y %H:%M", ";", ","),
}


def main() -> None:
    """Print a line per form."""
    print(
        "| file | pandas, all columns, s | pandas, two columns, s | this reader, s | ratio to all | ratio to two |"
    )
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, (form, delimiter, decimal) in FORMS.items():
            path = Path(folder) / "prices.csv"
            write(path, form, delimiter, decimal)
            # Told so, pandas reads dates of ISO 8601 three times as fast as by their directives.
            told_form = "ISO8601" if form.startswith("%Y-%m-%d ") else form
            told = {"sep": delimiter, "decimal": decimal, "parse_dates": ["Date"], "date_format": told_form}
            times = alternating(
                lambda path=path, told=told: pd.read_csv(path, **told),
                lambda path=path, told=told: pd.read_csv(path, usecols=["Date", "Close"], **told),
                lambda path=path: read_file(path, "X").values("Close"),
            )
            everything, two, ours = times
            print(
                f"| {name} | {everything:.2f} | {two:.2f} | {ours:.2f} | {ours / everything:.2f} | {ours / two:.2f} |",
                flush=True,
            )


def write(path: Path, form: str, delimiter: str, decimal: str) -> None:
    generator = np.random.default_rng(0)
    closes = np.round(100 * np.exp(np.cumsum(generator.normal(0, 1e-4, ROWS))), 2)
    dates = pd.date_range("1990-01-01", periods=ROWS, freq="min").strftime(form)
    prices = dict.fromkeys(("Open", "High", "Low", "Close"), closes)
    frame = pd.DataFrame({"Date": dates, **prices, "Volume": generator.integers(0, 1000, ROWS)})
    frame.to_csv(path, index=False, sep=delimiter, decimal=decimal)


def alternating(*readers: Callable[[], object]) -> list[float]:
    """Median seconds of each reader."""
    times: list[list[float]] = [[] for _ in readers]
    for _ in range(ROUNDS):
        for reader, taken in zip(readers, times, strict=True):
            started = time.perf_counter()
            reader()
            taken.append(time.perf_counter() - started)
    return [statistics.median(taken) for taken in times]


if __name__ == "__main__":
    main()
