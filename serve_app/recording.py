"""A thread that writes a sample of requests and answers into the ledger."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import queue
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from serve_app.live import LiveLedger
from serve_app.models import logger

MOST_WAITING = 256
"""Largest number of waiting requests; further requests are dropped."""
LARGEST_BYTES = 262_144
"""Largest size of a recorded request with its answer: the waiting requests must fit into memory."""
COLLECT_S = 1.0
"""Seconds to collect requests for one transaction: each transaction waits for the disk."""


@dataclass(frozen=True)
class Sampled:
    """A request and its answer as they were sent, the time of the answer, the symbol, and the model's SHA-256."""

    at: str
    symbol: str
    model: str
    request: bytes
    answer: bytes


class Recorder:
    """Writes a share of the requests into the ledger; a request never waits for this and never fails because of it."""

    def __init__(self, ledger: LiveLedger, share: float) -> None:
        """Record this share of all requests, between 0 and 1."""
        self._ledger, self._share = ledger, share
        self._waiting: queue.Queue[Sampled] = queue.Queue(MOST_WAITING)
        self._lock = threading.Lock()
        self._outcomes: Counter[str] = Counter()
        self._problem: str | None = None
        threading.Thread(target=self._write_forever, name="recording", daemon=True).start()

    def offer(self, symbol: str, model: str, request: bytes, answer: bytes) -> None:
        """Draw whether to record a request, and queue it if so."""
        if random.random() >= self._share:
            return
        now = dt.datetime.now(dt.UTC).isoformat(timespec="microseconds")
        if len(request) + len(answer) <= LARGEST_BYTES:
            with contextlib.suppress(queue.Full):
                self._waiting.put_nowait(Sampled(now, symbol, model, request, answer))
                return
        self._count("dropped", 1)

    def take(self) -> Counter[str]:
        """Return how many requests were recorded and dropped since the last call."""
        with self._lock:
            taken, self._outcomes = self._outcomes, Counter()
        return taken

    def _count(self, outcome: str, number: int) -> None:
        with self._lock:
            self._outcomes[outcome] += number

    def _write_forever(self) -> None:
        while True:
            batch = [self._waiting.get()]
            time.sleep(COLLECT_S)
            with contextlib.suppress(queue.Empty):
                while len(batch) < MOST_WAITING:
                    batch.append(self._waiting.get_nowait())
            self._write(batch)

    def _write(self, batch: Sequence[Sampled]) -> None:
        try:
            self._ledger.open().add_requests(
                [
                    {**vars(each), "request": json.loads(each.request), "answer": json.loads(each.answer)}
                    for each in batch
                ]
            )
        except Exception as error:  # every kind: the thread must not end
            self._count("dropped", len(batch))
            if str(error) != self._problem:
                logger.error("%d requests were not recorded: %s", len(batch), error)
            self._problem = str(error)
        else:
            self._count("recorded", len(batch))
            self._problem = None
