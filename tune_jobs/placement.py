"""Which resources each trial asks for, and how many trials are under way, on a cluster that comes and goes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import ray
from ray import tune
from ray._private.state import state as cluster_state

from forecast.errors import UsageError
from forecast.model import DEFAULT_GPU_SHARE

CAPACITY_AGE = 1.0
"""Seconds after which the cluster is asked again what it has."""


@dataclass(frozen=True)
class Capacity:
    """What the cluster has now, and what it can have once its autoscaler has done all it may."""

    cpus: float
    gpus: float
    nodes: int
    reachable_cpus: float
    reachable_gpus: float


def cluster_capacity() -> Capacity:
    """Ask the connected cluster; one that does not scale by itself can have what it has now."""
    now = ray.cluster_resources()
    # Ray has no public name for this yet; its own libraries size themselves by it.
    most = cluster_state.get_max_resources_from_cluster_config() or {}
    cpus, gpus = now.get("CPU", 0.0), now.get("GPU", 0.0)
    return Capacity(
        cpus=cpus,
        gpus=gpus,
        nodes=len([node for node in ray.nodes() if node["Alive"]]),
        reachable_cpus=max(cpus, most.get("CPU", 0.0)),
        reachable_gpus=max(gpus, most.get("GPU", 0.0)),
    )


@dataclass(frozen=True)
class Demand:
    """What one trial asks for."""

    cpus: float
    gpus: float = 0.0

    def placement_group(self) -> tune.PlacementGroupFactory:
        """The demand in Tune's terms: one bundle."""
        return tune.PlacementGroupFactory([{"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})])


class Placement:
    """Gives each trial a core or a share of a GPU, by its cost, and knows whether one more has room.

    A trial that costs ``gpu_from`` or more asks for a share of a GPU, where the cluster has GPUs or can get
    them; when as many are waiting for a share as are holding one, it takes a core instead. A cheaper one
    takes a core. So GPUs are kept busy with what they are good for, no core waits for a GPU, and no trial
    waits for a GPU that never comes.

    Attributes:
        core_seconds: CPUs of the cluster, summed over the time since the first look at it.
    """

    def __init__(
        self,
        *,
        cpus_per_trial: float = 1.0,
        gpus_per_trial: float | None = None,
        gpu_from: float = 0.0,
        max_concurrent: int | None = None,
        ask_cluster: Callable[[], Capacity] = cluster_capacity,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Look at the cluster.

        Args:
            cpus_per_trial: CPUs each trial asks for.
            gpus_per_trial: share of a GPU that a costly trial asks for beside; None is the default share.
            gpu_from: cost from which on a trial is costly, in multiply-adds a window.
            max_concurrent: most trials under way; None is as many as fit, and on an autoscaling cluster as
                many again, so that it grows.
            ask_cluster: what the cluster has.
            clock: seconds that only grow.

        Raises:
            UsageError: when one trial asks for more than the cluster can have, which would wait for ever.
        """
        self._cpus, self._gpu_from, self._most = cpus_per_trial, gpu_from, max_concurrent
        self._share = DEFAULT_GPU_SHARE if gpus_per_trial is None else gpus_per_trial
        self._ask_cluster, self._clock = ask_cluster, clock
        self._demands: dict[str, Demand] = {}
        self.core_seconds = 0.0
        self._asked_at, self._seen = clock(), ask_cluster()
        if cpus_per_trial > self._seen.reachable_cpus:
            raise UsageError(
                f"--cpus-per-trial {cpus_per_trial:g}: the cluster has {self._seen.reachable_cpus:g} CPUs; ask "
                "for fewer"
            )
        if gpus_per_trial and gpus_per_trial > self._seen.reachable_gpus:
            raise UsageError(
                f"--gpus-per-trial {gpus_per_trial:g}: the cluster has {self._seen.reachable_gpus:g} GPUs; ask "
                "for less, or 0"
            )

    @property
    def capacity(self) -> Capacity:
        """What the cluster has, at most ``CAPACITY_AGE`` old."""
        if self._clock() - self._asked_at >= CAPACITY_AGE:
            self.look()
        return self._seen

    def look(self) -> None:
        """Ask the cluster now."""
        now = self._clock()
        self.core_seconds += (now - self._asked_at) * self._seen.cpus
        self._asked_at, self._seen = now, self._ask_cluster()

    @property
    def slots(self) -> int:
        """Trials that the cluster's cores have room for now."""
        return int(self.capacity.cpus / self._cpus)

    @property
    def gpu_slots(self) -> int:
        """Of these, trials that can have a share of a GPU now."""
        return min(self.slots, int(self.capacity.gpus / self._share)) if self._share else 0

    @property
    def uses_gpus(self) -> bool:
        """Whether costly trials ask for a share of a GPU."""
        return 0 < self._share <= self.capacity.reachable_gpus

    @property
    def limit(self) -> int:
        """Most trials to be under way; those that wait for a share of a GPU come on top."""
        if self._most is not None:
            return self._most
        # Trials without room are what an autoscaler sees. As many again doubles the cluster each time, and
        # keeps the sampler from spending the whole job on its first guesses.
        return max(1, min(2 * self.slots, int(self.capacity.reachable_cpus / self._cpus)))

    def has_room(self) -> bool:
        """Whether one more trial is to be started."""
        if self._most is not None:
            return len(self._demands) < self._most
        on_gpus = self._on_gpus()
        return len(self._demands) - on_gpus + min(on_gpus, self.gpu_slots) < self.limit

    def place(self, trial_id: str, multiply_adds: float) -> Demand:
        """Decide what a new trial asks for; it counts as under way until ``release``.

        Args:
            trial_id: any name, not under way yet.
            multiply_adds: cost of its model, in multiply-adds a window.
        """
        demand = Demand(self._cpus)
        # A cluster that has no GPU yet is asked for one's worth of shares.
        places = self.gpu_slots or (max(1, int(1 / self._share)) if self.uses_gpus else 0)
        if multiply_adds >= self._gpu_from and self._on_gpus() < 2 * places:
            demand = Demand(self._cpus, self._share)
        self._demands[trial_id] = demand
        return demand

    def release(self, trial_id: str) -> None:
        """A trial has ended."""
        self._demands.pop(trial_id, None)

    def is_stranded(self, trial_id: str) -> bool:
        """Whether a trial waits for a share of a GPU on a cluster that has lost its last one for good."""
        demand = self._demands.get(trial_id)
        return demand is not None and demand.gpus > 0 and not self.uses_gpus

    def _on_gpus(self) -> int:
        return sum(demand.gpus > 0 for demand in self._demands.values())
