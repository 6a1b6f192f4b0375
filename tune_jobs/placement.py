"""Decide which resources each trial asks for and how many trials run, on a cluster whose nodes come and go."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ray
from ray import tune

from forecast.errors import UsageError
from forecast.model.device import DEFAULT_GPU_SHARE

GPU_PATIENCE = 600.0
"""Seconds an autoscaler has to start the first GPU that trials wait for: no instance takes longer to boot."""
CAPACITY_AGE = 1.0
"""Seconds after which the cluster's resources are queried again."""
AUTOSCALER_CONFIG = Path("~/ray_bootstrap_config.yaml")
"""The file on the head in which ``ray up`` records the nodes that its autoscaler may start."""
ROUNDING = 1e-9
"""Tolerance for a sum of GPU fractions that falls short of a whole number."""


@dataclass(frozen=True)
class Demand:
    """The resources that one trial asks of one node."""

    cpus: float
    gpus: float = 0.0


@dataclass(frozen=True)
class Slot:
    """A place for one trial at a time; its process is kept for the next trial."""

    demand: Demand
    index: int


class SlotResources(tune.PlacementGroupFactory):
    """A slot's demand in Tune's terms: one bundle, equal only to itself.

    Tune hands the process of a trial that has ended to any trial with equal resources, even to a trial whose own
    process is still starting, and kills that process. If trials were shorter than a process start, a node that joins
    would never run a trial.
    """

    def __init__(self, slot: Slot) -> None:
        gpus = {"GPU": slot.demand.gpus} if slot.demand.gpus else {}
        super().__init__([{"CPU": slot.demand.cpus} | gpus])
        self._slot = slot

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SlotResources) and self._slot == other._slot

    def __hash__(self) -> int:
        return hash(self._slot)


@dataclass(frozen=True)
class Node:
    """The resources of one node."""

    cpus: float
    gpus: float = 0.0

    def slots(self, demand: Demand) -> int:
        """Return how many trials with this demand the node can hold; a GPU share never spans two GPUs."""
        by_cpus = int(self.cpus / demand.cpus + ROUNDING)
        if not demand.gpus:
            return by_cpus
        if demand.gpus <= 1:
            return min(by_cpus, int(self.gpus) * int(1 / demand.gpus + ROUNDING))
        return min(by_cpus, int(self.gpus / demand.gpus + ROUNDING))


@dataclass(frozen=True)
class Growth:
    """The nodes that an autoscaler may run: so many of each kind, and at most ``workers`` in addition to the head."""

    head: Node
    kinds: tuple[tuple[Node, int], ...]
    workers: int

    def slots(self, demand: Demand) -> int:
        """Return how many trials with this demand the fully grown cluster can hold."""
        each = sorted((node.slots(demand) for node, most in self.kinds for _ in range(most)), reverse=True)
        return self.head.slots(demand) + sum(each[: self.workers])


def read_growth(path: Path = AUTOSCALER_CONFIG) -> Growth | None:
    """Read what the autoscaler of a ``ray up`` cluster may start; None unless this machine is such a cluster's head."""
    try:
        config = json.loads(path.expanduser().read_text())
        kinds = {
            name: (_node(kind["resources"]), int(kind.get("max_workers", 0)))
            for name, kind in config["available_node_types"].items()
        }
        head, _ = kinds.pop(config["head_node_type"])
        return Growth(head, tuple(kinds.values()), int(config["max_workers"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def cluster_nodes() -> list[Node]:
    """Return the connected cluster's live nodes."""
    return [_node(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def _node(resources: dict[str, float]) -> Node:
    return Node(resources.get("CPU", 0.0), resources.get("GPU", 0.0))


class Placement:
    """Gives each trial a slot by its cost, a core or a GPU share, and knows whether one more trial fits.

    Each GPU share is paired with one core. A trial that costs ``gpu_from`` or more gets a share while one is free, else
    a core; a cheaper one gets a core while one is free, else an idle share. This keeps both busy, and no trial waits
    for a GPU that the cluster does not have.

    Attributes:
        nodes: the cluster's nodes, at most ``CAPACITY_AGE`` old.
        core_seconds: CPUs of the cluster, integrated over the time since it was first queried.
    """

    def __init__(
        self,
        *,
        cpus_per_trial: float = 1.0,
        gpus_per_trial: float | None = None,
        gpu_from: float = 0.0,
        max_concurrent: int | None = None,
        may_grow: bool = False,
        growth: Growth | None = None,
        ask_cluster: Callable[[], list[Node]] = cluster_nodes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Query the cluster.

        Args:
            cpus_per_trial: CPUs each trial asks for.
            gpus_per_trial: GPU share that a costly trial asks for in addition; None is the default share.
            gpu_from: cost from which a trial counts as costly, in multiply-adds per window.
            max_concurrent: most trials under way; None is as many as fit. If the cluster may grow, twice as many are
                under way, so that it does.
            may_grow: whether an autoscaler may start nodes; if ``growth`` does not say which, only ``max_concurrent``
                says how many trials to ask for.
            growth: the nodes that the cluster's autoscaler may start.
            ask_cluster: returns the cluster's live nodes.
            clock: returns monotonic seconds.

        Raises:
            UsageError: when one trial asks for more than any node has or can have: it would wait forever.
        """
        share = DEFAULT_GPU_SHARE if gpus_per_trial is None else gpus_per_trial
        self._core, self._share = Demand(cpus_per_trial), Demand(cpus_per_trial, share)
        self._gpu_from, self._most, self._growth = gpu_from, max_concurrent, growth
        self._may_grow_to = max_concurrent if may_grow and max_concurrent and not growth else 0
        self._ask_cluster, self._clock = ask_cluster, clock
        self._taken: dict[str, Slot] = {}
        self._free: list[Slot] = []
        self.core_seconds = 0.0
        self._gpus_missed_since: float | None = None
        self._gave_up_on_gpus = False
        self._asked_at, self._seen = clock(), ask_cluster()
        if not self._reach(self._core):
            raise UsageError(
                f"`cpus_per_trial` {cpus_per_trial:g}: no node of the cluster has that many CPUs "
                f"({max((node.cpus for node in self._seen), default=0):g} at most); ask for fewer"
            )
        if gpus_per_trial and not self._reach(self._share):
            raise UsageError(
                f"`gpus_per_trial` {gpus_per_trial:g}: no node of the cluster can give a trial this share together "
                f"with its {cpus_per_trial:g} CPUs (most GPUs of a node: "
                f"{max((node.gpus for node in self._seen), default=0):g}); use a smaller share, or 0"
            )

    @property
    def nodes(self) -> list[Node]:
        """The cluster's nodes, at most ``CAPACITY_AGE`` old."""
        if self._clock() - self._asked_at >= CAPACITY_AGE:
            self.look()
        return self._seen

    def look(self) -> None:
        """Query the cluster now."""
        now = self._clock()
        self.core_seconds += (now - self._asked_at) * sum(node.cpus for node in self._seen)
        self._asked_at, self._seen = now, self._ask_cluster()
        if any(node.slots(self._share) for node in self._seen):
            self._gpus_missed_since, self._gave_up_on_gpus = None, False
        elif not self._under_way(self._share):
            self._gpus_missed_since = None
        elif self._gpus_missed_since is None:
            self._gpus_missed_since = now
        elif now - self._gpus_missed_since >= GPU_PATIENCE:
            self._gave_up_on_gpus = True

    @property
    def gpu_slots(self) -> int:
        """How many trials can have a GPU share now."""
        return self._slots(self._share) if self.uses_gpus else 0

    @property
    def uses_gpus(self) -> bool:
        """Whether costly trials get a GPU share."""
        if self._share.gpus <= 0:
            return False
        return self._slots(self._share) > 0 or (not self._gave_up_on_gpus and self._reach(self._share) > 0)

    @property
    def limit(self) -> int:
        """Most trials to have under way now: a trial that waits for a slot learns nothing from those that end."""
        return self._capped(max(1, self._wanted(self._core)))

    @property
    def reach(self) -> int:
        """Most trials to have under way once the cluster has grown."""
        return self._capped(max(1, self._reach(self._core)))

    def has_room(self) -> bool:
        """Return whether to start one more trial."""
        return len(self._taken) < self.limit

    def place(self, trial_id: str, multiply_adds: float) -> Slot:
        """Choose a new trial's slot; the trial counts as under way until ``release``.

        Args:
            trial_id: any name, not under way yet.
            multiply_adds: cost of its model, in multiply-adds per window.
        """
        demand = self._core
        if self.uses_gpus:
            shares = self._wanted(self._share)
            cores = self._wanted(self._core) - shares
            share_is_free = self._under_way(self._share) < shares
            core_is_free = self._under_way(self._core) < cores
            if share_is_free and (multiply_adds >= self._gpu_from or not core_is_free):
                demand = self._share
        slot = self._taken[trial_id] = self._slot(demand)
        return slot

    def release(self, trial_id: str) -> None:
        """Free the slot of a trial that has ended."""
        slot = self._taken.pop(trial_id, None)
        if slot is not None:
            self._free.append(slot)

    def has_share(self, trial_id: str) -> bool:
        """Return whether a trial under way asks for a GPU share."""
        slot = self._taken.get(trial_id)
        return slot is not None and slot.demand.gpus > 0

    def is_stranded(self, trial_id: str) -> bool:
        """Return whether a trial waits for a GPU that will not come: the last one was lost, or none ever started."""
        return self.has_share(trial_id) and not self.uses_gpus

    def _capped(self, trials: int) -> int:
        return min(trials, self._most or trials)

    def _under_way(self, demand: Demand) -> int:
        return sum(slot.demand == demand for slot in self._taken.values())

    def _slot(self, demand: Demand) -> Slot:
        # The slot freed last still has its process.
        for slot in reversed(self._free):
            if slot.demand == demand:
                self._free.remove(slot)
                return slot
        return Slot(demand, len(self._taken) + len(self._free))

    def _slots(self, demand: Demand) -> int:
        return sum(node.slots(demand) for node in self.nodes)

    def _reach(self, demand: Demand) -> int:
        up = self._slots(demand)
        if self._growth:
            return max(up, self._growth.slots(demand))
        return max(up, self._may_grow_to) if demand == self._core else up

    def _wanted(self, demand: Demand) -> int:
        # An autoscaler reacts to trials without a slot. Twice as many trials as slots doubles the cluster each time,
        # and keeps the sampler from spending the whole job on its first guesses.
        return min(2 * max(1, self._slots(demand)), self._reach(demand))
