"""Trading calendars against the schedules of ``exchange_calendars``: ``python -m benchmarks.calendars``.

For ten years of each exchange, every session: the session that follows it, its close, and its hourly bars, which are
computed here from the schedule's open, break and close one by one. Then the same through the server's answers: each
session is sent as ``last_date`` to a daily model, and its last hour to an hourly one. It exits with code 1 when any
differs.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from forecast import TrainConfig, load_checkpoint, train
from forecast.model.checkpoint import save_checkpoint
from forecast.prices.calendars import BarGrid, get
from forecast.prices.source import series_from_config
from serve_app.metrics import Measurements
from serve_app.models import Models
from serve_app.served_model import Engines
from serve_app.service import ForecastService

FIRST, LAST = np.datetime64("2015-01-01"), np.datetime64("2024-12-31")
EXCHANGES = (
    "XNYS", "XNAS", "XLON", "XETR", "XPAR", "XAMS", "XMIL", "XMAD", "XSWX", "XSTO",
    "XHKG", "XTKS", "XSHG", "XKRX", "XBOM", "XASX", "XTSE", "BVMF", "XJSE", "CMES", "24/7",
)  # fmt: skip
HOUR = BarGrid(3600)
WINDOW = 20
"""Values of a request."""


def main() -> None:
    """Print a line per exchange, and the total."""
    total = np.zeros(5, int)
    print("| exchange | sessions | wrong | bars | answers | wrong answers | seconds |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in EXCHANGES:
            started = time.perf_counter()
            sessions, bars, differing = check(name)
            asked, wrong = asyncio.run(check_answers(name, Path(folder)))
            counts = np.array([sessions, differing, bars, asked, wrong])
            total += counts
            print(
                f"| {name} | {' | '.join(map(str, counts))} | {time.perf_counter() - started:.1f} |",
                flush=True,
            )
    print(f"| total | {' | '.join(map(str, total))} | |")
    sys.exit(1 if total[1] or total[4] else 0)


def check(name: str) -> tuple[int, int, int]:
    """The number of sessions and bars of ten years, and how many sessions differ in any way."""
    schedule = read_schedule(name)
    calendar = get(name)
    sessions = schedule.index.to_numpy().astype("datetime64[D]")
    known = int((sessions <= LAST).sum())
    closes = calendar.closes(sessions[:known], "1d")
    bars = wrong = 0
    for number, session in enumerate(sessions[:known]):
        row = schedule.iloc[number]
        following = calendar.next_bars(session, "1d", 1)
        expected = list(hours(row))
        stamps = calendar.bars(session, session, HOUR)
        bars += len(expected)
        right = (
            following is not None
            and following[0] == sessions[number + 1]
            and closes[number] == seconds(row["close"])
            and len(stamps) == len(expected)
            and bool((stamps == np.array(expected)).all())
        )
        wrong += not right
    return known, bars, wrong


async def check_answers(name: str, folder: Path) -> tuple[int, int]:
    """Ask a daily and an hourly model of this exchange for the step after each session; count what is wrong."""
    schedule = read_schedule(name)
    known = int((schedule.index <= pd.Timestamp(LAST)).sum())
    daily, hourly = [await service_of(name, interval, folder) for interval in ("1d", "1h")]
    rows = [row for _, row in schedule.iterrows()]
    asked = wrong = 0
    for number in range(known):
        following = rows[number + 1]
        first_hour = following["open"], min(following["open"] + pd.Timedelta(hours=1), following["close"])
        next_day = schedule.index[number + 1].tz_localize("UTC"), following["close"]
        for service, last, step in (
            (daily, str(schedule.index[number].date()), next_day),
            (hourly, f"{max(hours(rows[number]))}+00:00", first_hour),
        ):
            body = json.dumps({"values": [100.0 + value for value in range(WINDOW)], "last_date": last})
            answer = json.loads((await service.predict(body.encode())).body)
            stamps = [pd.Timestamp(answer[name][0]) for name in ("forecast_dates", "forecast_closes")]
            asked += 1
            wrong += [stamp if stamp.tz else stamp.tz_localize("UTC") for stamp in stamps] != list(step)
    return asked, wrong


async def service_of(name: str, interval: str, folder: Path) -> ForecastService:
    """A service of a small model whose series has this calendar; the model itself is the same for all."""
    path = folder / "model.pt"
    if not path.exists():
        prices = folder / "prices.csv"
        days = pd.date_range("2024-01-01", periods=300)
        pd.DataFrame({"Date": days, "Close": 100 + np.arange(300) % 7}).to_csv(prices, index=False)
        options = TrainConfig(
            symbol="X", source=str(prices), sequence_length=WINDOW, hidden_size=4, num_layers=1, max_epochs=1
        )
        save_checkpoint(train(series_from_config(options), options).checkpoint, path)
    checkpoint = load_checkpoint(path)
    grid = dataclasses.asdict(HOUR) if interval == "1h" else None
    bars = {"interval": interval, "calendar": name, "grid": grid}
    trained_until = f"{LAST}T15:00:00+00:00" if grid else str(LAST)
    provenance = {**(checkpoint.provenance or {}), **bars}
    mine = checkpoint.model_copy(update={"provenance": provenance, "trained_until": trained_until})
    save_checkpoint(mine, folder / "of_exchange.pt")
    models = Models(Engines(engine="torch"))
    await models.load(str(folder / "of_exchange.pt"))
    return ForecastService(models, Measurements(), max_forecasts=1000)


def read_schedule(name: str) -> pd.DataFrame:
    """The library's schedule of ten years and some days."""
    import exchange_calendars

    with warnings.catch_warnings(action="ignore"):
        return exchange_calendars.get_calendar(name, start=str(FIRST), end=str(LAST + 60)).schedule


def hours(row: pd.Series) -> Iterator[np.datetime64]:
    """The starts of a session's hourly bars, from its open and from the end of its break."""
    halves = [(row["open"], row["close"])]
    if not pd.isna(row["break_start"]):
        halves = [(row["open"], row["break_start"]), (row["break_end"], row["close"])]
    for start, end in halves:
        while start < end:
            yield seconds(start)
            start += pd.Timedelta(hours=1)


def seconds(moment: pd.Timestamp) -> np.datetime64:
    return np.datetime64(int(moment.timestamp()), "s")


if __name__ == "__main__":
    main()
