"""The manifests: the parts that Kubernetes' schemas, Ray and this project can check, and the settings that they must
keep."""

from importlib.metadata import version

import kubernetes_validate
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
from tune_jobs.update import build_parser as build_update_parser
from tune_jobs.update_options import UpdateOptions

MANIFESTS = ROOT / "deploy" / "kubernetes"
SERVICE, JOB, MODELS = (
    yaml.safe_load((MANIFESTS / f"{name}.yaml").read_text())
    for name in ("rayservice", "rayjob", "rayservice-models")
)
UPDATE = {
    document["kind"]: document for document in yaml.safe_load_all((MANIFESTS / "cronjob.yaml").read_text())
}
"""What the update needs, by kind."""
KUBERNETES = "1.34"
"""The version whose schemas check the manifests."""
POD = UPDATE["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]
CLUSTERS = [
    SERVICE["spec"]["rayClusterConfig"],
    JOB["spec"]["rayClusterSpec"],
    MODELS["spec"]["rayClusterConfig"],
]
AGENT = {"path": "/api/healthz", "port": 52365}
"""Where the agent of each Ray node reports its health."""
CONFINED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def groups(cluster):
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def containers(cluster):
    return [container for group in groups(cluster) for container in group["template"]["spec"]["containers"]]


def test_ray_s_agents_answer_the_probes_without_a_token():
    assert AGENT["path"] in PUBLIC_EXACT_PATHS
    assert AGENT["port"] == DEFAULT_DASHBOARD_AGENT_LISTEN_PORT


def mounted(container, pod):
    """The claim that each path of a container is on."""
    claims = {
        volume["name"]: volume["persistentVolumeClaim"]["claimName"]
        for volume in pod["spec"]["volumes"]
        if "persistentVolumeClaim" in volume
    }
    return {
        mount["mountPath"]: claims[mount["name"]]
        for mount in container["volumeMounts"]
        if mount["name"] in claims
    }


@pytest.mark.parametrize(
    "manifest",
    [
        *UPDATE.values(),
        *(
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **group["template"]}
            for cluster in CLUSTERS
            for group in groups(cluster)
        ),
    ],
    ids=lambda manifest: manifest["kind"],
)
def test_kubernetes_schemas_accept_everything_outside_of_kuberay(manifest):
    kubernetes_validate.validate({"metadata": {"name": "pod"}, **manifest}, KUBERNETES, strict=True)


@pytest.mark.parametrize("service", [SERVICE, MODELS], ids=["service", "models"])
def test_ray_accepts_the_serve_section_and_the_application_its_options(service):
    config = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    (application,) = config.applications
    options = parse_settings(ServeOptions, application.args)
    assert options.require_api_key
    assert options.checkpoint.startswith("/data/")
    assert (config.http_options.host, config.http_options.port) == ("0.0.0.0", 9010)


@pytest.mark.parametrize("service", [SERVICE, MODELS], ids=["service", "models"])
def test_it_serves_as_serve_config_does(service):
    ours = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    ServeDeploySchema.model_validate(ours)
    theirs = yaml.safe_load(service["spec"]["serveConfigV2"])
    for config in (ours, theirs):
        del config["applications"][0]["args"]
    assert ours == theirs


@pytest.mark.parametrize("service", [SERVICE, MODELS], ids=["service", "models"])
def test_every_node_of_the_service_has_the_applications_flags_and_the_key(service):
    for container in containers(service["spec"]["rayClusterConfig"]):
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


def test_the_update_is_a_command_that_there_is_and_its_models_are_those_of_the_server():
    (update,) = POD["spec"]["containers"]
    assert update["args"][:3] == ["python", "-m", "tune_jobs.update"]
    options = parse_settings(UpdateOptions, vars(build_update_parser().parse_args(update["args"][3:])))
    # Another source falls back on prices that are years old.
    assert options.source == "yahoo"
    (server,) = containers(CLUSTERS[2])
    (head,) = groups(CLUSTERS[2])
    (application,) = yaml.safe_load(MODELS["spec"]["serveConfigV2"])["applications"]
    assert application["args"]["checkpoint"] == str(options.models)
    claim = UPDATE["PersistentVolumeClaim"]
    assert mounted(update, POD) == mounted(server, head["template"]) == {"/data": claim["metadata"]["name"]}
    # The root of a volume has a directory `lost+found`, which would be a model's name.
    assert str(options.models).startswith("/data/")
    # Even readers of the ledger write to a file next to it.
    assert not any(mount.get("readOnly") for mount in server["volumeMounts"])


def test_the_users_of_the_ledger_are_on_one_node_and_one_update_runs_at_a_time():
    assert UPDATE["PersistentVolumeClaim"]["spec"]["accessModes"] == ["ReadWriteOnce"]
    assert UPDATE["CronJob"]["spec"]["concurrencyPolicy"] == "Forbid"
    assert UPDATE["CronJob"]["spec"]["timeZone"] == "Etc/UTC"
    for pod in (POD, *(group["template"] for group in groups(CLUSTERS[2]))):
        (near,) = pod["spec"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        # A pod that matches its own term may be the first.
        assert near["labelSelector"]["matchLabels"] == pod["metadata"]["labels"]
        assert near["topologyKey"] == "kubernetes.io/hostname"


def test_the_update_is_confined_and_runs_the_image_of_this_version():
    assert POD["spec"]["securityContext"] == groups(CLUSTERS[2])[0]["template"]["spec"]["securityContext"]
    (update,) = POD["spec"]["containers"]
    assert update["securityContext"] == CONFINED
    assert not POD["spec"]["automountServiceAccountToken"]
    assert update["image"] == f"pareto-price-forecaster:{installed_version()}"
    assert {"name": "shm", "mountPath": "/dev/shm"} in update["volumeMounts"]


@pytest.mark.parametrize("cluster", CLUSTERS, ids=["service", "job", "models"])
def test_every_node_runs_the_same_ray_as_the_image_with_a_token_and_confined(cluster):
    assert cluster["rayVersion"] == version("ray")
    assert cluster["authOptions"] == {"mode": "token"}
    # The restricted Pod Security Standard requires this.
    for group in groups(cluster):
        context = group["template"]["spec"]["securityContext"]
        assert context["runAsNonRoot"]
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in containers(cluster):
        assert container["securityContext"] == CONFINED
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
