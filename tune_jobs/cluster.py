"""Connect to a Ray cluster, or start one on this machine."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import ray

from forecast.atomic import require_writable
from forecast.errors import StudyError, UsageError
from tune_jobs.ray_internals import (
    find_cluster,
    keep_signal_handlers,
    only_processes_of_a_job,
    temporary_directory,
)

if TYPE_CHECKING:
    from tune_jobs.placement import Growth

NEW_CLUSTER = {
    "preload_python_modules": ["tune_jobs.preload"],
    # Ray starts a worker for each core at once; it would not use them, but start others, when a driver connects.
    "prestart_worker_first_driver": False,
}
"""Ray's configuration of a cluster that a job starts."""
ADDRESS_WAIT = 10.0
"""Seconds within which a cluster's address must answer."""
ADDRESS_VARIABLE = "RAY_ADDRESS"
TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""A client's first bytes in HTTP/2, which Ray speaks (RFC 9113, section 3.4): the preface, and empty settings."""
SETTINGS = 4
"""Type of the frame with which an HTTP/2 server answers it; the fourth byte."""
ROOM = 2**20
"""Free bytes that a cluster needs to start: less than its logs take in a minute."""
SOCKET_PATH = 107
"""Bytes that the path of a Unix socket may have, on Linux."""


@dataclass(frozen=True)
class Connected:
    """The connected cluster.

    Attributes:
        may_grow: whether an autoscaler may start nodes; false on a cluster that the job itself started.
        growth: the nodes that it may start, if known.
    """

    may_grow: bool
    growth: Growth | None = None


Connect = Callable[[], Connected]
"""Connects to the job's cluster, or returns the connection there is."""


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[Connected]:
    """Connect to a Ray cluster, or start a local one, and disconnect at the end."""
    variable = os.environ.get(ADDRESS_VARIABLE) if address in (None, "auto") else None
    asked = variable or address
    origin = ADDRESS_VARIABLE if variable else "`address`"
    if asked and asked.startswith("ray://"):
        raise UsageError(
            f"{origin} {asked}: the job must run inside the cluster, not as a Ray client; run it on the head with "
            "`address=auto`, for example by `ray job submit` or `ray exec`"
        )
    if ray.is_initialized():
        yield Connected(may_grow=False)
        return
    try:
        asked = _answering(asked)
        remote = asked != "local"
        if not remote:
            _require_short_temporary_directory()
            _require_room(Path(temporary_directory()))
            _give_token()
        with keep_signal_handlers(), only_processes_of_a_job():
            ray.init(
                address=asked,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _system_config=None if remote else NEW_CLUSTER,
            )
    except UsageError:
        raise
    except Exception as error:  # Ray raises bare ones too
        raise _not_connected(asked, origin, error) from error
    try:
        yield Connected(may_grow=remote, growth=_growth() if remote else None)
    finally:
        ray.shutdown()


def _growth() -> Growth | None:
    # This imports Tune, which a new cluster must not wait for.
    from tune_jobs.placement import read_growth

    return read_growth()


def _not_connected(asked: str | None, origin: str, error: Exception) -> StudyError:
    reason = str(error).strip().partition("\n")[0]
    if asked == "local":
        return StudyError(
            f"Ray could not start on this machine ({reason}); its logs are in {temporary_directory()}; or start a "
            "cluster with `ray start --head`, and set `address=auto`"
        )
    remedy = f"unset {origin}" if origin == ADDRESS_VARIABLE else f"leave {origin} out"
    return StudyError(
        f"{origin} {asked}: there is no Ray cluster ({reason}); start one with `ray start --head`, or {remedy} for a "
        "local one"
    )


def _require_short_temporary_directory() -> None:
    """Refuse a temporary directory in which the paths of Ray's sockets would be too long.

    Raises:
        UsageError: when it is too long.
    """
    variable = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), None)
    session = f"/ray/session_2026-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store"
    limit = SOCKET_PATH - len(session)
    if variable and len(os.fsencode(os.environ[variable])) > limit:
        raise UsageError(
            f"{variable} {os.environ[variable]}: too long, because Ray keeps Unix sockets there, whose paths have "
            f"at most {SOCKET_PATH} bytes; set RAY_TMPDIR to a directory whose path has at most {limit} bytes"
        )


def _require_room(directory: Path) -> None:
    """Check that a disk has room for Ray's sockets and logs; Ray would find out after half a minute.

    Raises:
        OSError: when it is full, or the directory cannot be created.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(directory).free < ROOM:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory))


def _give_token() -> None:
    """Give the cluster a token in the environment if Ray cannot keep one in the home directory."""
    if any(os.environ.get(name) for name in TOKEN_VARIABLES):
        return
    try:
        directory = Path.home() / ".ray"
        if not (directory / "auth_token").exists():
            require_writable(directory)
    except (OSError, RuntimeError):  # a user without a home directory is a RuntimeError
        os.environ[TOKEN_VARIABLES[0]] = secrets.token_hex(32)


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
            _require_ray(host.strip("[]"), int(port))
        except OSError:
            if address is None:
                return "local"
            raise
    # Not ``found``: Ray sends its token by default only to a cluster that it finds itself.
    return address or "auto"


def _require_ray(host: str, port: int) -> None:
    """Check that something at an address answers as a Ray cluster does.

    Raises:
        OSError: when nothing listens there, or something else than Ray.
    """
    with socket.create_connection((host, port), ADDRESS_WAIT) as connection:
        if os.environ.get("RAY_USE_TLS", "0") != "0":
            return  # only Ray can greet a server with its certificates
        connection.sendall(GREETING)
        answer = connection.makefile("rb").read(SETTINGS)
    if len(answer) < SETTINGS or answer[-1] != SETTINGS:
        raise ConnectionError("what listens there is not Ray")
