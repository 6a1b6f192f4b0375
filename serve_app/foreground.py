"""Serve in the foreground until told to stop: ``python -m serve_app run``, the command of a container.

Ray's own ``serve run`` takes the port from a config file alone; with one, an application that cannot be built leaves a
process that answers nothing, and SIGTERM, which is how containers are stopped, breaks off the requests under way.
"""

from __future__ import annotations

import contextlib
import signal
from types import FrameType

import ray
from ray import serve
from ray.serve.config import ProxyLocation

from forecast.errors import UsageError
from serve_app.deployment import DRAIN_MARGIN_S, build, ray_address
from serve_app.options import DEFAULT_APP, RunOptions

END_MARGIN_S = 15.0
"""Seconds beyond those of the replicas until a process that was told to stop is ended."""


def serve_until_stopped(options: RunOptions) -> None:
    """Return after SIGINT or SIGTERM, when replicas have had time for the requests they have; else be ended.

    It starts a Ray of its own, unless ``RAY_ADDRESS`` names a cluster.

    Raises:
        UsageError: when that cluster serves already: its host and port are taken, and its end is not ours to say.
        ForecastError: when the checkpoint cannot be used or the cluster has not what is asked for.
    """
    application = build(options)
    limit = options.request_timeout_s + DRAIN_MARGIN_S + END_MARGIN_S

    def end(signum: int, frame: FrameType | None) -> None:
        # Nothing of Ray gives up on a cluster that is gone: then this process ends by the alarm.
        signal.setitimer(signal.ITIMER_REAL, limit)
        signal.default_int_handler(signum, frame)

    with contextlib.suppress(KeyboardInterrupt):
        if not ray.is_initialized():  # else the application's building has asked the cluster for its GPUs
            ray.init(ray_address(), namespace="serve")
        # Ray has just put its own there, which ends the process at once.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, end)
        if serve.status().proxies:
            raise UsageError(
                f"RAY_ADDRESS={ray_address()}: Ray Serve runs on that cluster already; use `serve deploy` there, or "
                "unset it"
            )
        try:
            serve.start(
                proxy_location=ProxyLocation.EveryNode,
                http_options={"host": options.host, "port": options.port},
            )
            try:
                serve.run(application, name=DEFAULT_APP, blocking=True)
            finally:
                # Replicas answer what they have, through HAProxy, which a shutdown by itself ends at once.
                serve.delete(DEFAULT_APP)
        finally:
            serve.shutdown()
