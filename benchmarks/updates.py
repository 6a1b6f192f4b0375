"""Updates in processes of their own, at other times and with faults, for the replay and the tests."""

from __future__ import annotations

import datetime as dt
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from forecast.live.ledger import Ledger
from forecast.live.store import Store
from tune_jobs import session as sessions
from tune_jobs import update

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "benchmarks.replay",
        "forecast.live.issue",
        "forecast.live.judge",
        "tune_jobs.job",
        "forecast.prices.panel",
    ]
)
"""Processes that have the imports already, and none of the threads of the process that starts them."""


@dataclass
class Run:
    """One update: its exit code, its processor and wall seconds, and what it printed."""

    code: int
    cpu: float
    wall: float
    output: str


def updated(argv: list[str], now: dt.datetime, *before: Callable[[], object]) -> Run:
    """Run an update at a given time, in a process of its own, which has the imports already.

    Args:
        argv: its options.
        now: what its clock shows, in UTC.
        before: called in that process first; what pickle can name.
    """
    started = time.perf_counter()
    with tempfile.NamedTemporaryFile() as stream:
        process = CONTEXT.Process(target=_update, args=(stream.name, argv, now, before))
        process.start()
        process.join()
        output, _, cpu = Path(stream.name).read_text(errors="replace").rpartition("\0")
    if process.exitcode == 0:
        return Run(0, float(cpu), time.perf_counter() - started, output)
    return Run(process.exitcode or 1, float("nan"), time.perf_counter() - started, output or cpu)


def _update(path: str, argv: list[str], now: dt.datetime, before: tuple[Callable[[], object], ...]) -> None:
    """Run an update in this process, with its output in a file, and the seconds of CPU after a zero."""
    before_start = _cpu()
    with Path(path).open("w") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    _set_clock(now)
    for each in before:
        each()
    code = update.run(update.main, argv)
    if code == 0:
        print(f"\0{_cpu() - before_start}", flush=True)
    sys.stderr.flush()
    os._exit(code)


def _cpu() -> float:
    """Seconds of CPU of this process and of those that it has waited for."""
    both = (resource.getrusage(which) for which in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in both)


def _set_clock(now: dt.datetime) -> None:
    """Let the modules of this project, and no library, see another time."""
    ahead, real = now - dt.datetime.now(dt.UTC), dt.datetime

    class AnyDatetime(type):
        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, real)

    class Clock(real, metaclass=AnyDatetime):  # type: ignore[valid-type,misc]
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> dt.datetime:
            shown: dt.datetime = real.now(tz) + ahead
            return shown

    shifted = types.ModuleType("datetime")
    shifted.__dict__.update(vars(dt), datetime=Clock)
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in ("forecast", "tune_jobs") and getattr(module, "dt", None) is dt:
            module.dt = shifted  # type: ignore[attr-defined]


def _kill(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_after(owner: type, method: str) -> None:
    """Kill this process when a method has returned."""
    original = getattr(owner, method)

    def killing(*arguments: Any, **named: Any) -> None:
        original(*arguments, **named)
        _kill()

    setattr(owner, method, killing)


def killed_before(owner: type, method: str) -> None:
    """Kill this process when a method is called."""
    setattr(owner, method, _kill)


def killed_in(seconds: float) -> None:
    """Kill this process after so many seconds."""
    threading.Timer(seconds, _kill).start()


def full_disk(ledger: Path) -> None:
    """Let no file grow beyond the present size of the ledger's log."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    log = ledger.with_name(f"{ledger.name}-wal")
    size = log.stat().st_size if log.exists() else 0
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


KILLS: dict[str, Callable[[], None]] = {
    "killed after fetch": partial(killed_after, sessions.Session, "_fetch"),
    "killed after score": partial(killed_after, sessions.Session, "_score"),
    "killed before forecast": partial(killed_before, Ledger, "issue"),
    "killed after forecast": partial(killed_after, sessions.Session, "_forecast"),
}
"""What kills an update in any session."""
RENEWAL_KILLS: dict[str, Callable[[], None]] = {
    "killed in renewal": partial(killed_in, 8.0),
    "killed after renewal": partial(killed_after, sessions.Session, "_renew"),
    "killed in judging": partial(killed_before, sessions.Session, "_conclude"),
    "killed in promotion": partial(killed_before, Store, "_point_to"),
}
"""What kills an update in a session with a renewal."""
