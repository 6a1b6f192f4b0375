"""Expose a server to faults, and check that it keeps serving: ``python -m benchmarks.resilience [part]``.

``swaps``: checkpoints change under load, one of them damaged. ``kills``: SIGKILL to a replica and to HAProxy under
load. ``hostile``: bodies that no client should send, and schemathesis over the OpenAPI document. ``memory``: the
replica's memory over many requests. ``overload``: ten times the server's capacity. Each exits with code 1 when a check
fails.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2 as httpx
import psutil

from benchmarks.served import Server, make_checkpoint, serve_run, wrk
from forecast import Predictor

WINDOW = [5000.0 + 10 * row for row in range(251)]
"""As many values as a model uses, inside the range of the snapshot's training rows."""
CONNECTIONS = 16
RECOVERY_S = 30.0
OVERLOAD_CONNECTIONS = 1024
# The length of a window and the symbols depend on the served models: the schema cannot express them.
SCHEMATHESIS = ("--exclude-checks", "positive_data_acceptance")


@dataclass
class Seen:
    """The answers that clients got.

    Attributes:
        statuses: answers by status; ``error`` counts connections that broke or were refused.
        predictions: forecast prices, rounded.
        failed_at: when each failure happened, in seconds since the start.
        seconds: time of each answer, by status.
    """

    started: float = field(default_factory=time.monotonic)
    statuses: Counter[str] = field(default_factory=Counter)
    predictions: Counter[float] = field(default_factory=Counter)
    failed_at: list[float] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=dict)

    async def ask(self, client: httpx.AsyncClient, url: str, body: bytes) -> None:
        """Send one request, and record its outcome."""
        request = client.post(url, content=body, headers={"content-type": "application/json"})
        answer = await self.take_down(request)
        if answer is not None and answer.status_code == 200:
            self.predictions[round(answer.json()["prediction"], 3)] += 1

    async def take_down(self, request: Coroutine[Any, Any, httpx.Response]) -> httpx.Response | None:
        """Record the outcome of one request, and return its answer; None if the connection failed."""
        asked = time.monotonic()
        try:
            answer = await request
            status = str(answer.status_code)
        except httpx.TransportError:
            answer, status = None, "error"
        now = time.monotonic()
        self.statuses[status] += 1
        self.seconds.setdefault(status, []).append(now - asked)
        if status != "200":
            self.failed_at.append(now - self.started)
        return answer

    @property
    def failures(self) -> int:
        return self.statuses.total() - self.statuses["200"]


async def under_load(server: Server, work: Callable[[Seen], Awaitable[None]]) -> Seen:
    """Run ``work`` while sixteen clients each send a request as soon as the last one is answered."""
    seen, stop = Seen(), asyncio.Event()
    body = json.dumps({"values": WINDOW}).encode()

    async def client_asks() -> None:
        async with httpx.AsyncClient(timeout=60) as client:
            while not stop.is_set():
                await seen.ask(client, f"{server.url}/predict", body)

    clients = [asyncio.create_task(client_asks()) for _ in range(CONNECTIONS)]
    try:
        await work(seen)
    finally:
        stop.set()
        await asyncio.gather(*clients)
    return seen


def check(holds: bool, says: str) -> None:
    """Print whether a check holds; exit with code 1 if it does not."""
    print(f"{'ok' if holds else 'FAILED'}: {says}", flush=True)
    if not holds:
        raise SystemExit(1)


async def command(server: Server, *words: str) -> tuple[int, str]:
    """Run a ``serve_app`` command on the server's cluster, and return its exit code and last line."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "serve_app",
        *words,
        "--address",
        server.gcs_address(),
        env={**os.environ, "RAY_AUTH_MODE": "token"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode().strip().splitlines()[-1]


def swaps(given: argparse.Namespace) -> None:
    """Swap between two checkpoints, then try to load a truncated one."""
    with tempfile.TemporaryDirectory() as name:
        files = [Path(name) / "a.pt", Path(name) / "b.pt"]
        for seed, path in enumerate(files):
            make_checkpoint(path, seed=seed)
        expected = {round(Predictor(path, "cpu").predict_next(WINDOW), 3) for path in files}
        live = Path(name) / "live.pt"
        shutil.copy(files[0], live)
        with serve_run(live) as server:

            async def swap(seen: Seen) -> None:
                for turn in range(given.swaps):
                    staged = live.with_suffix(".staged")
                    shutil.copy(files[(turn + 1) % 2], staged)
                    staged.replace(live)
                    code, says = await command(server, "reload")
                    if code:
                        check(False, f"swap {turn + 1} exits with {code}: {says}")

            seen = asyncio.run(under_load(server, swap))
            check(
                seen.failures == 0,
                f"{given.swaps} swaps: {seen.failures} of {seen.statuses.total()} requests failed",
            )
            check(
                set(seen.predictions) == expected,
                f"every answer is from one of the two models: {dict(seen.predictions)}",
            )

            async def damage(seen: Seen) -> None:
                live.write_bytes(files[0].read_bytes()[:3000])
                code, says = await command(server, "reload")
                check(code == 1, f"a truncated checkpoint: exit code {code}, {says}")
                await asyncio.sleep(2)

            seen = asyncio.run(under_load(server, damage))
            check(
                seen.failures == 0 and len(seen.predictions) == 1,
                f"during the refusal: {seen.failures} of {seen.statuses.total()} requests failed, "
                f"{len(seen.predictions)} model answered",
            )
            reason = httpx.get(f"{server.url}/model").json()["refused"]["reason"]
            check("damaged" in reason, f"GET /model says: {reason}")


def kills(given: argparse.Namespace) -> None:
    """Kill one of two replicas, then HAProxy, then the process that started it."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "model.pt"
        make_checkpoint(path)
        with serve_run(path, replicas=2) as server:

            async def kill_replica(seen: Seen) -> None:
                await asyncio.sleep(3)
                before = {worker.pid for worker in server.workers()}
                victim = psutil.Process(min(before))
                killed = time.monotonic()
                victim.kill()
                while len(now := await asyncio.to_thread(server.answering_replicas)) < 2 or now == before:
                    await asyncio.sleep(0.1)
                took = time.monotonic() - killed
                print(f"a new replica answers {took:.1f} s after the kill", flush=True)
                check(took < RECOVERY_S, f"it takes less than {RECOVERY_S:g} s")
                await asyncio.sleep(3)

            seen = asyncio.run(under_load(server, kill_replica))
            last = max(seen.failed_at, default=3.0) - min(seen.failed_at, default=3.0)
            print(f"statuses: {dict(seen.statuses)}; failures within {last:.2f} s", flush=True)
            check(
                seen.failures <= CONNECTIONS,
                f"a killed replica: {seen.failures} of {seen.statuses.total()} requests failed",
            )

            for whom in ("HAProxy", "the process that started HAProxy"):

                async def kill_front(seen: Seen, whom: str = whom) -> None:
                    await asyncio.sleep(2)
                    old = haproxy_of(server)
                    (old if whom == "HAProxy" else old.parent()).kill()
                    killed = time.monotonic()
                    while (took := time.monotonic() - killed) < 2 * RECOVERY_S:
                        await asyncio.sleep(0.1)
                        with contextlib.suppress(httpx.TransportError, LookupError):
                            async with httpx.AsyncClient() as client:
                                answer = await client.get(f"{server.url}/healthz")
                            if answer.status_code == 200 and haproxy_of(server).pid != old.pid:
                                break
                    check(took < RECOVERY_S, f"{whom} killed: another one answers after {took:.1f} s")
                    await asyncio.sleep(3)

                seen = asyncio.run(under_load(server, kill_front))
                print(f"statuses: {dict(seen.statuses)}", flush=True)


def haproxy_of(server: Server) -> psutil.Process:
    """Find the HAProxy in front of a server."""
    for process in psutil.Process(server.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.name() == "haproxy":
                return process
    raise LookupError("no HAProxy under this server")


def hostile_body(rng: random.Random) -> bytes:
    """Make up a body that is nearly valid, or nothing like it."""
    number = [
        "1e999",
        "-1e999",
        "NaN",
        "Infinity",
        "null",
        "true",
        '"1"',
        "[]",
        "{}",
        "0",
        "-1",
        "1e-320",
        "9" * 400,
    ]
    number += ["1.7976931348623157e308", "5e-324", "1e308", "0.1e1", "01", "+1", "1_0", "٣", "\\u0031"]
    values = [f"{rng.uniform(1, 1e5):.2f}" for _ in range(rng.choice([0, 1, 3, 4, 5, 60, 1000]))]
    for _ in range(rng.choice([0, 1, 1, 3])):
        values.insert(rng.randint(0, len(values)), rng.choice(number))
    lists = f"[{', '.join(values)}]"
    field_name = rng.choice(["values", "windows", "Values", "", "values\\u0000", "symbol"])
    extra = rng.choice(
        [
            "",
            ', "horizon": 3',
            ', "horizon": 1e9',
            ', "horizon": -1',
            ', "horizon": "2"',
            f', "horizon": {"9" * 300}',
            ', "symbol": "BTC-USD"',
            ', "symbol": "../../etc/passwd"',
            ', "symbol": null',
            ', "symbol": "' + "A" * 10_000 + '"',
            ', "symbol": "\\ud800"',
            ', "values": [1]',
        ]
    )
    text = rng.choice(
        [
            f'{{"{field_name}": {lists}{extra}}}',
            f'{{"windows": [{lists}, {lists}]{extra}}}',
            f'{{"{field_name}": {"[" * rng.choice([1, 100, 100_000])}1',
            lists,
            "",
            '{"values": ' + "{" * 5000,
        ]
    )
    body = bytearray(text.encode("utf-8", "surrogatepass"))
    for _ in range(rng.choice([0, 0, 1, 5, 50])):
        if body:
            body[rng.randrange(len(body))] = rng.randrange(256)
    return bytes(body)


def no_json_number(word: str) -> None:
    check(False, f"{word} in an answer")


def hostile(given: argparse.Namespace) -> None:
    """Send bodies made to break the server, and run schemathesis."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "model.pt"
        # A short window, so that more of the made-up bodies reach the model.
        make_checkpoint(path, sequence_length=4, target="residual")
        with serve_run(path) as server:
            rng, seen = random.Random(given.seed), Counter[int]()
            slowest = 0.0
            with httpx.Client(timeout=20) as client:
                for _ in range(given.bodies):
                    body = hostile_body(rng)
                    route = rng.choice(["/predict", "/predict/batch"])
                    kind = rng.choice(["application/json", "text/plain", "application/xml", "\x01"])
                    asked = time.monotonic()
                    answer = client.post(f"{server.url}{route}", content=body, headers={"content-type": kind})
                    slowest = max(slowest, time.monotonic() - asked)
                    seen[answer.status_code] += 1
                    if answer.status_code >= 500:
                        check(False, f"{answer.status_code} for {body[:300]!r} to {route}")
                    # HAProxy itself refuses malformed HTTP, with a body that is not JSON.
                    if "json" in answer.headers["content-type"]:
                        json.loads(answer.content, parse_constant=no_json_number)
            check(not any(status >= 500 for status in seen), f"{given.bodies} bodies: {dict(seen)}")
            check(slowest < 5, f"the slowest took {slowest:.2f} s")
            tool = Path(sys.executable).with_name("schemathesis")
            done = subprocess.run(
                [
                    tool,
                    "run",
                    f"{server.url}/openapi.json",
                    *SCHEMATHESIS,
                    "--max-examples",
                    str(given.examples),
                    "--seed",
                    "1",
                ],
                capture_output=True,
                text=True,
                cwd=name,
            )
            print("\n".join(done.stdout.splitlines()[-25:]))
            check(done.returncode == 0, "schemathesis finds nothing")
            check(httpx.get(f"{server.url}/healthz").status_code == 200, "it still answers")


def memory(given: argparse.Namespace) -> None:
    """Send many requests, and measure the replica's memory."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "model.pt"
        make_checkpoint(path)
        body = json.dumps({"values": WINDOW})
        with serve_run(path) as server:
            asked, marks = 0, []
            while asked < given.requests:
                load = wrk(server.url, "/predict", body, CONNECTIONS, 5)
                check(load.failures == 0, f"{load.requests} requests, none failed")
                asked += load.requests
                if asked >= given.settled:
                    marks.append((asked, server.memory_mb()))
            (first, before), (last, after) = marks[0], marks[-1]
            growth = 100 * (after - before) / before
            check(
                growth < 5,
                f"{before:.1f} MB after {first:,} requests, {after:.1f} MB after {last:,}: {growth:+.1f} %",
            )


def overload(given: argparse.Namespace) -> None:
    """Offer ten times the load that a heavy model can handle."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "model.pt"
        make_checkpoint(path, hidden_size=256, num_layers=4, sequence_length=120)
        body = json.dumps({"values": WINDOW})
        with serve_run(path) as server:
            capacity = wrk(server.url, "/predict", body, CONNECTIONS, 10).per_second
            print(f"capacity: {capacity:.0f} requests a second", flush=True)
            # Most clients are refused at once and try again after the pause; those waiting for an answer do not.
            pause_ms = 1000 * OVERLOAD_CONNECTIONS / (32 * capacity)
            with ThreadPoolExecutor(1) as thread:
                flood = thread.submit(
                    wrk, server.url, "/predict", body, OVERLOAD_CONNECTIONS, given.seconds, pause_ms
                )
                seen, health = asyncio.run(_watch(server, body.encode(), given.seconds))
            load = flood.result()
            offered = (load.requests + seen.statuses.total()) / given.seconds
            check(
                offered > 10 * capacity,
                f"offered: {offered:.0f} a second, {offered / capacity:.1f} times its capacity",
            )
            check(
                load.broken == 0,
                f"{load.broken} of wrk's connections broke; {load.refused} requests were refused",
            )
            answered = (load.requests - load.refused + seen.statuses["200"]) / given.seconds
            print(f"answered: {answered:.0f} a second, {answered / capacity:.0%} of its capacity", flush=True)
            check(
                set(seen.statuses) == {"200", "503"},
                f"four clients among them see only 200 and 503: {dict(seen.statuses)}",
            )
            accepted, refused = seen.seconds["200"], seen.seconds["503"]
            check(
                max(accepted) < 30,
                f"accepted: median {statistics.median(accepted):.2f} s, longest {max(accepted):.2f} s; refused: median "
                f"{statistics.median(refused):.3f} s",
            )
            check(
                set(health.statuses) == {"200"},
                f"/healthz and /-/healthz requested {health.statuses.total()} times: {dict(health.statuses)}, longest "
                f"{max(health.seconds['200']):.2f} s",
            )


async def _watch(server: Server, body: bytes, seconds: float) -> tuple[Seen, Seen]:
    """Return what four clients, and two that poll the health routes, see during ``seconds``."""
    seen, health = Seen(), Seen()
    until = time.monotonic() + seconds

    async def ask() -> None:
        async with httpx.AsyncClient(timeout=60) as client:
            while time.monotonic() < until:
                await seen.ask(client, f"{server.url}/predict", body)
                await asyncio.sleep(0.05)

    async def look(route: str) -> None:
        async with httpx.AsyncClient(timeout=10) as client:
            while time.monotonic() < until:
                await health.take_down(client.get(f"{server.url}{route}"))
                await asyncio.sleep(0.5)

    await asyncio.gather(*(ask() for _ in range(4)), look("/healthz"), look("/-/healthz"))
    return seen, health


def main() -> None:
    """Run the parts that the command line names, or all of them."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.resilience",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parts = {"swaps": swaps, "kills": kills, "hostile": hostile, "memory": memory, "overload": overload}
    parser.add_argument("part", nargs="*", help=f"any of {', '.join(parts)} (default: all)")
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--bodies", type=int, default=5000, help="number of hostile bodies")
    parser.add_argument("--examples", type=int, default=100, help="schemathesis examples per operation")
    parser.add_argument("--seed", type=int, default=0, help="seed of the hostile bodies")
    parser.add_argument("--requests", type=int, default=200_000, help="requests of the memory part")
    parser.add_argument("--settled", type=int, default=20_000, help="requests before the first measurement")
    parser.add_argument("--seconds", type=float, default=30.0, help="duration of the overload")
    given = parser.parse_args()
    if unknown := set(given.part) - set(parts):
        parser.error(f"no part {sorted(unknown)}; choose from {', '.join(parts)}")
    for name in given.part or parts:
        print(f"{name}:", flush=True)
        parts[name](given)


if __name__ == "__main__":
    main()
