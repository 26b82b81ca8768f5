"""A run that diverges stops with advice, or goes back and trains exactly."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import ray.train

from actors import LayerParallelTrainer
from laminar.checkpoint import list_checkpoints, load_tensors, read_manifest
from laminar.config_file import dump_config
from laminar.progress import Notice
from laminar.run_directory import RunDirectory
from tests.tiny import differing, run_reference, tiny_config, tiny_plan


def diverging(on_divergence, num_stages=2):
    """One exact epoch, then two in which a huge penalty makes the first stage's steps explode."""
    return {
        "epochs": 3,
        "num_stages": num_stages,
        "method": "penalty",
        "parallel": {"feed": "stored"},
        "penalty": {"name": "fixed", "rho": 1e30},
        "phases": [{"phase": "correction", "epochs": 1}, {"phase": "parallel", "epochs": 2}],
        "on_divergence": on_divergence,
    }


def test_it_stops_with_advice_and_keeps_the_last_checkpoint(
    ray_session: Any, tmp_path: Path, laminar: Callable[..., Any]
):
    """On the command line, where it is one line, as is every failure of the engine.

    With int8 at its cuts, which must let what is no number through.
    """
    (tmp_path / "tiny.yaml").write_text(dump_config(tiny_config(8, **diverging("stop", 3))))
    runs = ("--storage-path", tmp_path / "runs")
    code, out, err = laminar("train", tmp_path / "tiny.yaml", *runs, "--quiet")
    assert (code, out) == (1, "")
    assert len(err.splitlines()) == 1
    assert re.match(
        r"error: training failed: the run diverged: loss nan in epoch 2.*lower optimizer\.lr", err
    )
    (path,) = (tmp_path / "runs").iterdir()  # without --name the run is named by the time
    assert datetime.strptime(path.name, "%Y%m%d-%H%M%S")
    assert [p.name for p in list_checkpoints(path / "checkpoints")] == ["epoch_0001"]
    assert len(RunDirectory(path).read_metrics()) == 1


def test_it_goes_back_and_trains_exactly(ray_session, tmp_path):
    settings, events = diverging("correct"), []
    config = tiny_config(8, **settings)
    run_config = ray.train.RunConfig(storage_path=str(tmp_path), name="run")
    LayerParallelTrainer(config, run_config=run_config, callback=events.append).fit()
    run = RunDirectory(tmp_path / "run")
    (notice,) = [event.message for event in events if isinstance(event, Notice)]
    assert "diverged in epoch 2 (loss no number)" in notice
    assert [[p["phase"] for p in m["phases"]] for m in run.read_metrics()] == [["correction"]] * 3
    assert "diverged" in run.read_metrics()[1]
    exact = tiny_plan(8, **settings | {"phases": [{"phase": "correction", "epochs": 3}]})
    newest = read_manifest(list_checkpoints(run.checkpoints)[-1])
    assert differing(run_reference(exact).state(), load_tensors(newest)) == []
    assert newest.plan.segments == exact.segments
    assert LayerParallelTrainer.resume(run.path).fit().metrics == run.read_metrics()[-1]
