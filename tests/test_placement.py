"""The resources of each trial and the number of trials under way, on simulated clusters."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecast.config import TrainConfig
from forecast.errors import UsageError
from forecast.model.network import multiply_adds
from tune_jobs.placement import (
    GPU_PATIENCE,
    Demand,
    Growth,
    Node,
    Placement,
    SlotResources,
    read_growth,
)
from tune_jobs.tuner import startup_trials

COSTLY, CHEAP = 100, 1


class Cluster:
    """A simulated cluster whose nodes come and go, and a clock that the test sets."""

    def __init__(self, *nodes):
        self.nodes, self.seconds = list(nodes), 0.0

    def placement(self, **options):
        options = {"gpu_from": 10} | options
        return Placement(ask_cluster=lambda: list(self.nodes), clock=lambda: self.seconds, **options)

    def change(self, *nodes):
        self.nodes, self.seconds = list(nodes), self.seconds + 2


def start_all(placement, costs):
    """Start trials while there is room, and return what each was given."""
    given = []
    for number, cost in enumerate(costs):
        if not placement.has_room():
            break
        given.append(placement.place(f"t{number}", cost).demand)
    return given


SHARE, CORE = Demand(1, 0.5), Demand(1)


def test_costly_trials_get_the_gpu_shares_and_cheap_ones_the_cores():
    placement = Cluster(Node(4, 0), Node(2, 1)).placement(gpus_per_trial=0.5)
    given = start_all(placement, [COSTLY, CHEAP, COSTLY, CHEAP, CHEAP, CHEAP, COSTLY])
    assert given == [SHARE, CORE, SHARE, CORE, CORE, CORE]


def test_no_core_waits_for_costly_trials_and_no_share_for_cheap_ones():
    placement = Cluster(Node(3, 0), Node(2, 1)).placement(gpus_per_trial=0.5)
    assert start_all(placement, [COSTLY] * 9) == [SHARE, SHARE, CORE, CORE, CORE]
    placement = Cluster(Node(3, 0), Node(2, 1)).placement(gpus_per_trial=0.5)
    assert start_all(placement, [CHEAP] * 9) == [CORE, CORE, CORE, SHARE, SHARE]


def test_the_next_trial_gets_the_slot_that_was_left_with_its_process():
    placement = Cluster(Node(4, 1)).placement(gpus_per_trial=1)
    first = [placement.place(f"t{number}", cost) for number, cost in enumerate([COSTLY, CHEAP, CHEAP])]
    assert len({SlotResources(slot) for slot in first}) == 3
    placement.release("t2")
    placement.release("t0")
    assert placement.place("large", COSTLY) == first[0]
    assert placement.place("small", CHEAP) == first[2]
    assert SlotResources(first[0]).required_resources == {"CPU": 1, "GPU": 1}


def test_no_trial_asks_for_a_gpu_where_there_is_none_or_none_is_wanted():
    assert start_all(Cluster(Node(2)).placement(), [COSTLY] * 2) == [CORE] * 2
    assert start_all(Cluster(Node(2, 2)).placement(gpus_per_trial=0), [COSTLY] * 2) == [CORE] * 2


def test_the_number_under_way_follows_the_cluster():
    cluster = Cluster(Node(2))
    placement = cluster.placement()
    assert placement.limit == 2
    cluster.change(Node(2), Node(16))
    assert placement.limit == 18
    cluster.change(Node(1))
    assert placement.limit == 1


def test_a_cluster_that_can_grow_is_asked_for_twice_what_it_has_until_it_has_it_all():
    growth = Growth(Node(8), ((Node(16), 8), (Node(4, 1), 4)), workers=10)
    cluster = Cluster(Node(8))
    placement = cluster.placement(growth=growth)
    assert placement.limit == 16
    # Ten workers at most: eight of 16 cores and two of 4.
    assert placement.reach == 8 + 8 * 16 + 2 * 4
    assert placement.place("first", COSTLY).demand.gpus == 0.25
    cluster.change(Node(8), *[Node(16)] * 8, Node(4, 1), Node(4, 1))
    assert placement.limit == placement.reach


def test_more_trials_at_a_time_than_the_cluster_holds_are_started_only_where_it_may_grow():
    assert len(start_all(Cluster(Node(9)).placement(max_concurrent=5), [CHEAP] * 9)) == 5
    assert len(start_all(Cluster(Node(2)).placement(max_concurrent=5), [CHEAP] * 9)) == 2
    cluster = Cluster(Node(2))
    placement = cluster.placement(max_concurrent=5, may_grow=True)
    assert placement.reach == 5
    assert len(start_all(placement, [CHEAP] * 9)) == 4
    cluster.change(Node(2), Node(2))
    assert placement.limit == 5
    assert Cluster(Node(2)).placement(may_grow=True).limit == 2


def test_a_trial_does_not_wait_for_ever_for_a_gpu_that_the_autoscaler_cannot_start():
    cluster = Cluster(Node(2))
    placement = cluster.placement(growth=Growth(Node(2), ((Node(4, 1), 1),), 1))
    placement.place("first", COSTLY)
    placement.look()
    cluster.seconds += GPU_PATIENCE - 1
    placement.look()
    assert not placement.is_stranded("first")
    cluster.seconds += 1
    placement.look()
    assert placement.is_stranded("first")
    assert placement.place("second", COSTLY).demand == CORE
    # The instance arrives after all: the next trial may use it.
    cluster.change(Node(2), Node(4, 1))
    assert placement.place("third", COSTLY).demand.gpus == 0.25


def test_a_trial_is_stranded_when_the_last_gpu_it_could_have_is_gone():
    cluster = Cluster(Node(2), Node(2, 1))
    placement = cluster.placement()
    placement.place("on a share", COSTLY)
    placement.place("on a core", CHEAP)
    assert not placement.is_stranded("on a share")
    cluster.change(Node(2))
    assert placement.is_stranded("on a share")
    assert not placement.is_stranded("on a core")
    assert placement.place("next", COSTLY).demand == CORE


def test_a_trial_that_no_single_node_can_hold_is_refused_though_all_together_could():
    cluster = Cluster(Node(2, 1), Node(2, 1))
    with pytest.raises(UsageError, match=r"`cpus_per_trial` 4: no node .* \(2 at most\)"):
        cluster.placement(cpus_per_trial=4)
    with pytest.raises(UsageError, match=r"`gpus_per_trial` 2: no node .* \(most GPUs of a node: 1\)"):
        cluster.placement(gpus_per_trial=2)
    assert cluster.placement(gpus_per_trial=2, growth=Growth(Node(2, 1), ((Node(2, 2), 1),), 1)).uses_gpus


def test_core_seconds_are_those_of_the_cluster_as_it_was():
    cluster = Cluster(Node(2))
    placement = cluster.placement()
    cluster.change(Node(2), Node(4))
    placement.look()
    cluster.change(Node(2))
    placement.look()
    assert placement.core_seconds == 2 * 2 + 2 * 6


@given(
    cpus=st.integers(0, 64),
    gpus=st.integers(0, 8),
    share=st.sampled_from([0.1, 0.2, 0.25, 0.3, 0.5, 1, 2, 3]),
)
def test_a_node_is_never_given_more_than_it_has(cpus, gpus, share):
    slots = Node(cpus, gpus).slots(Demand(1, share))
    assert slots <= cpus
    assert slots * share <= gpus + 1e-6
    # One more would not fit: either the cores are used up, or no single GPU has such a share left.
    left_on_each = 1 - int(1 / share + 1e-9) * share if share <= 1 else 1
    assert slots == cpus or left_on_each < share or share > gpus - slots * share


def test_what_ray_up_leaves_on_the_head_is_what_the_cluster_can_grow_to(tmp_path):
    path = tmp_path / "ray_bootstrap_config.yaml"
    head = {"resources": {"CPU": 8}, "max_workers": 0}
    kinds = {"head": head, "gpu": {"resources": {"CPU": 4, "GPU": 1}, "max_workers": 3}}
    path.write_text(json.dumps({"available_node_types": kinds, "head_node_type": "head", "max_workers": 2}))
    growth = read_growth(path)
    assert growth == Growth(Node(8), ((Node(4, 1), 3),), 2)
    assert growth.slots(Demand(1)) == 16
    assert growth.slots(Demand(1, 0.5)) == 4
    assert read_growth(tmp_path / "nothing") is None
    path.write_text("something: else")
    assert read_growth(path) is None


@pytest.mark.parametrize(
    ("at_a_time", "samples", "expected"), [(2, 64, 10), (100, 300, 75), (100, 1000, 100), (100, 20, 10)]
)
def test_the_sampler_waits_for_as_many_as_run_at_a_time_but_no_longer_than_a_quarter_of_the_job(
    at_a_time, samples, expected
):
    assert startup_trials(at_a_time, samples) == expected


def test_a_models_cost_is_that_of_its_gates():
    assert multiply_adds(TrainConfig(sequence_length=2, hidden_size=32, num_layers=1)) == 2 * 4 * 32 * 33
    assert multiply_adds(TrainConfig(sequence_length=60, hidden_size=64, num_layers=2)) == 60 * 4 * 64 * (
        65 + 128
    )
