"""What each trial asks of the cluster, and how many run at a time."""

from __future__ import annotations

from dataclasses import dataclass

import ray

from forecast.errors import UsageError
from forecast.model import DEFAULT_GPU_SHARE


@dataclass(frozen=True)
class Resources:
    """What one trial asks for and how many run at a time."""

    cpus_per_trial: float
    gpus_per_trial: float
    max_concurrent: int
    cluster_cpus: float
    cluster_gpus: float
    nodes: int


def plan_resources(
    cpus_per_trial: float, gpus_per_trial: float | None, max_concurrent: int | None
) -> Resources:
    """Resources of each trial on the connected cluster.

    Raises:
        UsageError: when one trial asks for more than the cluster has, which would wait for ever.
    """
    cluster = ray.cluster_resources()
    cpus, gpus = cluster.get("CPU", 0.0), cluster.get("GPU", 0.0)
    share = gpus_per_trial if gpus_per_trial is not None else (DEFAULT_GPU_SHARE if gpus else 0.0)
    if cpus_per_trial > cpus:
        raise UsageError(f"--cpus-per-trial {cpus_per_trial:g}: the cluster has {cpus:g} CPUs; ask for fewer")
    if share > gpus:
        raise UsageError(f"--gpus-per-trial {share:g}: the cluster has {gpus:g} GPUs; ask for less, or 0")
    room = int(cpus / cpus_per_trial)
    if share:
        room = min(room, int(gpus / share))
    return Resources(
        cpus_per_trial=cpus_per_trial,
        gpus_per_trial=share,
        # More than there is room for lets an autoscaling cluster see what is wanted, and grow.
        max_concurrent=max_concurrent or room,
        cluster_cpus=cpus,
        cluster_gpus=gpus,
        nodes=len([node for node in ray.nodes() if node["Alive"]]),
    )
