"""What `docker/` says fits the rest: no container engine is here, so this is all that is checked.

Files, commands and options that the images, compose and Kubernetes use must exist, ports and
folders agree, and every file be valid by its own schema. docs/deploying.md says what nobody has
tried.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import typer
import yaml
from compose_spec import PyCompose
from dockerfile_parse import DockerfileParser

from service.cli import app

BIN = Path(sys.executable).parent
SCRIPTS = ("head.sh", "worker.sh", "service.sh", "health.sh")
PASSED_ON = {
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION"),
    "MLFLOW_TRACKING_URI",
}
"""Which compose hands through from whoever calls it."""


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
    assert sorted(path.name for path in docker.glob("*.sh")) == sorted((*SCRIPTS, "profile.sh"))
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
    there = set()
    for name in copied:
        path = repository / name
        files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
        assert files
        for file in files:
            inside = str(file.relative_to(repository))
            assert file.is_file(), inside
            if "__pycache__" not in file.parts:
                there.add(inside)
                assert any(matches(inside, pattern) for pattern in allowed), inside
    # What is packaged and is no Python: without it there is no page.
    assert {"service/page/index.html", "service/page/app.js", "service/page/style.css"} < there


def test_login_shells_of_the_image_find_ray(docker: Path):
    """Debian's /etc/profile sets PATH anew and reads this; KubeRay before 1.4 starts there."""
    (path,) = re.findall(r"ENV PATH=(\S+):\$PATH", (docker / "Dockerfile").read_text())
    copied = [s["value"] for s in instructions(docker) if s["instruction"] == "COPY"]
    assert "docker/profile.sh /etc/profile.d/laminar.sh" in copied
    shell = ("bash", "--noprofile", "-c", f'. "{docker}/profile.sh" && echo "$PATH"')
    assert run(*shell, env={"PATH": "/usr/bin:/bin"}).stdout == f"{path}:/usr/bin:/bin\n"


def test_the_image_has_what_probes_of_kuberay_call(docker: Path):
    (install,) = [s["value"] for s in instructions(docker) if "apt-get install" in s["value"]]
    assert "wget" in install.split()


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


def interpolated(text: str, environment: Mapping[str, str] = MappingProxyType({})) -> str:
    """Replace `${NAME:-default}`, as compose does."""
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda m: environment.get(m[1]) or m[2], text)


def compose(docker: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(interpolated((docker / "compose.yaml").read_text())))


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_compose_files_are_valid(docker: Path, name: str):
    tree = yaml.safe_load(interpolated((docker / name).read_text()))  # with anchors resolved
    spec = PyCompose.from_yaml(yaml.safe_dump(tree)).to_spec()  # refuses what is no such file
    assert set(spec.services) == set(tree["services"])


def docker_compose() -> list[str] | None:
    """Return the command, None where there is none; it needs no engine to read a file."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) and run(*command, "version").returncode == 0:
            return command
    return None


def test_compose_reads_its_files(docker: Path):
    command = docker_compose()
    if command is None:
        pytest.skip("there is no docker compose here: nothing but the schema was checked")
    outside = {"LAMINAR_STORAGE": "s3://bucket/jobs", "LAMINAR_INTERNAL": "false"}
    for more in ({}, outside):
        done = run(
            *command, *("--file", docker / "compose.yaml", "--file", docker / "compose.gpu.yaml"),
            *("config", "--format", "json"), env=os.environ | more,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        tree = json.loads(done.stdout)
        assert tree["services"].keys() == {"head", "worker", "service"}
        assert tree["networks"]["cluster"].get("internal", False) is (more is not outside)


def test_compose_can_use_an_object_store(docker: Path):
    """In the place of the folder; head and workers may reach it if they are let out."""
    text = (docker / "compose.yaml").read_text()
    assert set(re.findall(r"^#   (\w+)", text, re.MULTILINE)) >= {
        name for name in re.findall(r"\$\{(\w+)", text) if name != "RAY_AUTH_TOKEN"
    }
    for name, default, chosen in (
        ("LAMINAR_STORAGE", "/srv/laminar/jobs", "s3://bucket/jobs"),
        ("LAMINAR_INTERNAL", True, False),
    ):
        for environment, wanted in (({}, default), ({name: str(chosen).lower()}, chosen)):
            tree = yaml.safe_load(interpolated(text, environment))
            found = {
                "LAMINAR_STORAGE": tree["services"]["service"]["environment"]["LAMINAR_STORAGE"],
                "LAMINAR_INTERNAL": tree["networks"]["cluster"]["internal"],
            }
            assert found[name] == wanted


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
        environment = service["environment"]
        assert set(environment) - PASSED_ON - {"RAY_AUTH_TOKEN"} <= variables(docker, script)
        check = service["healthcheck"]["test"]
        assert check[:2] == ["CMD", "health.sh"]
        assert check[2] in (docker / "health.sh").read_text()
        for volume in service["volumes"]:
            source, target = volume.split(":")[:2]
            assert source in tree["volumes"]
            made = (docker / "Dockerfile").read_text()
            assert target in made.split()  # with the right owner, which a new volume takes over


def test_compose_hands_on_what_is_set(docker: Path):
    """Credentials to all, by entries without a value: an empty one would be taken for one."""
    written = yaml.safe_load((docker / "compose.yaml").read_text())
    for service in written["services"].values():
        environment = service["environment"]
        assert {name for name, value in environment.items() if value is None} == PASSED_ON


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
