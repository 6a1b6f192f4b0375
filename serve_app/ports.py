"""The ports of a server on this machine: the one that it answers on must be free, and its others are its own."""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import socket

from forecast.errors import ForecastError

DEFAULT_PORT = 8000
"""Serve's port where nobody names one; a server on it keeps Ray's defaults for ``INTERNAL_PORTS``."""
INTERNAL_PORTS = {
    "RAY_SERVE_HAPROXY_STATS_PORT": 8404,
    "RAY_SERVE_HAPROXY_METRICS_PORT": 9101,
    # Serve's own proxy, to which HAProxy turns while no replica answers. Proxies of several servers would share the
    # port, and answer for each other.
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": 8500,
}
"""The variables that tell Ray Serve its ports besides replicas' ports, with its defaults."""
SPARE_PORTS = range(20_000, 30_000)
"""Ports that neither Ray nor the kernel gives away."""


def require_free_port(host: str, port: int) -> None:
    """Make sure that a server can listen.

    Raises:
        ForecastError: when it cannot; the message names the process that has the port.
    """
    try:
        _bind(host, port)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            reason = (error.strerror or str(error)).lower()
            raise ForecastError(
                f"cannot listen on port {port} of {host}: {reason}; use another `host` or `port`"
            ) from None
        raise ForecastError(
            f"port {port} is taken by {_holder(port)}; stop it, or use another port: "
            "python -m serve_app run --port N"
        ) from None


def set_internal_ports(port: int) -> None:
    """Give the server on ``port`` internal ports of its own, in the environment of the cluster that it will start.

    A variable that is already set wins.
    """
    # Each server searches from a different place: two that start at the same time do not find the same ports.
    first = len(INTERNAL_PORTS) * port % len(SPARE_PORTS)
    spare = (found for found in (*SPARE_PORTS[first:], *SPARE_PORTS[:first]) if _is_free(found))
    for variable, default in INTERNAL_PORTS.items():
        if variable not in os.environ:
            keep = port == DEFAULT_PORT and _is_free(default)
            os.environ[variable] = str(default if keep else next(spare))


def answers(host: str, port: int) -> bool:
    """Tell whether the application answers at its port."""
    connection = http.client.HTTPConnection("127.0.0.1" if host in ("", "0.0.0.0") else host, port, timeout=2)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _bind(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        # As HAProxy does: connections that have ended then do not matter, but a listener does.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))


def _is_free(port: int) -> bool:
    with contextlib.suppress(OSError):
        _bind("", port)
        return True
    return False


def _holder(port: int) -> str:
    """Describe the process that listens on ``port``; only its owner and root may see which that is."""
    import psutil  # type: ignore[import-untyped]  # Ray's copy, which the import of Ray makes importable

    with contextlib.suppress(psutil.Error):
        for found in psutil.net_connections("tcp"):
            if found.status == psutil.CONN_LISTEN and found.laddr.port == port and found.pid:
                name = psutil.Process(found.pid).name()
                server = " of a running server" if name == "haproxy" else ""
                return f"{name} (pid {found.pid}){server}"
    return "another process"
