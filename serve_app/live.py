"""The ledger of the served models: published forecasts and their scores."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from forecast.errors import LedgerError
from forecast.live.store import LEDGER_FILE
from serve_app.models import Models

if TYPE_CHECKING:
    from forecast.live.record import Record

Found = TypeVar("Found")


class NoLedger(LedgerError):
    """There is no ledger."""


class LiveLedger:
    """Finds and opens the ledger for each query."""

    def __init__(self, models: Models, path: str | None = None) -> None:
        """Read the ledger at ``path``; None selects the ledger of the model store that ``models`` serves."""
        self._models, self._given = models, path
        self._lock = threading.Lock()
        self._opened: Record | None = None
        self._file: tuple[Path, int] | None = None

    async def ask(self, question: Callable[[Record], Found]) -> Found:
        """Query the ledger in a thread, and return the answer.

        Raises:
            NoLedger: when there is no ledger.
            LedgerError: when the ledger cannot be used.
        """
        return await asyncio.to_thread(lambda: question(self.open()))

    def open(self) -> Record:
        """The ledger; errors as ``ask``."""
        path = Path(self._given or self._models.checkpoint, *([] if self._given else [LEDGER_FILE]))
        with self._lock:
            try:
                # Opening a missing file would create it; another file may have replaced the opened one.
                file = path, path.stat().st_ino
            except OSError:
                raise NoLedger(
                    f"there is no ledger at {path}; run `python -m tune_jobs.update`, which creates one, and serve its "
                    "model store (checkpoint=models) or name the ledger (ledger=models/ledger.db)"
                ) from None
            if self._opened is None or self._file != file:
                # A server without a ledger starts sooner without its libraries.
                from forecast.live.record import Record

                if self._opened is not None:
                    self._opened.close()
                self._opened, self._file = Record(path), file
            return self._opened
