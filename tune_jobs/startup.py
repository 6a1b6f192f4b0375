"""Start a job: what takes seconds runs side by side.

=================================================  ========================================================
this process                                       Ray
=================================================  ========================================================
imports torch and pandas, reads the prices         starts, in a thread of its own (``cluster_beside``)
imports Tune and Optuna, opens the study           its workers import what a trial needs (``preloaded``)
=================================================  ========================================================

Importing this module must cost nothing: it is the first that a job imports.
"""

from __future__ import annotations

import _imp
import contextlib
import gc
import threading
from collections.abc import Iterator
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tune_jobs.cluster import Connected

STARTING_WAIT = 30.0
"""Seconds that an interrupted job waits for a cluster that is starting, to end it; Linux ends it with this process."""


class ClusterBeside:
    """A connection to a cluster that a thread makes, keeps and ends."""

    def __init__(self, address: str | None) -> None:
        self._address = address
        self._connected: Future[Connected] = Future()
        self._over = threading.Event()
        # The thread stays until the end: Linux kills the processes that a thread has started when this thread ends.
        self._thread = threading.Thread(target=self._keep, name="cluster", daemon=True)
        self._thread.start()

    def _keep(self) -> None:
        try:
            from tune_jobs.cluster import connected

            with connected(self._address) as cluster:
                self._connected.set_result(cluster)
                self._over.wait()
        except Exception as error:
            if self._connected.done():
                raise
            self._connected.set_exception(error)

    def connect(self) -> Connected:
        """Wait for the connection.

        Raises:
            ForecastError: the error of ``tune_jobs.cluster.connected``, at each call.
            OSError: likewise.
        """
        return self._connected.result()

    def settle(self) -> None:
        """Wait until there is a connection or an error, which only ``connect`` raises."""
        wait([self._connected])

    def end(self) -> None:
        """Disconnect, and end the cluster if the thread has started it."""
        self._over.set()
        _release_imports()
        self._thread.join(None if self._connected.done() else STARTING_WAIT)


def _release_imports() -> None:
    """Release Python's import lock if this thread has it.

    A signal that interrupts an import can leave the lock behind, and the other thread then waits for it forever.
    """
    with contextlib.suppress(RuntimeError):  # another thread has it
        while _imp.lock_held():
            _imp.release_lock()


@contextlib.contextmanager
def cluster_beside(address: str | None) -> Iterator[ClusterBeside]:
    """Connect to a cluster, or start one, in a thread; ``connect`` waits for it. Disconnect at the end.

    Args:
        address: that of ``tune_jobs.cluster.connected``.
    """
    cluster = ClusterBeside(address)
    try:
        yield cluster
    finally:
        # Also after an interrupt: a job that ends while its cluster starts would leave some of Ray's processes behind.
        cluster.end()


@contextlib.contextmanager
def only_imports() -> Iterator[None]:
    """Collect no garbage: imports make hardly any, and looking for it takes them a sixth longer."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
