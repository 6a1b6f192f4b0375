"""A model that lives: sessions replayed one after the other, with faults, beside a server under load.

`sessions` replays the last sessions of a symbol or of several, one `tune_jobs.update` each. `fresh` compares renewals
with whole jobs. `ledger` measures a ledger of a million rows. `universe FILE` measures one session of many symbols.
`rollback` takes a version back under load.
"""

from __future__ import annotations

import argparse
import datetime as dt
import functools
import itertools
import json
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil

from benchmarks.checks import report
from benchmarks.updates import KILLS, RENEWAL_KILLS, Run, full_disk, updated
from forecast.backtest.significance import diebold_mariano
from forecast.job_files import PICK_FILE
from forecast.live.judge import session_losses
from forecast.live.ledger import Ledger
from forecast.live.store import CURRENT, Store
from forecast.model.checkpoint import Checkpoint, load_checkpoint
from forecast.prices.series import Series
from forecast.prices.source import load_series
from tune_jobs.update_options import UNIVERSE

SESSIONS = 250
HORIZONS = (1, 5, 20)
RETUNE = 20
"""Sessions between renewals."""
MODELS_OF_A_SESSION = 4
"""The champion and three baselines."""
CPU_BAR, SHARE_BAR, CRPS_BAR = 5.0, 0.2, 1.005
ROLLBACK_BAR, SCORING_BAR, READING_BAR, UNIVERSE_BAR = 5.0, 1.0, 0.1, 60.0
PAUSE = 0.05
"""Seconds between the requests of the load."""


OTHERS = ("source down", "partial bar", "corrected price", "full disk", "damaged model", "clock a day ahead")


@dataclass
class Load:
    """Requests to a server until it is stopped: the number of answers by kind."""

    port: int
    window: list[float]
    symbol: str
    answers: Counter[str] = field(default_factory=Counter)
    _over: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._over.set()
        self._thread.join()

    def _ask(self) -> None:
        body = json.dumps({"values": self.window, "symbol": self.symbol}).encode()
        while not self._over.wait(PAUSE):
            for path, data in (("predict", body), (f"forecast/{self.symbol}", None)):
                try:
                    asked = urllib.request.Request(
                        f"http://127.0.0.1:{self.port}/{path}", data, {"content-type": "application/json"}
                    )
                    with urllib.request.urlopen(asked, timeout=30) as answer:
                        self.answers[f"{path.partition('/')[0]} {answer.status}"] += 1
                except urllib.error.HTTPError as error:
                    self.answers[f"{path.partition('/')[0]} {error.code}"] += 1
                except OSError as error:
                    self.answers[f"{path.partition('/')[0]} {type(error).__name__}"] += 1


class Server:
    """The serving application in a process of its own."""

    def __init__(self, directory: Path) -> None:
        """Serve a store and wait for the first answer."""
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = found.getsockname()[1]
        self._log = (directory / "server.log").open("w")
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "serve_app",
                "run",
                "--checkpoint",
                str(directory / "models"),
                "--port",
                str(self.port),
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        for _ in range(600):
            time.sleep(0.2)
            try:
                self.get("/healthz")
                return
            except OSError:
                if self._process.poll() is not None:
                    break
        raise SystemExit(f"the server did not start:\n{(directory / 'server.log').read_text()[-2000:]}")

    def get(self, path: str) -> Any:
        """The answer to a GET request."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
            return json.load(answer)

    def stop(self) -> None:
        """End it."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait()
        self._log.close()


Prices = dict[str, Series]
"""The prices of each symbol; all have the same dates."""


def write(prices: Prices, rows: int, path: Path, changed: dict[int, float] | None = None) -> None:
    """Write the first rows of every symbol as a file of prices, some of those of the first symbol multiplied."""
    parts = []
    for symbol, series in prices.items():
        values = series.values[:rows].copy()
        for row, factor in (changed or {}).items() if not parts else ():
            values[row] *= factor
        parts.append(pd.DataFrame({"Date": series.dates[:rows], "Symbol": symbol, "Close": values}))
    temporary = path.with_suffix(".new")
    pd.concat(parts).to_csv(temporary, index=False)
    temporary.replace(path)


def replay(prices: Prices, directory: Path, count: int, samples: int, seed: int) -> dict[str, bool]:
    """Replay the last ``count`` sessions."""
    path, models = directory / "prices.csv", directory / "models"
    name, series = next(iter(prices.items()))
    of_symbols = ["--symbol", name]
    if len(prices) > 1:
        name, of_symbols = UNIVERSE, ["--symbols", "all"]
    first = len(series) - count - 1
    negative = any((each.values <= 0).any() for each in prices.values())
    argv = ["--source", str(path), *of_symbols, "--models", str(models), "--space", "small",
            "--num-samples", str(samples), "--no-log-prices" if negative else "--log-prices",
            "--calendar", series.timeline.calendar_name, "--retune-every", str(RETUNE)]  # fmt: skip
    choice = random.Random(seed)
    days = [day for day in range(3, count) if day % 20 > 2]
    kinds = [*KILLS, *OTHERS] * 2
    faults = dict(zip(choice.sample(days, len(kinds)), kinds, strict=True))
    of_renewals = list(RENEWAL_KILLS)
    write(prices, first + 1, path)
    run = updated(argv, _clock(series, first))
    if run.code:
        raise SystemExit(f"the first update failed:\n{run.output}")
    store = Store(models)
    current = store.current(name)
    assert current is not None
    oldest = load_checkpoint(store.checkpoint(name, current.version))
    server = Server(directory)
    window = series.values[first - 400 : first + 1].tolist()
    load = Load(server.port, window, next(iter(prices)))
    load.start()
    plain, renewals, late, surprises = [], [], [], []
    for day in range(1, count + 1):
        row = first + day
        fault = faults.get(day)
        if of_renewals and day > RETUNE and _renewal_due(store, name, series, row):
            fault = of_renewals.pop(0)
        runs = _with_fault(prices, row, fault, path, store, name, argv) if fault else []
        write(prices, row + 1, path)
        run = updated(argv, _clock(series, row))
        if run.code:
            surprises.append(f"session {day} ({fault}): exit code {run.code}: {run.output[-300:]}")
        runs.append(run)
        (renewals if any("a job added" in each.output for each in runs) else plain).append(run)
        if fault or "a job added" in run.output:
            print(f"session {day:3} {fault or '':24} codes {[each.code for each in runs]} CPU {run.cpu:5.1f} s, wall "
                  f"{run.wall:5.1f} s: {run.output.strip().splitlines()[-1][:90]}", flush=True)  # fmt: skip
        following = series.timeline.next_dates(series.dates[: row + 1][-5:], 1)
        for symbol in prices:
            published = json.dumps(server.get(f"/forecast/{symbol}"))
            if following is None or series.timeline.text(following)[0] not in published:
                late.append((day, symbol))
    load.stop()
    print(f"answers: {dict(load.answers)}")
    failed = sum(number for kind, number in load.answers.items() if not kind.endswith(" 200"))
    lost = _missing(Ledger(models / "ledger.db"), prices, first, count)
    server.stop()
    cpu = np.array([run.cpu for run in plain])
    print(
        f"{len(plain)} sessions without a renewal: CPU {np.median(cpu):.2f} s (median), {cpu.max():.2f} s (most)"
    )
    walls = [run.wall for run in renewals]
    print(f"{len(renewals)} renewals: wall {np.median(walls):.1f} s (median)")
    for line in surprises:
        print(line)
    _living(prices, store, name, oldest, first)
    return {
        "no failed request": failed == 0,
        "no ledger row lost or doubled": not lost,
        "a forecast before every next session": not late,
        "every update after a fault completed": not surprises,
        f"at most {CPU_BAR} s of CPU without a renewal": bool(np.quantile(cpu, 0.95) <= CPU_BAR),
    }


def _renewal_due(store: Store, name: str, series: Series, row: int) -> bool:
    last = store.versions(name)[-1].trained_until
    return int((series.dates[: row + 1] > np.datetime64(last)).sum()) >= RETUNE


def _with_fault(
    prices: Prices, row: int, fault: str, path: Path, store: Store, name: str, argv: list[str]
) -> list[Run]:
    """What a session with a fault does before all is well again."""
    series = next(iter(prices.values()))
    now = _clock(series, row)
    if fault == "source down":
        path.unlink()
        return [updated(argv, now)]
    if fault == "partial bar":
        write(prices, row + 1, path, {row: 1.1})
        return [updated(argv, now - dt.timedelta(hours=12))]
    if fault == "corrected price":
        write(prices, row + 1, path, {row: 1.03})
        return [updated(argv, now)]
    if fault == "damaged model":
        current = store.directory(name) / CURRENT / PICK_FILE
        current.chmod(0o644)
        current.write_bytes(current.read_bytes()[:1000])
        write(prices, row + 1, path)
        return [updated(argv, now)]
    if fault == "clock a day ahead":
        write(prices, row + 1, path)
        return [updated(argv, now + dt.timedelta(days=1))]
    write(prices, row + 1, path)
    full = partial(full_disk, store.ledger.path)
    sabotage = full if fault == "full disk" else {**KILLS, **RENEWAL_KILLS}[fault]
    return [updated(argv, now, sabotage)]


def _clock(series: Series, row: int) -> dt.datetime:
    """A time at which the bar of a row is complete."""
    (closes,) = series.timeline.closes(series.dates[row : row + 1])
    end = closes or f"{series.dates[row] + 1}T00:00:00+00:00"
    return dt.datetime.fromisoformat(end).astimezone(dt.UTC) + dt.timedelta(hours=1)


def _missing(ledger: Ledger, prices: Prices, first: int, count: int) -> list[str]:
    """The sessions whose forecasts are not all there once, or not all scored; superseded forecasts do not count."""
    dates = next(iter(prices.values())).dates
    with sqlite3.connect(ledger.path) as connection:
        issued = connection.execute(
            "SELECT symbol, target, horizon, COUNT(*), SUM(revision > 0) FROM forecasts f WHERE revision = "
            "(SELECT MAX(revision) FROM forecasts o WHERE (o.name, o.symbol, o.target, o.horizon, o.model) = "
            "(f.name, f.symbol, f.target, f.horizon, f.model)) GROUP BY symbol, target, horizon"
        ).fetchall()
        unscored = connection.execute(
            "SELECT COUNT(*) FROM forecasts f WHERE target <= ? AND NOT EXISTS "
            "(SELECT 1 FROM scores s WHERE s.forecast_id = f.id)",
            (str(dates[first + count]),),
        ).fetchone()[0]
    found = {(symbol, target, horizon): number for symbol, target, horizon, number, _ in issued}
    wrong = []
    for symbol, day, horizon in itertools.product(prices, range(count), HORIZONS):
        if first + day + horizon < len(dates):
            target = str(dates[first + day + horizon])
            if found.get((symbol, target, horizon)) != MODELS_OF_A_SESSION:
                wrong.append(f"{symbol} {target} at {horizon} steps: {found.get((symbol, target, horizon))}")
    print(f"ledger: {sum(row[3] for row in issued)} forecasts, {sum(row[4] for row in issued)} of them made again from "
          f"corrected prices; not there once: {wrong[:5]}; past targets without a score: {unscored}")  # fmt: skip
    return [*wrong, *(["unscored"] if unscored else [])]


def _living(prices: Prices, store: Store, name: str, model: Checkpoint, first: int) -> None:
    """Print the living model's CRPS over the replay beside that of the first day's model, both relative to its mean."""
    dates = next(iter(prices.values())).dates
    theirs_by_date = session_losses(model, prices, str(dates[first]))
    ratios = []
    for symbol in prices:
        rows = {row["target"]: row["crps"] for row in store.ledger.settled(name, symbol, SESSIONS)}
        both = sorted(date for date in rows.keys() & theirs_by_date.keys() if symbol in theirs_by_date[date])
        losses = np.array([(rows[date], theirs_by_date[date][symbol]) for date in both])
        ratios.append(losses / losses[:, 1].mean())
    living, still = np.mean(ratios, axis=0).T
    statistic, _ = diebold_mariano(living, still)
    print(f"living model: CRPS {living.mean():.4f} of the first day's, mean of {len(prices)} symbols on {len(living)} "
          f"sessions (t {statistic:.2f})")  # fmt: skip


def busy() -> float:
    """Seconds that the machine's processors have worked: Ray's processes are no children of those that start them."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system)


def fresh(series: Series, directory: Path, count: int, samples: int, every: int) -> dict[str, bool]:
    """Compare renewals with whole jobs of 64 samples at the same sessions, by work and by CRPS until the next one.

    The work is the processor time of the whole machine, which must be quiet otherwise.
    """
    path, models = directory / "prices.csv", directory / "models"
    first = len(series) - count - 1
    argv = ["--source", str(path), "--symbol", series.symbol, "--models", str(models), "--num-samples", str(samples),
            "--calendar", series.timeline.calendar_name, "--retune-every", str(every)]  # fmt: skip
    write({series.symbol: series}, first + 1, path)
    run = updated(argv, _clock(series, first))
    print(f"first job of {samples} samples: {run.wall:.0f} s, code {run.code}", flush=True)
    ratios, shares = [], []
    print(
        "| session | renewal: wall s, CPU s | fresh job: wall s, CPU s | CRPS living / fresh until the next |\n"
        "|---|---|---|---|"
    )
    for day in range(every, count + 1 - every, every):
        row = first + day
        write({series.symbol: series}, row + 1, path)
        before = busy()
        renewal = updated(argv, _clock(series, row))
        started, middle = time.perf_counter(), busy()
        output = directory / f"fresh {day}"
        rows = pd.Timestamp(series.dates[row]).date() + dt.timedelta(days=1)
        subprocess.run(
            [sys.executable, "-m", "tune_jobs.pareto", "--source", str(path), "--symbol", series.symbol, "--end",
             str(rows), "--output-dir", str(output), "--num-samples", "64", "--no-report", "--quiet"],
            check=True,
        )  # fmt: skip
        wall, work = time.perf_counter() - started, (middle - before, busy() - middle)
        store = Store(models)
        current = store.current(series.symbol)
        if current is None:
            raise SystemExit(f"no model: {renewal.output}")
        living = load_checkpoint(store.checkpoint(series.symbol, current.version))
        other = load_checkpoint(output / PICK_FILE)
        until = {series.symbol: series.part(slice(0, row + every + 1))}
        after = str(series.dates[row])
        means = [
            np.mean([each[series.symbol] for each in session_losses(model, until, after).values()])
            for model in (living, other)
        ]
        shares.append(work[0] / work[1])
        ratios.append(float(means[0] / means[1]))
        print(
            f"| {day} | {renewal.wall:.1f}, {work[0]:.1f} | {wall:.1f}, {work[1]:.1f} | {ratios[-1]:.4f} |",
            flush=True,
        )
    print(f"mean ratio of CRPS {np.mean(ratios):.4f}, median share of the work {np.median(shares):.2f}")
    return {
        f"a renewal takes at most {SHARE_BAR} of a fresh job's work": bool(np.median(shares) <= SHARE_BAR),
        f"its CRPS is at most {CRPS_BAR} of the fresh job's": bool(np.mean(ratios) <= CRPS_BAR),
    }


def big_ledger(directory: Path, rows: int) -> dict[str, bool]:
    """Measure a session's scoring, and what a server reads, of a ledger of a million forecasts."""
    from forecast.live.issue import Issued
    from forecast.live.record import Record
    from forecast.scores.distribution import PROBABILITIES

    symbols = [f"S{number:03}" for number in range(382)]
    days = [str(day) for day in np.arange("2020-01-01", "2024-01-01", dtype="datetime64[D]")]
    generator = np.random.default_rng(0)
    prices = 100 * np.exp(np.cumsum(0.01 * generator.normal(size=(len(days), len(symbols))), axis=0))
    spread = np.log(PROBABILITIES / (1 - PROBABILITIES))
    ledger = Ledger(directory / "ledger.db")

    def issued(day: int, symbol: int, horizon: int, model: str) -> Issued:
        price = prices[day, symbol]
        return Issued(
            symbol=symbols[symbol],
            origin=days[day],
            last_price=price,
            target=days[day + horizon],
            horizon=horizon,
            model=model,
            prediction=price,
            quantiles=price * (1 + 0.006 * np.sqrt(horizon) * spread),
        )

    def settle(day: int) -> float:
        started = time.perf_counter()
        since = max(0, day - 60)
        ledger.settle(
            "all", {s: (days[since : day + 1], prices[since : day + 1, i]) for i, s in enumerate(symbols)}
        )
        return time.perf_counter() - started

    day, scoring = 0, 0.0
    issuing = 0.0
    while day * len(symbols) * 12 < rows:
        scoring = settle(day)
        started = time.perf_counter()
        every = [(i, h) for i in range(len(symbols)) for h in HORIZONS]
        ledger.issue(
            "all",
            {
                "baseline": [
                    issued(day, i, h, m) for i, h in every for m in ("persistence", "EWMA", "GARCH")
                ],
                "champion": [issued(day, i, h, "champion") for i, h in every],
            },
        )
        issuing = time.perf_counter() - started
        day += 1
    scoring = settle(day)
    record = Record(ledger.path)
    times = []
    for _ in range(20):
        started = time.perf_counter()
        record.live()
        times.append(time.perf_counter() - started)
    size = ledger.path.stat().st_size / 1e6
    reading = float(np.median(times))
    print(f"{day * len(symbols) * 12} forecasts, {size:.0f} MB: a session's scoring {scoring:.2f} s, its issuing "
          f"{issuing:.2f} s, the live record {1000 * reading:.0f} ms")  # fmt: skip
    return {
        f"a session's scoring takes at most {SCORING_BAR} s": scoring <= SCORING_BAR,
        f"the live record takes at most {READING_BAR} s": reading <= READING_BAR,
    }


def universe(file: Path, directory: Path) -> dict[str, bool]:
    """Measure one session of every symbol of a file, one of which is broken."""
    frame = pd.read_parquet(file)
    dates, broken = np.sort(frame["Date"].unique()), frame["Symbol"].iloc[0]
    path, models = directory / "prices.parquet", directory / "models"
    argv = ["--source", str(path), "--symbols", "all", "--models", str(models), "--space", "small",
            "--num-samples", "2", "--windows-per-epoch", "20000"]  # fmt: skip

    def until(day: np.datetime64) -> None:
        part = frame[frame["Date"] <= day].copy()
        part.loc[(part["Symbol"] == broken) & (part["Date"] > dates[100]), "Close"] = np.nan
        part.to_parquet(path)

    def clock(day: np.datetime64) -> dt.datetime:
        return pd.Timestamp(day).to_pydatetime().replace(hour=23, tzinfo=dt.UTC)

    until(dates[-4])
    first = updated(argv, clock(dates[-4]))
    print(f"first update: {first.wall:.0f} s, code {first.code}\n{first.output[-600:]}", flush=True)
    walls = []
    for day in dates[-3:]:
        until(day)
        run = updated(argv, clock(day))
        walls.append(run.wall)
        print(
            f"session {day}: wall {run.wall:.1f} s, CPU {run.cpu:.1f} s, code {run.code}\n{run.output[-400:]}",
            flush=True,
        )
    with sqlite3.connect(models / "ledger.db") as connection:
        (symbols,) = connection.execute("SELECT COUNT(DISTINCT symbol) FROM published").fetchone()
    print(f"{symbols} symbols published")
    return {f"a session takes at most {UNIVERSE_BAR} s": max(walls) <= UNIVERSE_BAR}


def rollback(series: Series, directory: Path) -> dict[str, bool]:
    """Roll a version back while a server answers requests."""
    path, models = directory / "prices.csv", directory / "models"
    argv = ["--source", str(path), "--symbol", series.symbol, "--models", str(models), "--space", "small",
            "--num-samples", "2", "--calendar", series.timeline.calendar_name]  # fmt: skip
    for rows in (len(series) - 40, len(series) - 15):
        write({series.symbol: series}, rows, path)
        run = updated(argv, _clock(series, rows - 1))
        print(run.output)
    store = Store(models)
    newest = store.versions(series.symbol)[-1]
    current = store.current(series.symbol)
    if current is None or current.version != newest.version:
        store.promote(series.symbol, newest.version, details={"why": "for the benchmark"})
    server = Server(directory)
    load = Load(server.port, series.values[-400:].tolist(), series.symbol)
    load.start()
    time.sleep(2)
    started = time.perf_counter()
    command = ["tune_jobs.models", "rollback", series.symbol, "--models", str(models)]
    subprocess.run([sys.executable, "-m", *command], check=True)
    print(f"the command ended after {time.perf_counter() - started:.1f} s", flush=True)
    back = store.current(series.symbol)
    served, seconds = "", 0.0
    while back is not None and served != back.sha256 and seconds < 10 * ROLLBACK_BAR:
        served = server.get(f"/model?symbol={series.symbol}")["sha256"]
        seconds = time.perf_counter() - started
    time.sleep(2)
    load.stop()
    server.stop()
    recorded = store.ledger.events(series.symbol, "rolled_back", limit=1)
    print(f"{dict(load.answers)}; {seconds:.1f} s")
    return {
        f"rolled back within {ROLLBACK_BAR} s": seconds <= ROLLBACK_BAR,
        "the server answers with the version before": back is not None and served == back.sha256,
        "no failed request": all(kind.endswith(" 200") for kind in load.answers),
        "the ledger says it": bool(recorded),
    }


def prices_of(file: Path | None, symbols: list[str], rows: int) -> Prices:
    """The last rows of some symbols of a file, at dates that all have; without a file, the snapshot's."""
    if file is None:
        return {"BTC-USD": load_series("BTC-USD", source="snapshot", notify=None)}
    found = {symbol: load_series(symbol, source=str(file), notify=None) for symbol in symbols}
    dates = functools.reduce(np.intersect1d, [series.dates for series in found.values()])[-rows:]
    return {
        symbol: series.part(slice(*np.searchsorted(series.dates, [dates[0], dates[-1] + 1])))
        for symbol, series in found.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("sessions", "fresh"):
        command = commands.add_parser(name)
        command.add_argument("--file", type=Path, help="prices of many symbols (default: the snapshot)")
        command.add_argument("--symbols", nargs="*", default=[], help="symbols of the file")
        command.add_argument("--rows", type=int, default=2500, help="rows of the file to use, the last ones")
        command.add_argument("--count", type=int, default=SESSIONS, help="number of sessions")
        command.add_argument("--samples", type=int, default=16, help="samples of the first job")
        command.add_argument("--seed", type=int, default=0, help="seed of the faults")
        command.add_argument(
            "--every", type=int, default=60, help="sessions between renewals that are compared"
        )
    commands.add_parser("rollback")
    commands.add_parser("ledger").add_argument("--rows", type=int, default=1_000_000)
    commands.add_parser("universe").add_argument("file", type=Path, help="prices of many symbols")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        if arguments.command == "ledger":
            return report(big_ledger(directory, arguments.rows))
        if arguments.command == "universe":
            return report(universe(arguments.file, directory))
        if arguments.command == "rollback":
            return report(rollback(load_series("BTC-USD", source="snapshot", notify=None), directory))
        prices = prices_of(arguments.file, arguments.symbols, arguments.rows)
        if arguments.command == "fresh":
            (series,) = prices.values()
            return report(fresh(series, directory, arguments.count, arguments.samples, arguments.every))
        return report(replay(prices, directory, arguments.count, arguments.samples, arguments.seed))


if __name__ == "__main__":
    sys.exit(main())
