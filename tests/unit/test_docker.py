"""What `docker/` says fits the rest: no container engine is here, so this is all that is checked.

Files, commands and options that the images, compose and Kubernetes use must exist, ports and
folders agree, and every file be valid by its own schema. docs/deploying.md says what nobody has
tried.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer
import yaml
from compose_spec import PyCompose
from dockerfile_parse import DockerfileParser

from laminar.config_file import validate_config
from service.cli import app

BIN = Path(sys.executable).parent
SCRIPTS = ("head.sh", "worker.sh", "service.sh", "health.sh")
KUBERNETES = "1.34.0"


@pytest.fixture(scope="module")
def docker(repository: Path) -> Path:
    return repository / "docker"


def run(*command: str | Path, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=60, **kwargs
    )


# -- the scripts ------------------------------------------------------------------------------


def test_scripts_and_the_dockerfile_have_no_lint(docker: Path):
    """As `make lint` does."""
    assert sorted(path.name for path in docker.glob("*.sh")) == sorted(SCRIPTS)
    shell = run(BIN / "shellcheck", *sorted(docker.glob("*.sh")), docker.parent / ".ci/run")
    assert (shell.returncode, shell.stdout) == (0, "")
    image = run(BIN / "hadolint", "--no-color", docker / "Dockerfile")
    assert (image.returncode, image.stdout) == (0, "")


def options_of(*names: str) -> set[str]:
    """Return the options of a command of `laminar`."""
    return {option for parameter in parameters(*names) for option in parameter.opts}


def parameters(*names: str) -> list[Any]:
    command: Any = typer.main.get_command(app)
    for name in names:
        assert name in command.commands, f"there is no `laminar {name}`"
        command = command.commands[name]
    return list(command.params)


def ray_options() -> set[str]:
    from ray.scripts.scripts import start

    return {option for parameter in start.params for option in parameter.opts}


@pytest.fixture
def stand_in(tmp_path: Path, docker: Path) -> Any:
    """Run a script with a `ray` and a `laminar` that print what they are told; return the lines."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    for name in ("ray", "laminar"):
        (bin_ / name).write_text(f'#!/bin/sh\necho {name} "$@"\n')
        (bin_ / name).chmod(0o755)

    def call(script: str, *arguments: str, **environment: str) -> list[str]:
        path = {"PATH": f"{bin_}:/usr/bin:/bin"}
        done = run(docker / script, *arguments, env=path | environment, check=True, cwd=tmp_path)
        return done.stdout.splitlines()

    return call


EVERYTHING = {
    "LAMINAR_NODE_IP": "10.0.0.1",
    "LAMINAR_NUM_CPUS": "3",
    "LAMINAR_NUM_GPUS": "1",
    "LAMINAR_OBJECT_STORE_BYTES": "1000",
    "LAMINAR_TEMP_DIR": "/tmp/r",
    "LAMINAR_HEAD": "head:6379",
    "LAMINAR_TOKENS": "tokens.json",
    "LAMINAR_FIRST_TOKEN": "admin.token",
    "LAMINAR_HOST_NAMES": "one,two",
    "LAMINAR_DATA_ROOTS": "/a:/b c",
}


@pytest.mark.parametrize("environment", [{"LAMINAR_HEAD": "head:6379"}, EVERYTHING])
def test_the_scripts_start_what_there_is(stand_in: Any, environment: dict[str, str]):
    for script in ("head.sh", "worker.sh"):
        (line,) = stand_in(script, **environment)
        words = shlex.split(line)
        assert words[:2] == ["ray", "start"]
        assert {word for word in words if word.startswith("--")} <= ray_options()
        assert "--block" in words
        assert ("--head" in words) == (script == "head.sh")
        assert ("--node-ip-address 10.0.0.1" in line) == (environment is EVERYTHING)
    *_, line = stand_in("service.sh", "--max-active-per-user", "2", **environment)
    words = line.split()
    assert words[:2] == ["laminar", "serve"]
    assert {word for word in words if word.startswith("--")} <= options_of("serve")
    assert line.endswith("--max-active-per-user 2")


def test_the_service_makes_its_first_token_once(stand_in: Any, tmp_path: Path):
    (line,) = stand_in("service.sh", **EVERYTHING)
    assert "--host-name one --host-name two --data-root /a --data-root /b c" in line
    first = tmp_path / "admin.token"
    assert first.stat().st_mode & 0o777 == 0o600
    words = first.read_text().split()
    assert words[:3] == ["laminar", "token", "create"]
    assert {word for word in words if word.startswith("--")} <= options_of("token", "create")
    (tmp_path / "tokens.json").write_text("{}")
    first.unlink()
    stand_in("service.sh", **EVERYTHING)
    assert not first.exists()


def test_a_worker_must_know_its_head(docker: Path):
    done = run(docker / "worker.sh", env={"PATH": "/usr/bin:/bin"})
    assert done.returncode != 0
    assert "LAMINAR_HEAD: must be HOST:PORT" in done.stderr


# -- the image --------------------------------------------------------------------------------


def instructions(docker: Path) -> list[dict[str, Any]]:
    parser = DockerfileParser(path=str(docker / "Dockerfile"))
    return list(parser.structure)


def test_the_image_copies_what_there_is(docker: Path, repository: Path):
    """And the ignore file lets it through."""
    allowed = [
        line.removeprefix("!")
        for line in (docker / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    copied = []
    for step in instructions(docker):
        if step["instruction"] == "COPY" and not step["value"].startswith("--from"):
            copied += step["value"].split()[:-1]
    assert {"pyproject.toml", "laminar", "actors", "service", "tuning"} < set(copied)
    for name in copied:
        path = repository / name
        files = list(path.rglob("*.py")) if path.is_dir() else [path]
        assert files
        for file in files:
            inside = str(file.relative_to(repository))
            assert file.is_file(), inside
            assert any(matches(inside, pattern) for pattern in allowed), inside


def matches(path: str, pattern: str) -> bool:
    parts = re.escape(pattern).replace(r"\*\*/", "(.*/)?").replace(r"\*\*", ".*")
    return re.fullmatch(parts.replace(r"\*", "[^/]*"), path) is not None


def test_the_images_stages_and_extras_exist(docker: Path, repository: Path):
    project = (repository / "pyproject.toml").read_text()
    stages: list[str] = []
    for step in instructions(docker):
        value = step["value"]
        if step["instruction"] == "FROM":
            base, _, name = value.split()
            assert base in stages or base == "python:3.12-slim-bookworm"
            stages.append(name)
        for source in re.findall(r"(?:--|,)from=([\w-]+)", value):
            assert source in stages
        if step["instruction"] == "CMD":
            assert shlex.split(value.strip("[]").replace(",", " ")) == ["service.sh"]
    assert {"cpu", "cuda"} <= set(stages)
    assert [s["value"] for s in instructions(docker) if s["instruction"] == "USER"] == ["1000"] * 2
    (python,) = re.findall(r'requires-python = ">=3\.(\d+),<3\.(\d+)"', project)
    assert int(python[0]) <= 12 < int(python[1])
    text = (docker / "Dockerfile").read_text()
    backends = run(BIN / "uv", "pip", "install", "--help").stdout
    for backend in ("cpu", re.search(r"ARG CUDA=(\w+)", text)[1]):  # type: ignore[index]
        assert re.search(rf"\b{backend}\b", backends), backend


def test_the_extras_of_the_image_exist(docker: Path, repository: Path):
    assert parameters("serve")  # what the extra `service` is for
    extras = set(re.findall(r"--extra (\w+)", (docker / "Dockerfile").read_text()))
    assert extras == {"service", "mlflow", "wandb"}
    project = (repository / "pyproject.toml").read_text()
    assert {extra for extra in extras if f"\n{extra} = [" in project} == extras


# -- compose ----------------------------------------------------------------------------------


def interpolated(text: str) -> str:
    """Put in the defaults of `${NAME:-default}`, as compose does."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def compose(docker: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(interpolated((docker / "compose.yaml").read_text())))


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_compose_files_are_valid(docker: Path, name: str):
    tree = yaml.safe_load(interpolated((docker / name).read_text()))  # with anchors resolved
    spec = PyCompose.from_yaml(yaml.safe_dump(tree)).to_spec()  # refuses what is no such file
    assert set(spec.services) == set(tree["services"])


def variables(docker: Path, script: str) -> set[str]:
    return set(re.findall(r"\b(?:LAMINAR|RAY)_\w+", (docker / script).read_text()))


def test_compose_uses_what_there_is(docker: Path):
    tree = compose(docker)
    services = tree["services"]
    assert set(services) == {"head", "worker", "service"}
    assert services["worker"]["deploy"]["replicas"] == 2
    targets = [s["value"].split()[-1] for s in instructions(docker) if s["instruction"] == "FROM"]
    assert services["head"]["build"]["target"] in targets
    assert (docker / services["head"]["build"]["context"] / "docker/Dockerfile").is_file()
    for service in services.values():
        (script,) = service["command"]
        assert script in SCRIPTS
        assert set(service["environment"]) - {"RAY_AUTH_TOKEN"} <= variables(docker, script)
        check = service["healthcheck"]["test"]
        assert check[:2] == ["CMD", "health.sh"]
        assert check[2] in (docker / "health.sh").read_text()
        for volume in service["volumes"]:
            source, target = volume.split(":")[:2]
            assert source in tree["volumes"]
            made = (docker / "Dockerfile").read_text()
            assert target in made.split()  # with the right owner, which a new volume takes over


def test_ports_of_compose_agree(docker: Path):
    services = compose(docker)["services"]
    head = (docker / "head.sh").read_text()
    ray, dashboard = (
        re.search(rf"{name}:-(\d+)", head)[1]  # type: ignore[index]
        for name in ("LAMINAR_RAY_PORT", "LAMINAR_DASHBOARD_PORT")
    )
    assert services["worker"]["environment"]["LAMINAR_HEAD"] == f"head:{ray}"
    served = services["service"]["environment"]
    assert served["LAMINAR_RAY_ADDRESS"] == f"http://head:{dashboard}"
    assert f":{dashboard}/" in services["head"]["healthcheck"]["test"][2]
    defaults = {p.name: p.default for p in parameters("serve")}
    (published,) = services["service"]["ports"]
    assert published == f"127.0.0.1:{defaults['port']}:{defaults['port']}"
    assert f":{defaults['port']}/" in services["service"]["healthcheck"]["test"][2]
    assert "ports" not in services["head"]  # who reaches the dashboard runs what he likes


# -- Kubernetes -------------------------------------------------------------------------------


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
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
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


def test_the_job_of_kubernetes_can_run(docker: Path):
    job = of_kind(docker, "RayJob")
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:2] == ["laminar", "train"]
    assert {word for word in words if word.startswith("--")} <= options_of("train")
    settings = of_kind(docker, "ConfigMap")["data"]["config.yaml"]
    assert validate_config(yaml.safe_load(settings)).num_stages == 2


def test_names_of_images_and_versions_agree(docker: Path, repository: Path):
    """One image for a cluster, and the Ray of its manifests is not older than what we need."""
    tags = {f"laminar:{target}" for target in ("cpu", "cuda")}
    for tree in manifests(docker):
        for pod in pods(tree):
            assert {c["image"] for c in pod["spec"]["containers"]} <= tags
        spec = tree["spec"].get("rayClusterSpec", tree["spec"]) if "spec" in tree else {}
        if "rayVersion" in spec:
            assert tuple(map(int, spec["rayVersion"].split("."))) >= (2, 50)
    assert compose(docker)["services"]["head"]["image"] in tags
