"""The cost of serving: ``python -m benchmarks.serving``, or one part of it by name.

``compare``: the design that this project replaces, and this one with one and two replicas, with torch alone, and with
Ray Serve's own proxy; all with the same checkpoint, in alternating rounds under the same load generator (wrk).
``members``: the default model and a single one of its members.
``agreement``: ONNX Runtime against torch, on random windows over the search space's shapes.
``exported``: a checkpoint, the same model exported, and that in an environment without torch (``--slim``, such as
build/image-slim/venv, which ``make image-steps`` leaves).
``graphs``: exported graphs, from prices to quantiles, against their checkpoints in torch.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import httpx2 as httpx
import numpy as np
import torch

from benchmarks.served import AS_JSON, Load, Server, make_checkpoint, original_server, serve_run, wrk
from forecast import Predictor, TrainConfig, load_series, save_checkpoint, train
from forecast.inference.agreement import differences
from forecast.inference.engines import TOLERANCE, OnnxEngine, TorchEngine, disagreement, random_inputs
from forecast.model.export import exported_model
from forecast.scores.distribution import MAIN_LEVEL
from tune_jobs.space import SPACES

CONNECTIONS = (1, 16, 64)
BATCH = 64
"""Windows per batch request."""
PLAIN_PROXY = {
    "RAY_SERVE_ENABLE_HA_PROXY": "0",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "0",
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
}
ALL_PARTS = ("compare", "members", "agreement", "exported", "graphs")
MEMBERS_BAR = 1.5
"""Largest p50 of the default model over that of a single member."""
GRAPH_BAR = 1e-6
"""Largest difference of an exported graph from torch, relative to the price."""

Start = Callable[[Path], AbstractContextManager[Server]]


@dataclass(frozen=True)
class Row:
    """One server of the comparison."""

    name: str
    start: Start
    takes_batches: bool = True


ROWS = (
    Row("FastAPI + uvicorn, torch (original design)", original_server, takes_batches=False),
    Row("the same with two processes", lambda path: original_server(path, 2), takes_batches=False),
    Row("this application, one replica", serve_run),
    Row("this application, two replicas", lambda path: serve_run(path, replicas=2)),
    Row("one replica, torch instead of ONNX Runtime", lambda path: serve_run(path, "engine=torch")),
    Row("one replica, Serve's own proxy and flags", lambda path: serve_run(path, environment=PLAIN_PROXY)),
)


def compare(rounds: int, seconds: float) -> None:
    """Measure every row in every round, in an order that rotates by one each round."""
    series = load_series("BTC-USD", source="snapshot").values
    seen: dict[tuple[str, str], list[Load]] = defaultdict(list)
    memory: dict[str, float] = defaultdict(float)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "model.pt"
        make_checkpoint(path)
        predictor = Predictor(path, "cpu")
        window = [round(float(value), 2) for value in series[600 : 600 + predictor.rows_used]]
        one = json.dumps({"values": window})
        many = json.dumps({"windows": [window] * BATCH})
        expected = predictor.predict_next(window)
        for turn in range(rounds):
            for row in (*ROWS[turn % len(ROWS) :], *ROWS[: turn % len(ROWS)]):
                with row.start(path) as server:
                    answer = httpx.post(f"{server.url}/predict", content=one, headers=AS_JSON)
                    if not math.isclose(answer.json()["prediction"], expected, rel_tol=1e-5):
                        raise SystemExit(f"error: {row.name} answers {answer.text}, not {expected}")
                    wrk(server.url, "/predict", one, 16, 2)
                    for connections in CONNECTIONS:
                        load = wrk(server.url, "/predict", one, connections, seconds)
                        seen[row.name, str(connections)].append(load)
                    if row.takes_batches:
                        seen[row.name, "batch"].append(wrk(server.url, "/predict/batch", many, 4, seconds))
                    memory[row.name] = max(memory[row.name], server.memory_mb())
                rates = ", ".join(
                    f"{what}: {seen[row.name, what][-1].per_second:.0f}/s"
                    for what in ("1", "16", "64", "batch")
                    if seen[row.name, what]
                )
                print(f"round {turn + 1}, {row.name}: {rates}", flush=True)
    print_comparison(seen, memory)


def print_comparison(seen: dict[tuple[str, str], list[Load]], memory: dict[str, float]) -> None:
    """Print the table: medians over the rounds, failures summed."""

    def median(row: Row, what: str, of: str) -> float:
        return statistics.median(getattr(load, of) for load in seen[row.name, what])

    print(
        "\n| server | req/s at 1 / 16 / 64 | p50 ms | p99 ms | failures | windows/s in batches of "
        f"{BATCH} | MB |\n|---|---|---|---|---|---|---|"
    )
    for row in ROWS:
        cells = [
            " / ".join(f"{median(row, str(c), of):.{digits}f}" for c in CONNECTIONS)
            for of, digits in (("per_second", 0), ("p50_ms", 2), ("p99_ms", 1))
        ]
        failures = sum(
            load.failures for (name, _), loads in seen.items() if name == row.name for load in loads
        )
        batches = f"{median(row, 'batch', 'per_second') * BATCH:,.0f}" if row.takes_batches else ""
        print(f"| {row.name} | {' | '.join(cells)} | {failures} | {batches} | {memory[row.name]:.0f} |")
    base, base_of_two, first, second, _, plain = (median(row, "16", "per_second") for row in ROWS)
    print(
        f"\nAt 16 connections: one replica {first / base:.2f} x the original design, two {second / base:.2f} x, and "
        f"{second / base_of_two:.2f} x its two processes; one replica {first / plain:.1f} x Serve's own proxy. p50 at "
        f"one connection: {median(ROWS[2], '1', 'p50_ms'):.2f} ms, the original design's "
        f"{median(ROWS[0], '1', 'p50_ms'):.2f} ms.",
        flush=True,
    )


def members(rounds: int, seconds: float) -> None:
    """Print the p50 of the default model and of a single member at one connection, medians of alternating rounds.

    Raises:
        SystemExit: when the ratio is larger than it may be.
    """
    series = load_series("BTC-USD", source="snapshot")
    default = TrainConfig(source="snapshot", max_epochs=1)
    seen: dict[int, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as name:
        for count in (1, default.members):
            config = default.model_copy(update={"members": count})
            save_checkpoint(train(series, config).checkpoint, Path(name) / f"{count}.pt")
        window = Predictor(Path(name) / "1.pt").checkpoint.latest_window
        body = json.dumps({"values": window, "levels": [MAIN_LEVEL]})
        for _ in range(rounds):
            for count in (1, default.members):
                with serve_run(Path(name) / f"{count}.pt") as server:
                    wrk(server.url, "/predict", body, 1, 2)
                    seen[count].append(wrk(server.url, "/predict", body, 1, seconds).p50_ms)
    one, all_ = (statistics.median(seen[count]) for count in (1, default.members))
    print(
        f"p50 with an interval: one member {one:.2f} ms, {default.members} members {all_:.2f} ms: {all_ / one:.2f} x"
    )
    if all_ > MEMBERS_BAR * one:
        raise SystemExit(1)


def agreement(windows: int) -> None:
    """Print the largest difference between ONNX Runtime and torch over all shapes of the search space.

    Raises:
        SystemExit: when it is larger than the application accepts.
    """
    space = SPACES["full"]
    (fewest, most), (shortest, longest, step) = space.num_layers, space.sequence_length
    shapes = list(
        itertools.product(space.hidden_size, range(fewest, most + 1), range(shortest, longest + 1, step))
    )
    each = -(-windows // len(shapes))
    worst: dict[tuple[int, ...], float] = {}
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        for seed, (hidden, layers, length) in enumerate(shapes):
            target = "residual" if seed % 2 else "level"
            checkpoint = make_checkpoint(
                Path(name) / "m.pt", hidden, layers, length, seed=seed, target=target
            )
            inputs = random_inputs(checkpoint, each, seed)
            by_torch = TorchEngine(checkpoint, torch.device("cpu"))
            worst[hidden, layers, length] = disagreement(OnnxEngine.of(checkpoint), by_torch, inputs)
    largest = max(worst, key=lambda shape: worst[shape])
    print(
        f"{each * len(shapes):,} random windows over {len(shapes)} shapes: ONNX Runtime differs from torch by at most "
        f"{worst[largest]:.1e} (hidden, layers, window {largest}), by {np.median(list(worst.values())):.1e} in the "
        f"median shape; {TOLERANCE:.0e} is accepted",
        flush=True,
    )
    if worst[largest] > TOLERANCE:
        raise SystemExit(1)


def exported(rounds: int, seconds: float, slim: Path) -> None:
    """Print start, memory and speed of a replica of a checkpoint, and of the exported model, in alternating rounds.

    Raises:
        SystemExit: when an answer is wrong.
    """
    series = load_series("BTC-USD", source="snapshot")
    seen: dict[str, list[tuple[float, ...]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as name:
        checkpoint, model = Path(name) / "model.pt", Path(name) / "model.onnx"
        trained = train(series, TrainConfig(source="snapshot", max_epochs=1)).checkpoint
        save_checkpoint(trained, checkpoint)
        model.write_bytes(exported_model(trained).SerializeToString())
        predictor = Predictor(checkpoint, "cpu")
        window = [round(float(value), 2) for value in series.values[600 : 600 + predictor.rows_used]]
        body, expected = json.dumps({"values": window}), predictor.predict_next(window)
        rows: dict[str, tuple[Path, Path | None]] = {
            "checkpoint": (checkpoint, None),
            "exported": (model, None),
        }
        if (slim / "bin" / "serve").exists():
            rows["exported, without torch"] = (model, slim / "bin")
        for number in range(rounds):
            for row, (path, programs) in rows.items():
                # Elsewhere than this checkout, whose modules would hide those of the other environment.
                started = time.perf_counter()
                with contextlib.chdir(name), serve_run(path, programs=programs) as server:
                    answer = httpx.post(f"{server.url}/predict", content=body, headers=AS_JSON).json()
                    start, every, replica = time.perf_counter() - started, *server.cpu_seconds()
                    if not math.isclose(answer["prediction"], expected, rel_tol=1e-6):
                        raise SystemExit(f"error: {row} answers {answer}, not {expected}")
                    wrk(server.url, "/predict", body, 16, 2)
                    _, before = server.cpu_seconds()
                    load = wrk(server.url, "/predict", body, 16, seconds)
                    cost = 1000 * (server.cpu_seconds()[1] - before) / load.requests
                    memory = server.memory_mb(), server.proportional_memory_mb()
                    seen[row].append((start, every, replica, *memory, load.per_second, cost, load.failures))
                print(f"round {number + 1}, {row}: {seen[row][-1]}", flush=True)
    print("medians; in brackets, those of the ratios to the checkpoint's of the same round")
    print(
        "| replica | start s | CPU s of all | CPU s of the replica | RSS MB | PSS MB | req/s at 16 | CPU ms each "
        "| failures |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for row, found in seen.items():
        cells = []
        for place, digits in enumerate((1, 1, 1, 0, 0, 0, 2)):
            own = statistics.median(one[place] for one in found)
            pairs = zip(found, seen["checkpoint"], strict=True)
            ratio = statistics.median(one[place] / base[place] for one, base in pairs)
            cells.append(f"{own:.{digits}f} ({ratio:.2f})")
        print(f"| {row} | {' | '.join(cells)} | {sum(one[-1] for one in found):.0f} |", flush=True)
    if slim.exists():
        size = sum(file.lstat().st_size for file in slim.rglob("*")) / 1e6
        print(f"{slim}: {size:.0f} MB")


def graphs(windows: int) -> None:
    """Print the largest difference of exported graphs from their checkpoints in torch, as ``differences`` measures it.

    Raises:
        SystemExit: when one is larger than ``GRAPH_BAR``.
    """
    from tests.untrained import BARS, bars, chosen, config_of, panel_of, untrained

    snapshot, largest = load_series("BTC-USD", source="snapshot"), []
    torch.set_num_threads(1)
    several = [{"sequence_length": 20}, {"hidden_size": 16, "num_layers": 2}]
    kinds = [
        (likelihood, target, log, volatility, market)
        for likelihood in ("student_t", "mse")
        for target in ("residual", "level")
        for log in (True, False)
        for volatility in ("ewma", "gjr", "range", "window")
        for market in (None, *([False, True] if volatility == "gjr" and target == "residual" else []))
    ]
    each = -(-windows // len(kinds))
    for seed, (likelihood, target, log, volatility, market) in enumerate(kinds):
        columns = BARS if volatility == "range" else ()
        options = {"likelihood": likelihood, "target": target, "log_prices": log, "volatility": volatility}
        config = config_of(
            sequence_length=60, hidden_size=32, input_columns=columns, market=bool(market), **options
        )
        data = chosen(bars(snapshot), ("Close", *columns)) if market is None else panel_of(snapshot, 8)
        checkpoint = untrained(data, config, seed, several)
        found = differences(checkpoint, exported_model(checkpoint).SerializeToString(), each, seed)
        largest.append(found.max())
        kind = "one symbol" if market is None else f"8 symbols, market {market}"
        print(
            f"{likelihood}, {target}, log {log}, {volatility}, {kind}: {found.max():.1e}, median {np.median(found):.1e}"
        )
    print(
        f"{each * len(kinds):,} random windows, {len(kinds)} kinds of models of three members: exported graphs differ "
        f"from torch by at most {max(largest):.1e} of a price; the bar is {GRAPH_BAR:.0e}",
        flush=True,
    )
    if max(largest) > GRAPH_BAR:
        raise SystemExit(1)


def main() -> None:
    """Run the parts that the command line names, or all of them."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parts = parser.add_subparsers(metavar="part")
    part = parts.add_parser("compare", help="servers side by side")
    part.add_argument("--rounds", type=int, default=3)
    part.add_argument("--seconds", type=float, default=5.0, help="duration of each load")
    part.set_defaults(run=lambda o: compare(o.rounds, o.seconds))
    part = parts.add_parser("members", help="the default model and a single member")
    part.add_argument("--rounds", type=int, default=3)
    part.add_argument("--seconds", type=float, default=5.0, help="duration of each load")
    part.set_defaults(run=lambda o: members(o.rounds, o.seconds))
    part = parts.add_parser("agreement", help="ONNX Runtime against torch")
    part.add_argument("--windows", type=int, default=10_000)
    part.set_defaults(run=lambda o: agreement(o.windows))
    part = parts.add_parser("exported", help="a checkpoint and the same model exported")
    part.add_argument("--rounds", type=int, default=3)
    part.add_argument("--seconds", type=float, default=5.0, help="duration of each load")
    part.add_argument(
        "--slim", type=Path, default=Path("build/image-slim/venv"), help="environment without torch"
    )
    part.set_defaults(run=lambda o: exported(o.rounds, o.seconds, o.slim.absolute()))
    part = parts.add_parser("graphs", help="exported graphs against torch")
    part.add_argument("--windows", type=int, default=10_000)
    part.set_defaults(run=lambda o: graphs(o.windows))
    given = parser.parse_args()

    libraries = ", ".join(
        f"{name} {version(name)}" for name in ("torch", "onnxruntime", "ray", "fastapi", "uvicorn")
    )
    print(f"Python {platform.python_version()}, {libraries}", flush=True)
    if "run" in given:
        given.run(given)
        return
    for words in ALL_PARTS:
        options = parser.parse_args([words])
        options.run(options)


if __name__ == "__main__":
    main()
