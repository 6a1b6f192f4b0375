"""``ray up`` to ``ray down`` over SSH: ``cluster.yaml`` on two hosts instead of a cloud, with the README's commands."""

import json
import sys
from pathlib import Path

import pytest
import yaml
from running_job import study_of
from two_hosts import HEAD, USER, WORKER, two_hosts, what_is_missing

from forecast import Predictor

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[1]
WAIT_FOR_BOTH = """
import ray, time
ray.init("auto", log_to_driver=False, logging_level="ERROR")
while sum(node["Alive"] for node in ray.nodes()) < 2:
    time.sleep(0.2)
"""


@pytest.fixture
def hosts(tmp_path):
    if missing := what_is_missing():
        pytest.skip(missing)
    with two_hosts(tmp_path, ROOT) as hosts:
        yield hosts


def write_cluster_file(hosts):
    """Write ``cluster.yaml`` with two hosts instead of its cloud; they use this test's environment as it is."""
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    for of_the_cloud in ("available_node_types", "head_node_type", "max_workers"):
        del cluster[of_the_cloud]
    cluster["provider"] = {"type": "local", "head_ip": HEAD, "worker_ips": [WORKER]}
    cluster["auth"] = {"ssh_user": USER, "ssh_private_key": str(hosts.key)}
    cluster["setup_commands"] = [
        f"ln -sfn {sys.prefix} ~/venv",
        "echo 'export PYTHONPATH=$HOME/forecaster' >> ~/.bashrc",
        next(command for command in cluster["setup_commands"] if "export PATH" in command),
    ]
    head, worker = (
        cluster[commands] for commands in ("head_start_ray_commands", "worker_start_ray_commands")
    )
    # The autoscaler needs several updates to start a worker; by default they are five seconds apart.
    head[-1] = f"export AUTOSCALER_UPDATE_INTERVAL_S=1; {head[-1]} --num-cpus=1"
    worker[-1] += " --num-cpus=1"
    path = hosts.place / "cluster.yaml"
    path.write_text(yaml.safe_dump(cluster))
    return path


def write_serve_config(hosts, checkpoint):
    """Write ``serve_config.yaml`` with a replica for each node."""
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    config["applications"][0]["args"] = {"checkpoint": str(checkpoint), "replicas": 2}
    path = hosts.place / "serve_config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def test_a_cluster_made_by_ray_up_tunes_on_both_nodes_and_each_serves_the_pick(hosts):
    cluster, artifacts = write_cluster_file(hosts), hosts.place / "artifacts"

    def ray(command, *arguments):
        # Version 2 of Ray's autoscaler, the default, never starts a worker of this provider.
        return hosts.run("ray", command, *arguments, cwd=ROOT, seconds=300, RAY_UP_enable_autoscaler_v2="0")

    hosts.run("ray", "get-auth-token", "--generate")
    ray("up", cluster, "--yes", "--disable-usage-stats")
    both = f"timeout 90 python -c '{WAIT_FOR_BOTH}' || {{ tail -n 60 /tmp/ray/session_latest/logs/monitor.*; exit 1; }}"
    tune = (
        "python -m tune_jobs.pareto --source snapshot --space small --num-samples 4 --members 1 --no-report"
    )
    ray("exec", cluster, f"{both} && {tune} --address auto --storage-path {hosts.place}/tune")
    ray("rsync-down", cluster, "~/artifacts/", f"{artifacts}/")
    assert {trial.user_attrs["node_ip"] for trial in study_of(artifacts).trials} == {HEAD, WORKER}

    pick = artifacts / "best_pareto_lstm.pt"
    ray("exec", cluster, f"serve deploy {write_serve_config(hosts, pick)}")
    window = [1000.0 + row for row in range(100)]
    forecast = Predictor(pick, "cpu").predict_next(window)
    for address in (HEAD, WORKER):
        retry = ("--fail", "--retry", "60", "--retry-delay", "1", "--retry-all-errors")
        body = json.dumps({"values": window})
        answer = hosts.run("curl", "--silent", *retry, "--data", body, f"http://{address}:9010/predict")
        assert json.loads(answer)["prediction"] == pytest.approx(forecast)

    ray("down", cluster, "--yes")
    # It ends the head, but leaves workers to their provider, and this provider cannot end them.
    assert "gcs_server" not in {process.name() for process in hosts.processes()}
