"""The Ray Serve environment flags that the application needs, defined once.

Ray Serve's processes read them when they start. Importing ``serve_app`` sets them, which is enough for ``serve run`` on
a new local cluster; any other cluster must be started with them in its environment (see ``cluster.yaml``). A value that
is already set wins.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

HAPROXY_VARIABLE = "RAY_SERVE_HAPROXY_BINARY_PATH"
HAPROXY_SCRIPT = "forecaster-haproxy"
"""Installed next to ``python``: HAProxy with its administration on the loopback, see ``serve_app.haproxy``."""

SERVE_FLAGS = {
    # HAProxy in front of the replicas instead of Serve's Python proxy: with the next flag, eight times the throughput.
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    # Skips per-request bookkeeping in replicas that costs more than a small model.
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # One HAProxy thread handles more than the replicas of a small machine can; more would take their cores.
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    # A log line per request through HAProxy's metrics socket is not worth its cost: the replicas count requests.
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    # Seconds a leaving replica stays for load balancers to notice. HAProxy on the same node is notified at once; Ray's
    # default of 30 is meant for load balancers that poll, and makes Ctrl-C take half a minute.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
    # Seconds between health checks of HAProxy; three must fail: with Ray's 10, a killed HAProxy is gone for 24 seconds.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
}


def current_flags() -> dict[str, str]:
    """Return each flag with its value: the environment's if set, else the application's."""
    flags = dict(SERVE_FLAGS)
    script = Path(sys.executable).with_name(HAPROXY_SCRIPT)
    if found := str(script) if script.exists() else shutil.which(HAPROXY_SCRIPT):
        flags[HAPROXY_VARIABLE] = found
    return {name: os.environ.get(name, value) for name, value in flags.items()}


def set_serve_flags() -> None:
    """Set each flag that the environment does not already set."""
    os.environ.update(current_flags())
