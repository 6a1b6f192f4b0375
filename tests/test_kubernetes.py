"""The manifests for KubeRay: the parts that Ray and this project can check, and the settings that they must keep."""

from importlib.metadata import version

import pytest
import yaml
from image import ROOT, VENV, settings
from ray._private.ray_constants import DEFAULT_DASHBOARD_AGENT_LISTEN_PORT
from ray.dashboard.http_server_agent import PUBLIC_EXACT_PATHS
from ray.serve.schema import ServeDeploySchema

from forecast.config import parse_settings
from forecast.version import installed_version
from serve_app.flags import HAPROXY_SCRIPT, HAPROXY_VARIABLE, SERVE_FLAGS
from serve_app.options import API_KEY_VARIABLE, ServeOptions
from tune_jobs.options import TuneOptions
from tune_jobs.pareto import build_parser

MANIFESTS = ROOT / "deploy" / "kubernetes"
SERVICE, JOB = (yaml.safe_load((MANIFESTS / f"{name}.yaml").read_text()) for name in ("rayservice", "rayjob"))
CLUSTERS = [SERVICE["spec"]["rayClusterConfig"], JOB["spec"]["rayClusterSpec"]]
AGENT = {"path": "/api/healthz", "port": 52365}
"""Where the agent of each Ray node reports its health."""


def groups(cluster):
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def containers(cluster):
    return [container for group in groups(cluster) for container in group["template"]["spec"]["containers"]]


def test_ray_s_agents_answer_the_probes_without_a_token():
    assert AGENT["path"] in PUBLIC_EXACT_PATHS
    assert AGENT["port"] == DEFAULT_DASHBOARD_AGENT_LISTEN_PORT


def test_ray_accepts_the_serve_section_and_the_application_its_options():
    config = ServeDeploySchema.model_validate(yaml.safe_load(SERVICE["spec"]["serveConfigV2"]))
    (application,) = config.applications
    options = parse_settings(ServeOptions, application.args)
    assert options.require_api_key
    assert options.checkpoint.startswith("/data/")
    assert (config.http_options.host, config.http_options.port) == ("0.0.0.0", 9010)


def test_it_serves_as_serve_config_does():
    ours = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    ServeDeploySchema.model_validate(ours)
    theirs = yaml.safe_load(SERVICE["spec"]["serveConfigV2"])
    for config in (ours, theirs):
        del config["applications"][0]["args"]
    assert ours == theirs


def test_every_node_of_the_service_has_the_applications_flags_and_the_key():
    for container in containers(CLUSTERS[0]):
        given = {item["name"]: item.get("value") for item in container["env"]}
        assert {name: given[name] for name in SERVE_FLAGS} == SERVE_FLAGS
        assert given[HAPROXY_VARIABLE] == f"{VENV}/bin/{HAPROXY_SCRIPT}"
        assert API_KEY_VARIABLE in given
        assert {"containerPort": 9010, "name": "serve"} in container["ports"]


def test_the_jobs_command_is_one_that_there_is():
    command = JOB["spec"]["entrypoint"].split()
    assert command[:3] == ["python", "-m", "tune_jobs.pareto"]
    options = parse_settings(TuneOptions, vars(build_parser().parse_args(command[3:])))
    assert (options.address, options.resume) == ("auto", True)
    # KubeRay does not report which nodes it could start.
    assert options.max_concurrent == sum(
        group["maxReplicas"] * int(group["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"])
        for group in CLUSTERS[1]["workerGroupSpecs"]
        if group["groupName"] == "cpu"
    )
    mounts = [mount for mount in containers(CLUSTERS[1])[0]["volumeMounts"] if not mount.get("readOnly")]
    for path in (str(options.output_dir), options.storage_path):
        assert any(path.startswith(f"{mount['mountPath']}/") for mount in mounts)


@pytest.mark.parametrize("cluster", CLUSTERS, ids=["service", "job"])
def test_every_node_runs_the_same_ray_as_the_image_with_a_token_and_confined(cluster):
    assert cluster["rayVersion"] == version("ray")
    assert cluster["authOptions"] == {"mode": "token"}
    # The restricted Pod Security Standard requires this.
    for group in groups(cluster):
        context = group["template"]["spec"]["securityContext"]
        assert context["runAsNonRoot"]
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in containers(cluster):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }
        name, _, tag = container["image"].partition(":")
        assert (name, tag.removesuffix("-gpu")) == ("pareto-price-forecaster", installed_version())
        assert tag.endswith("-gpu") == ("nvidia.com/gpu" in container["resources"]["requests"])
        # KubeRay's default probes run a program that the image does not have.
        assert container["livenessProbe"]["httpGet"] == AGENT
        assert container["readinessProbe"]["httpGet"] in (AGENT, {"path": "/-/healthz", "port": "serve"})
        # Ray falls back to the disk if its object store is larger than /dev/shm.
        assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
    for group in groups(cluster):
        (shared,) = (volume for volume in group["template"]["spec"]["volumes"] if volume["name"] == "shm")
        gibibytes = int(shared["emptyDir"]["sizeLimit"].removesuffix("Gi"))
        assert gibibytes * 2**30 > int(settings("runtime")["RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES"])
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
