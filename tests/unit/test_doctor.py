"""`laminar doctor`: what it finds, and the exit code that says so."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from laminar.config import Config
from laminar.errors import ResourceError
from service import doctor
from service.doctor import Finding, examine

Laminar = Callable[..., tuple[int, str, str]]


def findings(config: Config | None = None, **changes: Any) -> dict[str, Finding]:
    config = config or Config.model_validate(changes)
    return {f.what: f for f in examine(config, None, with_ray=False)}


def test_every_check_has_a_line_and_this_machine_can_train(laminar: Laminar):
    code, out, err = laminar("doctor", "--no-ray")
    assert (code, err) == (0, "")
    named = [line[6:16].strip() for line in out.splitlines()]
    assert named == [
        "python",
        "versions",
        "cores",
        "memory",
        "/dev/shm",
        "ports",
        "GPUs",
        "data",
        "plan",
    ]
    assert {line.split()[0] for line in out.splitlines()} <= {"ok", "note"}
    assert "2 stages, cuts [4], 90% of the passes parallel" in out
    assert "digits: 898 training and 899 test images 1x8x8, 10 classes" in out


def test_what_fails_is_told_with_exit_code_1(laminar: Laminar, tmp_path: Path):
    config = tmp_path / "config.yaml"
    config.write_text(f"data: {{name: mnist, root: {tmp_path}}}")
    code, out, err = laminar("doctor", config, "--no-ray", "--set", "resources.cpus_per_stage=500")
    assert (code, err) == (1, "")
    failed = {line[6:16].strip(): line for line in out.splitlines() if line.startswith("fails")}
    assert failed.keys() == {"cores", "data"}
    assert "2 stages want 1000: lower num_stages" in failed["cores"]
    assert "four IDX files" in failed["data"]
    assert "note  plan       not made: the data must be readable first" in out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_stages": 30}, "num_stages must be <= number of blocks"),
        ({"cuts": [500]}, "every cut must lie inside the network"),
        ({"model": {"weights": "/nope.pth"}}, "model.weights must be a file"),
        ({"partition": {"memory_limit_mb": 1}, "cuts": [4]}, "must fit partition.memory_limit_mb"),
        ({"parallel": {"feed": "stored"}, "stored": {"scratch_dir": "/nope"}}, "scratch_dir"),
    ],
)
def test_what_planning_refuses_fails(changes: dict[str, Any], words: str):
    found = findings(**changes)["plan"]
    assert found.verdict == "fails"
    assert words in found.text


def test_a_missing_compiler_or_tracker_fails(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    for changes in ({"precision": {"compile": True}}, {"tracking": {"mlflow": {}}}):
        found = findings(**changes)["plan"]
        assert found.verdict == "fails"
        assert "precision.compile" in found.text or "tracking.mlflow" in found.text


def test_gpus_are_missed_only_where_they_are_wanted():
    assert findings()["GPUs"].verdict in ("ok", "note")
    found = findings(resources={"gpus_per_stage": 500})["GPUs"]
    assert found.verdict == "fails"
    assert "1000 wanted" in found.text


def test_too_little_memory_fails(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "_available_bytes", lambda: 10**9)
    found = findings()["memory"]
    assert found.verdict == "fails"
    assert found.text.startswith("1.0 GB available")


def test_the_limit_of_a_container_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(doctor, "_CGROUP", tmp_path)
    without = doctor._available_bytes()
    assert without > 10**9
    (tmp_path / "memory.max").write_text("900000000\n")
    (tmp_path / "memory.current").write_text("200000000\n")
    assert doctor._available_bytes() == 700_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert doctor._available_bytes() > 10**9


def test_a_small_shared_memory_fails_and_none_is_a_note(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    class Usage(NamedTuple):
        free: int

    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(64 * 10**6))
    found = findings()["/dev/shm"]
    assert found.verdict == "fails"
    assert "--shm-size" in found.text
    monkeypatch.setattr(doctor, "_SHARED_MEMORY", tmp_path / "absent")
    assert findings()["/dev/shm"].verdict == "note"


def test_a_closed_network_fails(monkeypatch: pytest.MonkeyPatch):
    def refuse(*arguments: Any, **settings: Any) -> None:
        raise OSError("not permitted")

    monkeypatch.setattr(socket, "create_server", refuse)
    found = findings()["ports"]
    assert found.verdict == "fails"
    assert "not permitted" in found.text


def test_cores_that_this_process_may_not_use_are_a_note(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    found = findings()["cores"]
    assert found.verdict == "note"
    assert found.text.startswith("4, 1 usable by this process")


def refused() -> str:
    raise ResourceError("Ray must be reachable", got="127.0.0.1:9", fix="mend --address")


def torn() -> str:
    raise ValueError("first\n\nwhat it was\n")


def test_what_a_check_raises_is_what_fails():
    found = doctor._attempt("ray", refused)
    expected = "Ray must be reachable (got 127.0.0.1:9); mend --address"
    assert found == Finding("ray", "fails", expected)
    assert doctor._attempt("ray", torn).text == "ValueError: what it was"
