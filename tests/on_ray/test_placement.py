"""Where stages are put, with two logical GPUs: they exist for Ray, and nothing computes on them.

Stages that get half a GPU are in test_engine.py, those that get a whole one in test_failures.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.train
import torch

import actors.trainer
from actors import LayerParallelTrainer
from actors.cluster import reserve
from laminar.checkpoint import list_checkpoints, load_tensors, read_manifest
from laminar.errors import ResourceError
from tests.tiny import run_reference, tiny_config, tiny_plan

pytestmark = pytest.mark.usefixtures("ray_session")


def resources(**changes: Any) -> dict[str, Any]:
    return {"cpus_per_stage": 0.25, "message_timeout_s": 60, **changes}


def trainer(path: Path, **changes: Any) -> LayerParallelTrainer:
    run_config = ray.train.RunConfig(storage_path=str(path), name="run")
    return LayerParallelTrainer(tiny_config(12, **changes), run_config=run_config)


def newest(path: Path) -> dict[str, Any]:
    return load_tensors(read_manifest(list_checkpoints(path / "run" / "checkpoints")[-1]))


@pytest.fixture
def no_actors(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wire that trips when any actor, coordinator or stage, is about to be made."""

    def trip(*args: Any, **options: Any) -> None:
        pytest.fail("an actor was about to start")

    monkeypatch.setattr(actors.trainer.Coordinator, "options", trip)
    monkeypatch.setattr(actors.trainer.Stages, "start", trip)


@pytest.mark.usefixtures("no_actors")
@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"gpus_per_stage": 2}, ("resources.gpus_per_stage of 2", "2 GPU", ">= 4 for 2 stages")),
        ({"cpus_per_stage": 1.5}, ("resources.cpus_per_stage of 1.5", "2 CPU", ">= 3")),
    ],
)
def test_too_few_are_refused_before_any_actor_starts(
    tmp_path: Path, wanted: dict[str, Any], words: tuple[str, ...]
):
    with pytest.raises(ResourceError) as raised:
        trainer(tmp_path, resources=resources(**wanted)).fit()
    assert [word for word in words if word not in str(raised.value)] == []
    assert "the cluster has" in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_a_cluster_that_is_busy_is_refused_after_a_while():
    config = tiny_config(resources=resources(gpus_per_stage=1))
    with (
        reserve(config),
        pytest.raises(ResourceError, match=r"room for all stages at once.*0 GPU free"),
        reserve(config, timeout_s=1),
    ):
        pytest.fail("there were no GPUs left to give")
    with reserve(config):
        pass  # neither of the two has kept anything


def test_cuda_needs_a_share_of_a_gpu():
    with pytest.raises(ValueError, match="gpus_per_stage > 0"):
        tiny_config(resources=resources(device="cuda"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="here CUDA works")
def test_cuda_that_is_not_there_is_one_line_before_training(
    tmp_path: Path, laminar: Callable[..., tuple[int, str, str]]
):
    """The cluster says it has GPUs, so only a stage can know that torch cannot use them."""
    settings = [
        *("--set", "resources.device=cuda", "--set", "resources.gpus_per_stage=1"),
        *("--set", "resources.cpus_per_stage=0.25", "--set", "data={name: synthetic}"),
        *("--set", "num_stages=1"),
    ]
    code, out, err = laminar("train", *settings, "--storage-path", tmp_path, "--name", "run")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("error: resources.device cuda must give every stage a GPU that torch")
    assert not (tmp_path / "run").exists()


def test_the_doctor_runs_a_task_on_ray(laminar: Callable[..., Any]):
    code, out, _ = laminar("doctor")
    last = out.splitlines()[-1]
    assert (code, last.split()[:2]) == (0, ["ok", "ray"])
    assert "ran a task on" in last
    assert ray.is_initialized(), "a Ray that was running before must be left running"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
def test_a_gpu_computes_what_the_cpu_does(tmp_path: Path):
    """A few batches, before rounding has had time to grow: weights within 1% of their size."""
    changes = {
        "epochs": 1,
        "optimizer": {"lr": 0.01},
        "resources": resources(gpus_per_stage=0.5, device="cuda"),
    }
    trainer(tmp_path, **changes).fit()
    expected = run_reference(tiny_plan(12, **changes)).state()
    found = newest(tmp_path)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if tensor.is_floating_point() and name.startswith("model."):
            scale = tensor.norm().clamp(min=1e-3)
            assert (found[name] - tensor).norm() <= 0.01 * scale, name
