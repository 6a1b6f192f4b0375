"""Tuning jobs on clusters of several nodes that come and go while the job runs."""

import contextlib
import datetime as dt
import random
import time
from pathlib import Path

import pytest
from optuna.trial import TrialState
from ray.cluster_utils import Cluster
from running_job import start_job, study_of, wait_for_end, wait_for_finished, wait_until

pytestmark = pytest.mark.slow


class Nodes(Cluster):
    """Nodes without a dashboard, which takes longer to start than the rest."""

    def add_node(self, **settings):
        return super().add_node(include_dashboard=False, **settings)


@pytest.fixture
def nodes():
    """A cluster without nodes: the first node added is its head. Its GPUs are fake."""
    cluster = Nodes()
    yield cluster
    cluster.shutdown()


def ended(directory):
    """Return the trials that completed, and those that genuinely failed."""
    trials = study_of(directory).trials
    assert all(trial.state.is_finished() for trial in trials)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    failed = [trial for trial in trials if trial.state == TrialState.FAIL]
    return complete, [trial for trial in failed if trial.user_attrs["reason"] != "interrupted"]


def span(trial):
    return dt.datetime.fromisoformat(
        trial.user_attrs["started"]
    ).timestamp(), trial.datetime_complete.timestamp()


def most_at_once(trials):
    """Return the largest number of trials that were running at the same moment."""
    spans = [span(trial) for trial in trials]
    return max((sum(start <= moment < end for start, end in spans) for moment, _ in spans), default=0)


def test_gpus_and_cores_are_used_at_the_same_time(nodes, tmp_path):
    nodes.add_node(num_cpus=4, num_gpus=2)
    process = start_job(
        tmp_path, "--num-samples", "16", "--gpus-per-trial", "1", "--gpu-from", "0.3", address=nodes.address
    )
    code, errors = wait_for_end(process)
    assert code == 0, errors
    complete, failed = ended(tmp_path)
    assert (len(complete), failed) == (16, [])
    on_gpus = [trial for trial in complete if trial.user_attrs["gpus"] == 1]
    on_cores = [trial for trial in complete if trial.user_attrs["gpus"] == 0]
    together = [
        (one.number, other.number)
        for one in on_gpus
        for other in on_cores
        if max(span(one)[0], span(other)[0]) < min(span(one)[1], span(other)[1])
    ]
    assert together
    assert most_at_once(on_gpus) <= 2
    assert most_at_once(complete) > 2


def test_cores_of_a_gpu_node_are_left_to_its_gpu(nodes, tmp_path):
    nodes.add_node(num_cpus=1, num_gpus=1)
    nodes.add_node(num_cpus=1)
    # A small trial may take the only core of the node with the GPU: the GPU must not wait for it until the job ends.
    process = start_job(
        tmp_path, "--num-samples", "30", "--gpus-per-trial", "1", "--gpu-from", "0.3", address=nodes.address
    )
    code, errors = wait_for_end(process)
    assert code == 0, errors
    complete, failed = ended(tmp_path)
    assert (len(complete), failed) == (30, [])
    on_the_gpu = [span(trial) for trial in complete if trial.user_attrs["gpus"] == 1]
    on_cores = [span(trial) for trial in complete if trial.user_attrs["gpus"] == 0]
    assert min(on_the_gpu)[0] < sorted(on_cores)[len(on_cores) // 2][0]
    assert most_at_once(complete) == 2


def trains_on(node):
    """Return whether a trial's step is running in a process of that node."""
    raylet = node.all_processes["raylet"][0].process.pid
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # the process has ended in the meantime
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == raylet and "Trainable.train" in (process / "cmdline").read_text():
                return True
    return False


def test_a_node_that_joins_is_used_and_one_that_is_killed_costs_no_trial(nodes, tmp_path):
    nodes.add_node(num_cpus=1)
    process = start_job(tmp_path, "--num-samples", "24", address=nodes.address)
    wait_for_finished(tmp_path, 1, process)
    joined = nodes.add_node(num_cpus=2)
    wait_until(lambda: trains_on(joined), process)
    time.sleep(random.uniform(0, 2))
    nodes.remove_node(joined, allow_graceful=False)
    code, errors = wait_for_end(process)
    assert code == 0, errors
    complete, failed = ended(tmp_path)
    assert (len(complete), failed) == (24, [])
    assert len(list((tmp_path / "checkpoints").iterdir())) == 24


def test_a_trial_whose_gpu_is_gone_for_good_goes_on_on_a_core(nodes, tmp_path):
    nodes.add_node(num_cpus=1)
    gpu_node = nodes.add_node(num_cpus=1, num_gpus=1)
    process = start_job(
        tmp_path, "--num-samples", "10", "--gpus-per-trial", "1", "--gpu-from", "0", address=nodes.address
    )
    wait_for_finished(tmp_path, 3, process)
    nodes.remove_node(gpu_node, allow_graceful=False)
    code, errors = wait_for_end(process)
    assert code == 0, errors
    complete, failed = ended(tmp_path)
    assert (len(complete), failed) == (10, [])
    assert complete[-1].user_attrs["gpus"] == 0
    # Ray takes seconds to notice that a node is gone: a trial may have been put back more than once by then.
    trials = study_of(tmp_path).trials
    interrupted = [trial.number for trial in trials if trial.state == TrialState.FAIL]
    reruns = [trial.user_attrs["rerun_of"] for trial in trials if "rerun_of" in trial.user_attrs]
    assert sorted(reruns) == interrupted
