"""Ray Serve's environment flags that the application wants, defined once.

They are read when Ray Serve's processes start. Importing ``serve_app`` sets them, which suffices for
``serve run`` on a new local cluster; a cluster that already runs needs them in its own environment (see
``cluster.yaml``). A value that is already set wins.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

HAPROXY_VARIABLE = "RAY_SERVE_HAPROXY_BINARY_PATH"
HAPROXY_SCRIPT = "forecaster-haproxy"
"""Installed beside ``python``: HAProxy with its administration on the loopback, see ``serve_app.haproxy``."""

SERVE_FLAGS = {
    # HAProxy in front of the replicas, instead of Serve's Python proxy: with the next one, eight times the requests.
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    # Leaves out per-request bookkeeping in replicas that costs more than a small model.
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # One HAProxy thread carries more than the replicas of a small machine; more would take their cores.
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    # A log line a request through HAProxy's metrics socket costs more than it tells: replicas count.
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    # Seconds a leaving replica stays for load balancers to notice. HAProxy beside it is told at once; Ray's
    # default of 30 is for load balancers that poll, and makes Ctrl-C take half a minute.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
    # Seconds between two looks at HAProxy, of which three must fail: with Ray's 10 a killed HAProxy is away for 24.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
}


def current_flags() -> dict[str, str]:
    """Each flag with its value: the environment's where it has one, else the application's."""
    flags = dict(SERVE_FLAGS)
    script = Path(sys.executable).with_name(HAPROXY_SCRIPT)
    if found := str(script) if script.exists() else shutil.which(HAPROXY_SCRIPT):
        flags[HAPROXY_VARIABLE] = found
    return {name: os.environ.get(name, value) for name, value in flags.items()}


def set_serve_flags() -> None:
    """Set each flag that the environment does not set already."""
    os.environ.update(current_flags())
