"""Look at processes: those under a server, and what one does with a signal."""

import contextlib
import re
from pathlib import Path

import psutil


def family(pid):
    """Yield each process under ``pid`` with its command line."""
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            yield process, " ".join(process.cmdline())


def replicas(pid):
    """Return the process ids of Serve's replicas under ``pid``."""
    return {process.pid for process, title in family(pid) if title.startswith("ray::ServeReplica:")}


def catches(pid, number):
    """Whether a process has a handler for a signal (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(re.search(r"^SigCgt:\s*(\w+)$", status, re.M)[1], 16) >> (number - 1) & 1)
