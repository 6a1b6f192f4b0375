"""Connect to a Ray cluster, or start one on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import ray

from forecast.errors import StudyError, UsageError
from tune_jobs.placement import Growth, read_growth
from tune_jobs.ray_internals import find_cluster

ADDRESS_WAIT = 10.0
"""Seconds within which a cluster's address must answer."""


@dataclass(frozen=True)
class Connected:
    """The connected cluster.

    Attributes:
        may_grow: whether an autoscaler may start nodes; false on a cluster that the job itself started.
        growth: the nodes that it may start, if known.
    """

    may_grow: bool
    growth: Growth | None = None


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[Connected]:
    """Connect to a Ray cluster, or start a local one, and disconnect at the end."""
    asked = address or os.environ.get("RAY_ADDRESS")
    if asked and asked.startswith("ray://"):
        raise UsageError(
            f"`address` {asked}: the job must run inside the cluster, not as a Ray client; run it on the head with "
            "`address=auto`, for example by `ray job submit` or `ray exec`"
        )
    if ray.is_initialized():
        yield Connected(may_grow=False)
        return
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        asked = _answering(asked)
        remote = asked != "local"
        ray.init(
            address=asked,
            include_dashboard=None if remote else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise StudyError(
            f"no Ray cluster at {asked or 'this machine'} ({reason}); start one with `ray start --head`, or leave "
            "`address` out for a local one"
        ) from error
    if threading.current_thread() is threading.main_thread():
        # Ray has just installed a handler that ends the process with another exit code.
        signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield Connected(may_grow=remote, growth=read_growth() if remote else None)
    finally:
        ray.shutdown()


def _answering(address: str | None) -> str:
    """Return the address of a cluster that answers right now, or ``local`` for a new one.

    Ray would take minutes to report an address where nothing listens. A killed cluster leaves its address on the
    machine, and Ray would wait for it even when no address is given.

    Raises:
        OSError: when ``address`` names a cluster that does not answer.
    """
    found = find_cluster(address) if address in (None, "auto") else address
    if found is None:
        return "local"
    host, colon, port = found.rpartition(":")
    if colon and port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), ADDRESS_WAIT).close()
        except OSError:
            if address is None:
                return "local"
            raise
    # Not ``found``: Ray sends its token by default only to a cluster that it finds itself.
    return address or "auto"
