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

from ray._common.utils import get_default_ray_temp_dir
from ray._private import ray_constants
from ray._private.accelerators import get_accelerator_manager_for_resource
from ray._private.node import Node
from ray._private.services import canonicalize_bootstrap_address
from ray.serve._private import api
from ray.serve.config import ControllerOptions, HTTPOptions, ProxyLocation

OBSERVERS_WAIT_S = 60.0
"""Seconds after which Ray's dashboard and monitor start, even if the application does not answer."""
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


def start_observers_once(answers: Callable[[], bool]) -> None:
    """Have the next cluster of this process start its dashboard and autoscaler's monitor once the application answers.

    These eleven processes take the cores that the controller, the proxies and the replicas need to start, and
    ``ray.init`` waits for the dashboard. The dashboard also writes the file that tells Prometheus where the metrics
    are.
    """
    waiting: list[Callable[[], None]] = []

    def start_and_stay(node: Node) -> None:
        deadline = time.monotonic() + OBSERVERS_WAIT_S
        while not answers() and time.monotonic() < deadline:
            time.sleep(LOOK_EVERY_S)
        # Where the dashboard does not start, Ray logs the end of its log in twenty lines.
        logging.getLogger("ray._private.services").setLevel(logging.CRITICAL)
        for start in waiting:
            start()
        if node.webui_url:
            logger.info("Ray's dashboard is at http://%s", node.webui_url)
        # Linux ends a process of Ray when the thread that started it ends.
        threading.Event().wait()

    def later(start: Callable[..., None]) -> Callable[..., None]:
        def wait(node: Node, **options: Any) -> None:
            if not waiting:
                threading.Thread(target=start_and_stay, args=(node,), daemon=True).start()
            waiting.append(functools.partial(start, node, **options))

        return wait

    for name in ("start_monitor", "start_api_server"):
        setattr(Node, name, later(getattr(Node, name)))


def start_serve(host: str, port: int) -> None:
    """Start Serve's controller and proxies, without waiting for the proxies.

    ``serve.start`` waits until the proxies have started, before a replica can begin to. ``serve.run`` waits for them in
    any case, once the application runs.
    """
    api._create_controller_and_proxy_refs(
        HTTPOptions(host=host, port=port),
        grpc_options=None,
        global_logging_config=None,
        global_tracing_config=None,
        controller_options=ControllerOptions(),
        proxy_location=ProxyLocation.EveryNode,
    )
