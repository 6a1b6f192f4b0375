"""The clusters that ``ray up`` makes, checked with Ray's own validation, and the settings that they must keep."""

import json
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
AWS, GOOGLE = "cluster.yaml", "cluster-gcp.yaml"


def read(name):
    return yaml.safe_load((ROOT / name).read_text())


@pytest.fixture(params=[AWS, GOOGLE])
def cluster_file(request):
    return read(request.param)


def heads_and_workers(cluster_file):
    """Return the head's node type, and the workers' node types by name."""
    types = dict(cluster_file["available_node_types"])
    return types.pop(cluster_file["head_node_type"]), types


def test_ray_accepts_it(cluster_file):
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(cluster_file))


def test_both_have_the_same_types_of_nodes_and_differ_in_nothing_but_the_cloud():
    def shared(name):
        cluster = read(name)
        for of_the_cloud in ("provider", "setup_commands"):
            del cluster[of_the_cloud]
        for node_type in cluster["available_node_types"].values():
            del node_type["node_config"], node_type["resources"]
        return cluster

    assert shared(AWS) == shared(GOOGLE)
    library = {AWS: "boto3", GOOGLE: "google-api-python-client"}
    aws, google = ("\n".join(read(name)["setup_commands"]) for name in library)
    assert aws.replace(library[AWS], library[GOOGLE]) == google


def test_all_workers_may_go_to_zero(cluster_file):
    _, workers = heads_and_workers(cluster_file)
    assert {"cpu_worker", "gpu_worker"} <= set(workers)
    for worker in workers.values():
        assert worker["min_workers"] == 0 < worker["max_workers"]


def test_on_aws_the_head_is_on_demand_and_all_workers_are_spot():
    head, workers = heads_and_workers(read(AWS))
    assert "InstanceMarketOptions" not in head["node_config"]
    for worker in workers.values():
        assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


def test_on_google_cloud_the_head_is_on_demand_and_all_workers_are_spot_and_leave_no_disk():
    head, workers = heads_and_workers(read(GOOGLE))
    assert "scheduling" not in head["node_config"]
    for worker in workers.values():
        scheduling = worker["node_config"]["scheduling"]
        assert scheduling["provisioningModel"] == "SPOT"
        assert scheduling["instanceTerminationAction"] == "DELETE"
        assert all(disk["autoDelete"] for disk in worker["node_config"]["disks"])


def test_on_aws_there_are_gpu_workers_beside_cpu_workers():
    _, workers = heads_and_workers(read(AWS))
    assert workers["cpu_worker"]["node_config"]["InstanceType"].startswith("c")
    assert workers["gpu_worker"]["node_config"]["InstanceType"].startswith("g")


def test_on_google_cloud_resources_are_those_of_the_machine_types():
    for node_type in read(GOOGLE)["available_node_types"].values():
        config = node_type["node_config"]
        expected = {"CPU": int(config["machineType"].rpartition("-")[2])}
        if gpus := sum(gpu["acceleratorCount"] for gpu in config.get("guestAccelerators", [])):
            expected["GPU"] = gpus
            assert config["scheduling"]["onHostMaintenance"] == "TERMINATE"
        assert node_type["resources"] == expected


def test_on_google_cloud_disks_are_in_the_clusters_zone_and_accounts_in_its_project():
    cluster = read(GOOGLE)
    configs = json.dumps(cluster["available_node_types"])
    assert set(re.findall(r"zones/([^/]+)/", configs)) == {cluster["provider"]["availability_zone"]}
    assert set(re.findall(r"@([^.]+)\.iam", configs)) == {cluster["provider"]["project_id"]}


def test_every_node_may_reach_the_bucket_and_workers_nothing_else():
    head, workers = heads_and_workers(read(AWS))
    assert head["node_config"]["IamInstanceProfile"] == {"Name": "price-forecaster-head"}
    for worker in workers.values():
        assert worker["node_config"]["IamInstanceProfile"] == {"Name": "price-forecaster-worker"}
    _, workers = heads_and_workers(read(GOOGLE))
    for worker in workers.values():
        (account,) = worker["node_config"]["serviceAccounts"]
        assert account["scopes"] == ["https://www.googleapis.com/auth/devstorage.read_write"]


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
