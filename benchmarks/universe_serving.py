"""Serving a whole universe of symbols: ``python -m benchmarks.universe_serving``, or one part of it by name.

``directory``: a server of 1,000 checkpoints: how soon it answers, how much memory models take, and what one damaged
file spoils. ``symbols``: one request for all symbols of a model of 382, and ``/predict`` for one of them beside a model
of one symbol. Each measure is a line with its bar; the exit code is 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import httpx2 as httpx

from benchmarks.served import serve_app_run, serve_run, wrk
from forecast import TrainConfig, load_series, save_checkpoint, train
from forecast.model.checkpoint import Checkpoint, SymbolPart

FILES, ASKED = 1000, 50
SYMBOLS = 382
"""About as many as the stocks of an index."""
START_BAR_S, MEMORY_BAR_MB, TOGETHER_BAR_MS, ALONE_BAR = 12.0, 30.0, 100.0, 1.05
REPEATS = 40
"""Number of requests for all symbols."""
AS_JSON = {"content-type": "application/json"}


def small_model() -> Checkpoint:
    """The default model, with one layer of 32 units: its speed and its memory do not depend on training."""
    config = TrainConfig(source="snapshot", hidden_size=32, num_layers=1, max_epochs=1)
    return train(load_series("BTC-USD", source="snapshot"), config).checkpoint


def of_symbol(checkpoint: Checkpoint, symbol: str) -> Checkpoint:
    """The same model, as that of another symbol."""
    config = checkpoint.config.model_copy(update={"symbol": symbol})
    return checkpoint.model_copy(update={"config": config})


def pooled(checkpoint: Checkpoint, symbols: list[str]) -> Checkpoint:
    """The same model, as that of many symbols."""
    part = SymbolPart(**{name: getattr(checkpoint, name) for name in SymbolPart.model_fields})
    return checkpoint.model_copy(update={"symbols": dict.fromkeys(symbols, part)})


def report(what: str, figure: float, bar: float, unit: str) -> bool:
    """Print a measure beside its bar, and tell whether it is met."""
    met = figure <= bar
    print(
        f"{what}: {figure:.4g}{unit}, at most {bar:.4g}{unit} allowed: {'met' if met else 'MISSED'}",
        flush=True,
    )
    return met


def directory() -> bool:
    """Serve 1,000 checkpoints, one of them truncated; tell whether all bars are met."""
    model = small_model()
    symbols = [f"SYM{number:04d}" for number in range(FILES)]
    damaged = symbols[FILES // 2]
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        for symbol in symbols:
            save_checkpoint(of_symbol(model, symbol), place / f"{symbol}.pt")
        whole = (place / f"{damaged}.pt").read_bytes()
        (place / f"{damaged}.pt").write_bytes(whole[: len(whole) // 2])

        started = time.perf_counter()
        with serve_app_run(place) as server, httpx.Client(base_url=server.url, timeout=60) as client:

            def ask(symbol: str) -> int:
                asked = {"symbol": symbol, "values": model.latest_window}
                return client.post("/predict", json=asked).status_code

            statuses = Counter([ask(symbols[0])])
            met = report(
                f"{FILES} checkpoints, first answer after", time.perf_counter() - started, START_BAR_S, " s"
            )
            before = server.memory_mb()
            statuses.update(map(ask, symbols[1:ASKED]))
            grown = server.memory_mb() - before
            met &= report(f"memory after {ASKED} symbols, above that after one", grown, MEMORY_BAR_MB, " MB")
            statuses.update(map(ask, symbols[ASKED:]))
            print(f"memory after all symbols, above that after one: {server.memory_mb() - before:.4g} MB")
            refused = FILES - statuses[200]
            met &= report(f"of {FILES} symbols, one of them damaged, not answered", refused, 1, "")
            return report("of these, not refused with 503", refused - statuses[503], 0, "") and met


def symbols(seconds: float) -> bool:
    """Ask a model of many symbols for all of them at once, and for one; tell whether all bars are met."""
    model = small_model()
    names = [f"SYM{number:03d}" for number in range(SYMBOLS)]
    window = model.latest_window
    body = json.dumps({"series": [{"symbol": symbol, "values": window} for symbol in names]})
    with tempfile.TemporaryDirectory() as name:
        one, many = Path(name) / "one.pt", Path(name) / "many.pt"
        save_checkpoint(of_symbol(model, names[-1]), one)
        save_checkpoint(pooled(model, names), many)
        with serve_run(many) as server, httpx.Client(base_url=server.url, timeout=60) as client:
            taken = [_ms(client, body) for _ in range(REPEATS)]
        met = report(
            f"one request for {SYMBOLS} symbols, p50", statistics.median(taken), TOGETHER_BAR_MS, " ms"
        )
        alone: dict[Path, list[float]] = defaultdict(list)
        asked = json.dumps({"symbol": names[-1], "values": window})
        for _ in range(3):
            for path in (one, many):
                with serve_run(path) as server:
                    wrk(server.url, "/predict", asked, 1, 2)
                    alone[path].append(wrk(server.url, "/predict", asked, 1, seconds).p50_ms)
        # The least of the rounds: other work on the machine only adds to it.
        single, shared = (min(alone[path]) for path in (one, many))
        print(f"/predict, p50: model of one symbol {single:.2f} ms, of {SYMBOLS} symbols {shared:.2f} ms")
        return report("/predict of a model of many symbols", shared / single, ALONE_BAR, " x") and met


def _ms(client: Any, body: str) -> float:
    started = time.perf_counter()
    answer = client.post("/predict/batch", content=body, headers=AS_JSON)
    taken = 1000 * (time.perf_counter() - started)
    if answer.status_code != 200:
        raise SystemExit(f"error: {answer.text}")
    return taken


def main() -> None:
    """Run the part that the command line names, or both."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.universe_serving",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("part", nargs="?", choices=("directory", "symbols"), help="unless given, both")
    parser.add_argument("--seconds", type=float, default=5.0, help="duration of each load")
    given = parser.parse_args()
    met = True
    if given.part != "symbols":
        met &= directory()
    if given.part != "directory":
        met &= symbols(given.seconds)
    if not met:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
