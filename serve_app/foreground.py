"""Serve in the foreground until a signal arrives: ``python -m serve_app run``, the command of a container.

Ray's own ``serve run`` takes the port only from a config file. With such a file, a failed build leaves a process that
answers nothing, and SIGTERM, which stops containers, aborts the requests under way.
"""

from __future__ import annotations

import signal
from types import FrameType

import ray
from ray import serve

from forecast.errors import ForecastError, UsageError
from serve_app.deployment import DRAIN_MARGIN_S, LOCAL, build, prepare_cluster, ray_address
from serve_app.options import DEFAULT_APP, RunOptions
from serve_app.ports import answers, require_free_port
from serve_app.ray_internals import (
    require_proxies,
    start_serve,
    temporary_directory,
    without_failure_handler,
)

END_MARGIN_S = 15.0
"""Seconds, beyond the replicas' own limit, until a stopping process is killed."""


def serve_until_stopped(options: RunOptions) -> None:
    """Serve until SIGINT or SIGTERM, then let replicas finish their requests; an alarm ends a process that hangs.

    Starts a local Ray cluster, unless ``RAY_ADDRESS`` names one.

    Raises:
        UsageError: when Serve already runs on that cluster: its host and port are fixed, and it is not ours to stop.
        ForecastError: when the port is taken, the checkpoint cannot be used, Ray does not start or the cluster lacks
            the resources.
        KeyboardInterrupt: when a signal arrives before the application answers.
    """
    application = build(options)
    local = ray_address() == LOCAL
    end_observers = prepare_cluster(options.host, options.port) if local else None
    limit = options.request_timeout_s + DRAIN_MARGIN_S + END_MARGIN_S

    def end(signum: int, frame: FrameType | None) -> None:
        # Ray never gives up on a cluster that is gone: the alarm then ends this process.
        signal.setitimer(signal.ITIMER_REAL, limit)
        signal.default_int_handler(signum, frame)

    if not ray.is_initialized():  # building has already connected, if it queried the cluster's GPUs
        try:
            # A signal may arrive before the handlers below are set.
            with without_failure_handler():
                ray.init(ray_address(), namespace="serve")
        except SystemExit as ended:  # from Ray's own handler of SIGTERM
            raise KeyboardInterrupt from ended
        except Exception as error:  # Ray raises bare ones too
            raise _not_connected(error) from error
    # Ray has just installed its own handlers, which end the process at once.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    if serve.status().proxies:
        raise UsageError(
            f"RAY_ADDRESS={ray_address()}: Ray Serve runs on that cluster already; use `serve deploy` there, or "
            "unset RAY_ADDRESS"
        )
    require_free_port(options.host, options.port)
    try:
        proxies = start_serve(options.host, options.port)
        try:
            serve.run(application, name=DEFAULT_APP)
            require_proxies(proxies)
            while True:
                signal.pause()
        except KeyboardInterrupt:
            # Clients are answered a moment before ``serve.run`` returns; from then on, a signal is a normal end.
            if not answers(options.host, options.port):
                raise
        # Replicas finish their requests through HAProxy, which a shutdown alone would end at once.
        serve.delete(DEFAULT_APP)
    finally:
        if end_observers is not None:
            end_observers()
            # Serve ends with its cluster; ended on its own while it starts, it would print tracebacks.
            ray.shutdown()
        else:
            serve.shutdown()


def _not_connected(error: Exception) -> ForecastError:
    reason = str(error).strip().partition("\n")[0]
    if ray_address() == LOCAL:
        return ForecastError(
            f"Ray could not start on this machine ({reason}); its logs are in {temporary_directory()}; or start a "
            "cluster with `ray start --head`, and set RAY_ADDRESS=auto"
        )
    return ForecastError(
        f"RAY_ADDRESS={ray_address()}: there is no Ray cluster ({reason}); start one with `ray start --head`, or unset "
        "RAY_ADDRESS for a local one"
    )
