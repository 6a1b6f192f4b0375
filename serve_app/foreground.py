"""Serve in the foreground until told to stop: ``python -m serve_app run``, the command of a container.

Ray's own ``serve run`` takes the port from a config file alone; with one, an application that cannot be built leaves a
process that answers nothing, and SIGTERM, which is how containers are stopped, breaks off the requests under way.
"""

from __future__ import annotations

import contextlib
import signal

import ray
from ray import serve
from ray.serve.config import ProxyLocation

from serve_app.deployment import build
from serve_app.options import DEFAULT_APP, RunOptions


def serve_until_stopped(options: RunOptions) -> None:
    """Return after SIGINT or SIGTERM, when the requests under way have been answered.

    Raises:
        ForecastError: when the checkpoint cannot be used or the cluster has not what is asked for.
    """
    application = build(options)
    with contextlib.suppress(KeyboardInterrupt):
        ray.init(namespace="serve")
        # Ray has just replaced it by one that ends the process at once.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
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
