"""The private names of Ray that a job depends on, each behind a function that says why.

Those of Tune are in ``tune_jobs.tune_internals``, because a job's cluster starts before Tune is imported.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import ray
from ray._common.utils import get_default_ray_temp_dir
from ray._private import ray_constants, utils
from ray._private.node import Node
from ray._private.services import canonicalize_bootstrap_address

NODE_DIED = "its node has died"
"""Ray's text for an actor's death when the whole node is gone."""


def find_cluster(address: str | None) -> str | None:
    """Return the address that Ray would connect to for ``auto`` or None; None when there is no cluster.

    Ray has no public way to look for a cluster without connecting to it.
    """
    # The type hint allows only str; the documentation also allows None.
    return canonicalize_bootstrap_address(address)  # type: ignore[arg-type]


@contextlib.contextmanager
def keep_signal_handlers() -> Iterator[None]:
    """Keep this process's handler of SIGTERM while Ray starts.

    ``ray.init`` installs one that exits with code 15, and its C++ part one that aborts; Ray has no public way to keep
    ours. Ray's own processes are not affected.
    """
    setting, set_handler = ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER, utils.set_sigterm_handler
    ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER = True
    utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER = setting
        utils.set_sigterm_handler = set_handler


@contextlib.contextmanager
def only_processes_of_a_job() -> Iterator[None]:
    """Start a cluster without three processes that a job never uses, and that take longer to start than all others.

    They are the dashboard, the autoscaler's monitor, which has nothing to start on one machine, and the log monitor,
    which copies the workers' output. ``ray.init`` has no option for them: even without a dashboard, it starts the
    dashboard's process and waits for it.
    """
    starts = {
        name: getattr(Node, name) for name in ("start_api_server", "start_monitor", "start_log_monitor")
    }
    for name in starts:
        setattr(Node, name, lambda *_, **__: None)
    try:
        yield
    finally:
        for name, start in starts.items():
            setattr(Node, name, start)


def temporary_directory() -> str:
    """Return the directory in which a cluster on this machine keeps its sockets and logs."""
    return str(get_default_ray_temp_dir())


def is_loss_of_node(error: ray.exceptions.RayError | None) -> bool:
    """Return whether an error says that the process's node is gone."""
    # Ray reports a drained node in the error's fields, but one that died only in its text.
    return isinstance(error, ray.exceptions.RayActorError) and (error.preempted or NODE_DIED in str(error))
