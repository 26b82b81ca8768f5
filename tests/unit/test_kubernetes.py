"""What `docker/kuberay/` says fits the rest; docs/deploying.md says what nobody has tried."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from starlette.datastructures import Headers

from laminar.config_file import validate_config
from service.api.app import create_app
from service.api.guard import Guard
from tests.unit.test_docker import (
    compose,
    docker,
    instructions,
    options_of,
    parameters,
    ray_options,
    stand_in,
    variables,
)

__all__ = ["docker", "stand_in"]  # fixtures

KUBERNETES = "1.34.0"


def manifests(docker: Path) -> list[dict[str, Any]]:
    found = []
    for path in sorted((docker / "kuberay").glob("*.yaml")):
        found += [tree for tree in yaml.safe_load_all(path.read_text()) if tree]
    return found


def of_kind(docker: Path, kind: str) -> dict[str, Any]:
    (found,) = [tree for tree in manifests(docker) if tree["kind"] == kind]
    return found


def pods(tree: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every pod template of a manifest."""
    if tree["kind"] == "Deployment":
        yield tree["spec"]["template"]
    elif tree["kind"] in ("RayCluster", "RayJob"):
        spec = tree["spec"].get("rayClusterSpec", tree["spec"])
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            yield group["template"]


def test_manifests_are_valid(docker: Path):
    """KubeRay's own kinds have no schema here: of those their pods are checked."""
    kinds = [tree["kind"] for tree in manifests(docker)]
    assert {"RayCluster", "RayJob", "Deployment", "Service", "PersistentVolumeClaim"} <= set(kinds)
    for tree in manifests(docker):
        if not tree["apiVersion"].startswith("ray.io/"):
            kubernetes_validate.validate(tree, KUBERNETES, strict=True)
        for pod in pods(tree):
            whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}} | {
                "spec": pod["spec"]
            }
            kubernetes_validate.validate(whole, KUBERNETES, strict=True)


def test_the_check_of_manifests_sees_mistakes(docker: Path):
    tree = of_kind(docker, "Deployment")
    tree["spec"]["replica"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(tree, KUBERNETES, strict=True)


def test_pods_are_confined_and_their_volumes_exist(docker: Path):
    claims = {t["metadata"]["name"] for t in manifests(docker)
              if t["kind"] == "PersistentVolumeClaim"}  # fmt: skip
    for tree in manifests(docker):
        for pod in pods(tree):
            spec = pod["spec"]
            assert spec["securityContext"]["runAsNonRoot"] is True
            names = {volume["name"] for volume in spec["volumes"]}
            for volume in spec["volumes"]:
                assert volume.get("persistentVolumeClaim", {}).get("claimName", "laminar-jobs") in (
                    claims
                )
            for container in spec["containers"]:
                assert container["resources"].keys() == {"requests", "limits"}
                assert container["securityContext"]["allowPrivilegeEscalation"] is False
                assert {mount["name"] for mount in container["volumeMounts"]} <= names


def test_ray_is_started_with_options_that_exist(docker: Path):
    """KubeRay turns `rayStartParams` into options of `ray start`."""
    keys = set()
    for kind in ("RayCluster", "RayJob"):
        tree = of_kind(docker, kind)
        spec = tree["spec"].get("rayClusterSpec", tree["spec"])
        assert set(spec) <= {"rayVersion", "headGroupSpec", "workerGroupSpecs"}
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            assert set(group) <= {
                "groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template",
            }  # fmt: skip
            assert all(isinstance(value, str) for value in group["rayStartParams"].values())
            keys |= {f"--{key}" for key in group["rayStartParams"]}
    assert keys
    assert keys <= ray_options()


def test_the_service_of_kubernetes_fits_the_cluster(docker: Path):
    deployment, service = of_kind(docker, "Deployment"), of_kind(docker, "Service")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["service.sh"]
    environment = {e["name"]: e["value"] for e in container["env"] if "value" in e}
    assert environment.keys() - {"MPLCONFIGDIR"} <= variables(docker, "service.sh")
    cluster = of_kind(docker, "RayCluster")["metadata"]["name"]
    assert environment["LAMINAR_RAY_ADDRESS"] == f"http://{cluster}-head-svc:8265"
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert environment["LAMINAR_STORAGE"] in mounts
    assert environment["LAMINAR_DATA_ROOTS"] in mounts
    assert str(Path(environment["LAMINAR_TOKENS"]).parent) in mounts
    (port,) = container["ports"]
    defaults = {p.name: p.default for p in parameters("serve")}
    assert port["containerPort"] == defaults["port"] == service["spec"]["ports"][0]["port"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/healthz", "port": port["name"]}
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    for selector in (service["spec"]["selector"], deployment["spec"]["selector"]["matchLabels"]):
        assert selector.items() <= labels.items()
    assert deployment["spec"]["replicas"] == 1  # a storage has one service
    # A file of tokens that others may write to is refused.
    (secret,) = [v for v in deployment["spec"]["template"]["spec"]["volumes"] if "secret" in v]
    assert secret["secret"]["defaultMode"] & 0o022 == 0


@pytest.mark.parametrize("address", ["10.1.2.3", "fd00::1"])
def test_the_service_of_kubernetes_knows_its_names(docker: Path, stand_in: Any, address: str):
    """Those of its Service, and the pod's address, by which Prometheus finds it."""
    name = of_kind(docker, "Service")["metadata"]["name"]
    (container,) = of_kind(docker, "Deployment")["spec"]["template"]["spec"]["containers"]
    fields = {"metadata.namespace": "team", "status.podIP": address}
    environment: dict[str, str] = {}
    for entry in container["env"]:  # as the kubelet does: what was said before may be used
        value = entry.get("value") or fields[entry["valueFrom"]["fieldRef"]["fieldPath"]]
        environment[entry["name"]] = re.sub(r"\$\((\w+)\)", lambda m: environment[m[1]], value)
    *_, line = stand_in("service.sh", **environment)
    guard = Guard(create_app, re.findall(r"--host-name (\S+)", line))  # type: ignore[arg-type]
    netloc = f"[{address}]" if ":" in address else address
    for host in (
        name,
        f"{name}.team",
        f"{name}.team.svc",
        f"{name}.team.svc.cluster.local",
        netloc,
    ):
        assert guard._refusal("GET", "/v1/jobs", Headers({"host": f"{host}:8484"})) is None, host
    assert guard._refusal("GET", "/v1/jobs", Headers({"host": "elsewhere.example.org"})) is not None


def test_the_policy_keeps_others_from_laminars_clusters_alone(docker: Path):
    (policy,) = [
        t["spec"] for t in manifests(docker)
        if t["kind"] == "NetworkPolicy" and t["metadata"]["name"] == "laminar-ray"
    ]  # fmt: skip
    selector, (rule,) = policy["podSelector"], policy["ingress"]
    (expression,) = selector["matchExpressions"]
    assert expression == {"key": "ray.io/cluster", "operator": "Exists"}  # which KubeRay sets
    another = {"ray.io/cluster": "another", "ray.io/node-type": "head"}
    assert not selector["matchLabels"].items() <= another.items()
    num_pods = 0
    for tree in manifests(docker):
        for pod in pods(tree):
            num_pods += 1
            labels = pod["metadata"]["labels"].items()
            assert rule["from"][0]["podSelector"]["matchLabels"].items() <= labels
            if tree["kind"] != "Deployment":
                assert selector["matchLabels"].items() <= labels
    assert num_pods == 5


def test_the_job_of_kubernetes_can_run(docker: Path):
    job = of_kind(docker, "RayJob")
    assert job["spec"].keys() == {
        *("entrypoint", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "backoffLimit"),
        *("submissionMode", "rayClusterSpec"),
    }  # of KubeRay's documentation
    assert job["spec"]["submissionMode"] == "HTTPMode"
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:2] == ["laminar", "train"]
    assert {word for word in words if word.startswith("--")} <= options_of("train")
    settings = of_kind(docker, "ConfigMap")["data"]["config.yaml"]
    assert validate_config(yaml.safe_load(settings)).num_stages == 2


def version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


def test_names_of_images_and_versions_agree(docker: Path, repository: Path):
    """One image for a cluster, whose Ray is the one of the manifests and new enough for us."""
    (ray,) = re.findall(r"^ARG RAY=(\S+)$", (docker / "Dockerfile").read_text(), re.MULTILINE)
    installs = [s["value"] for s in instructions(docker) if "--torch-backend" in s["value"]]
    assert len(installs) == 2
    assert all('"ray==${RAY}"' in install for install in installs)
    assert [s["value"] for s in instructions(docker)].count("RAY") == 2  # in each stage anew
    project = (repository / "pyproject.toml").read_text()
    lowest = re.findall(r'"ray\[[\w,]+\]>=([\d.]+)"', project)
    assert len(lowest) == 2
    assert all(version(ray) >= version(least) for least in lowest)
    num_clusters = 0
    tags = {f"laminar:{target}" for target in ("cpu", "cuda")}
    for tree in manifests(docker):
        for pod in pods(tree):
            assert {c["image"] for c in pod["spec"]["containers"]} <= tags
        spec = tree["spec"].get("rayClusterSpec", tree["spec"]) if "spec" in tree else {}
        if "rayVersion" in spec:
            assert spec["rayVersion"] == ray
            num_clusters += 1
    assert num_clusters == 2
    assert compose(docker)["services"]["head"]["image"] in tags
