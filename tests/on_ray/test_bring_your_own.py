"""The example of a user's own network, on Ray, as its reader runs it."""

from __future__ import annotations

import runpy
from functools import partial
from pathlib import Path

import pytest

from actors import LayerParallelTrainer
from laminar.checkpoint import list_checkpoints, load_tensors, read_manifest
from laminar.errors import FactoryError
from laminar.factories import Factories
from laminar.run_directory import RunDirectory
from tests.tiny import differing, run_reference


def test_the_example_trains_evaluates_and_resumes(
    ray_session, repository: Path, tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    found = runpy.run_path(str(repository / "examples/residual_mlp.py"), run_name="__main__")
    accuracy = float(capsys.readouterr().out)
    run = RunDirectory(tmp_path / "runs/residual_mlp")
    metrics = run.read_metrics()
    assert accuracy == metrics[-1]["test_accuracy"] >= 0.93
    assert metrics[-1]["parallel_fraction"] > 0.8
    # The engine on Ray, with what was shipped to it, is the reference in this process.
    own = {
        "blocks": found["blocks"],
        "datasets": {split: partial(found["load"], split) for split in ("train", "test")},
        "loss": found["loss"],
    }
    newest = list_checkpoints(run.checkpoints)[-1]
    manifest = read_manifest(newest, Factories(**own))
    assert differing(run_reference(manifest.plan).state(), load_tensors(manifest)) == []
    with pytest.raises(FactoryError, match="a run with blocks of its own"):
        LayerParallelTrainer.resume(run.path)
    assert LayerParallelTrainer.resume(run.path, **own).fit().metrics == metrics[-1]


def test_what_cannot_be_shipped_is_refused_before_anything_starts(tmp_path: Path):
    import threading

    from tests.own import OWN, own_plan

    lock = threading.Lock()

    def load():
        with lock:
            return OWN["datasets"]["train"]()

    own = {**OWN, "datasets": {"train": load, "test": load}}
    config = own_plan().config
    with pytest.raises(FactoryError, match="must be picklable"):
        LayerParallelTrainer(config, **own).fit()
