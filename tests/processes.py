"""Find the processes under a server."""

import contextlib

import psutil


def family(pid):
    """Yield each process under ``pid`` with its command line."""
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            yield process, " ".join(process.cmdline())


def replicas(pid):
    """Return the process ids of Serve's replicas under ``pid``."""
    return {process.pid for process, title in family(pid) if title.startswith("ray::ServeReplica:")}
