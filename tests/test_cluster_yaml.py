"""``cluster.yaml`` by Ray's own validation, and what it must not lose."""

from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def cluster_file():
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_ray_accepts_it(cluster_file):
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(cluster_file))


def test_the_head_is_on_demand_and_all_workers_are_spot_and_may_go_to_zero(cluster_file):
    types = cluster_file["available_node_types"]
    head = types.pop(cluster_file["head_node_type"])
    assert "InstanceMarketOptions" not in head["node_config"]
    assert len(types) >= 2
    for worker in types.values():
        assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert worker["min_workers"] == 0 < worker["max_workers"]


def test_there_are_gpu_workers_beside_cpu_workers(cluster_file):
    families = {
        node["node_config"]["InstanceType"][0] for node in cluster_file["available_node_types"].values()
    }
    assert {"c", "g"} <= families


@pytest.mark.parametrize("commands", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_every_node_starts_with_token_authentication_and_the_applications_flags(cluster_file, commands):
    start = cluster_file[commands][-1]
    assert "-m serve_app flags" in start
    assert start.index("serve_app flags") < start.index("ray start")
    assert "RAY_AUTH_MODE=token" in start
    assert start.index("RAY_AUTH_MODE") < start.index("ray start")


def test_every_node_gets_the_project_and_the_secret(cluster_file):
    assert cluster_file["file_mounts"]["/home/ubuntu/forecaster"] == "."
    assert cluster_file["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"
    assert any("--editable ~/forecaster" in command for command in cluster_file["setup_commands"])


def test_the_dashboard_is_not_open_to_the_world(cluster_file):
    assert "--dashboard-host=127.0.0.1" in cluster_file["head_start_ray_commands"][-1]
