"""The private names of Ray that the server depends on, each behind a function that says why.

A job has its own such file, ``tune_jobs.ray_internals``: neither package may import the other.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
from ray._common.utils import get_default_ray_temp_dir
from ray._private import ray_constants
from ray._private.accelerators import get_accelerator_manager_for_resource
from ray._private.node import Node
from ray._private.services import canonicalize_bootstrap_address
from ray.serve._private import api
from ray.serve._private.constants import HTTP_PROXY_TIMEOUT
from ray.serve.config import ControllerOptions, HTTPOptions, ProxyLocation

from forecast.errors import ForecastError

OBSERVERS: dict[str, Callable[..., None]] = {
    "monitor": Node.start_monitor,
    "dashboard": Node.start_api_server,
}
"""What starts the autoscaler's monitor and the dashboard, in Ray's order."""
OBSERVERS_WAIT_S = 60.0
"""Seconds after which they start, even if the application does not answer."""
LOOK_EVERY_S = 0.5
"""Seconds between two looks at whether the application answers."""
logger = logging.getLogger("ray.serve")


def has_cluster() -> bool:
    """Tell whether ``ray.init()`` would find a cluster, instead of starting one.

    Ray has no public way to look for a cluster without connecting to it.
    """
    # The type hint allows only str; the documentation also allows None.
    return canonicalize_bootstrap_address(None) is not None  # type: ignore[arg-type]


def gpus_of_this_machine() -> float:
    """Count the GPUs that a new local cluster would have: Ray has no public way to count them before."""
    manager: Any = get_accelerator_manager_for_resource("GPU")
    visible = manager.get_current_process_visible_accelerator_ids()
    found = manager.get_current_node_num_accelerators()
    return float(found if visible is None else min(found, len(visible)))


def temporary_directory() -> Path:
    """Return the directory in which a cluster on this machine keeps its sockets and logs."""
    return Path(get_default_ray_temp_dir())


@contextlib.contextmanager
def without_failure_handler() -> Iterator[None]:
    """Connect without Ray's signal handler in C++, which aborts the process; Ray's own processes are not affected."""
    setting = ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER
    ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER = True
    try:
        yield
    finally:
        ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER = setting


def defer_observers(until: Callable[[], bool]) -> Callable[[], None]:
    """Have the next cluster of this process start its dashboard and autoscaler's monitor once ``until`` is true.

    These eleven processes take the cores that the controller, the proxies and the replicas need to start, and
    ``ray.init`` waits for the dashboard. The dashboard also writes the file that tells Prometheus where the metrics
    are.

    Returns:
        A function to call before that cluster is shut down: it ends the two, or the wait for them.
    """
    ended = threading.Event()
    deferred: dict[str, Callable[[], None]] = {}

    def defer_monitor(node: Node, **options: Any) -> None:
        deferred["monitor"] = functools.partial(OBSERVERS["monitor"], node, **options)

    def defer_dashboard(node: Node, **options: Any) -> None:
        # Ray starts it last. Other clusters of this process start theirs as always.
        _set_starts(OBSERVERS["monitor"], OBSERVERS["dashboard"])
        deferred["dashboard"] = functools.partial(_start_dashboard, node, **options)
        threading.Thread(target=start_deferred, daemon=True).start()

    def start_deferred() -> None:
        deadline = time.monotonic() + OBSERVERS_WAIT_S
        while not until() and time.monotonic() < deadline:
            if ended.wait(LOOK_EVERY_S):
                return
        for name, start in deferred.items():
            try:
                with _without_details():
                    start()
            except Exception as error:  # every kind: a server does without them
                if not ended.is_set():
                    logger.warning("Ray's %s did not start (%s)", name, error)
        # Linux ends a process of Ray when the thread that started it ends.
        ended.wait()

    _set_starts(defer_monitor, defer_dashboard)
    return ended.set


def _start_dashboard(node: Node, **options: Any) -> None:
    OBSERVERS["dashboard"](node, **options)
    if not node.webui_url:
        raise RuntimeError(f"its log is in {node.get_logs_dir_path()}")
    logger.info("Ray's dashboard is at http://%s", node.webui_url)


def _set_starts(monitor: Callable[..., None], dashboard: Callable[..., None]) -> None:
    Node.start_monitor = monitor  # type: ignore[method-assign]
    Node.start_api_server = dashboard  # type: ignore[method-assign]


@contextlib.contextmanager
def _without_details() -> Iterator[None]:
    """Silence the twenty lines in which Ray logs the end of the log of a dashboard that does not start."""
    services = logging.getLogger("ray._private.services")
    level = services.level
    services.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        services.setLevel(level)


def start_serve(host: str, port: int) -> list[ray.ObjectRef[Any]]:
    """Start Serve's controller and proxies, without waiting for the proxies.

    ``serve.start`` waits until the proxies have started, before a replica can begin to.

    Returns:
        What ``require_proxies`` waits for.
    """
    _, proxies = api._create_controller_and_proxy_refs(
        HTTPOptions(host=host, port=port),
        grpc_options=None,
        global_logging_config=None,
        global_tracing_config=None,
        controller_options=ControllerOptions(),
        proxy_location=ProxyLocation.EveryNode,
    )
    logger.info("Started Serve on %s, port %d", host, port)
    return proxies


def require_proxies(proxies: list[ray.ObjectRef[Any]]) -> None:
    """Wait for the proxies as ``serve.start`` does: ``serve.run`` takes no notice of one that has died.

    Raises:
        ForecastError: when one has not started.
    """
    try:
        ray.get(proxies, timeout=HTTP_PROXY_TIMEOUT)
    except ray.exceptions.RayError as error:
        reason = str(error).strip().rpartition("\n")[2]
        raise ForecastError(
            f"a proxy of Ray Serve did not start ({reason}); the logs are in "
            f"{temporary_directory() / 'session_latest' / 'logs' / 'serve'}"
        ) from error
