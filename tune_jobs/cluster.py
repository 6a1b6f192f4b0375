"""Connecting to a Ray cluster, or starting one on this machine."""

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
"""Seconds in which a cluster's address has to answer."""


@dataclass(frozen=True)
class Connected:
    """The connected cluster.

    Attributes:
        may_grow: whether an autoscaler may start nodes: not on a cluster that the job has started itself.
        growth: the nodes that it may start, where that is known.
    """

    may_grow: bool
    growth: Growth | None = None


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[Connected]:
    """Connect to a Ray cluster, or start a local one, and let go of it at the end."""
    asked = address or os.environ.get("RAY_ADDRESS")
    if asked and asked.startswith("ray://"):
        raise UsageError(
            f"`address` {asked}: the job is part of the cluster and cannot be its Ray client; run it on the head with "
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
        # Ray has installed a handler that ends the process with another exit code.
        signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield Connected(may_grow=remote, growth=read_growth() if remote else None)
    finally:
        ray.shutdown()


def _answering(address: str | None) -> str:
    """The cluster to connect to, which was there a moment ago, or ``local`` for a new one.

    Where nothing listens any more, Ray would take minutes to say so. A cluster that was killed leaves its address on
    the machine, and Ray would wait for it although nobody asked for it.

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
    # Not the address that was found: Ray shows its token unasked only to a cluster that it finds itself.
    return address or "auto"
