"""Searches on a small cluster: killed, bereft of a stage, cloned, queued, refused."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import yaml

from laminar.checkpoint import list_checkpoints, load_tensors, read_manifest
from laminar.data import describe
from laminar.errors import ResourceError
from laminar.planning import make_plan
from laminar.run_directory import RunDirectory
from tests.end_to_end import shell
from tests.tiny import differing, run_reference
from tests.unit.test_tuning_space import FILTERS, search
from tuning.config import Search, parse_search
from tuning.ledger import Ledger, Trial
from tuning.search import resume_search, run_search

pytestmark = pytest.mark.usefixtures("ray_session")


def check_whole(found: Search, folder: Path, trial: Trial, num_epochs: int) -> None:
    """Each epoch was trained once, in order, and the weights are those of an unbroken run."""
    for config in found.configs(trial.params):
        run = RunDirectory(folder / trial.id / "runs" / f"seed_{config.seed}")
        assert [m["epoch"] for m in run.read_metrics()] == list(range(1, num_epochs + 1))
        plan = make_plan(config, describe(config.data))
        saved = load_tensors(read_manifest(list_checkpoints(run.checkpoints)[-1]))
        assert differing(run_reference(plan).state(), saved) == []


def metrics_of(folder: Path, trial: Trial) -> list[dict[str, Any]]:
    """Lines with wall-clock times in them: equal ones are of one and the same epoch."""
    return RunDirectory(folder / trial.id / "runs" / "seed_0").read_metrics()


def stage_actors() -> set[psutil.Process]:
    found = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "StageActor" in " ".join(process.cmdline()):
                found.add(process)
    return found


@pytest.mark.timeout(240)
def test_a_killed_search_goes_on_and_repeats_nothing(tmp_path: Path):
    """There is room for one trial, eight are wanted at once: the second queues. The search is
    killed while that one trains, and then the stage with which it goes on.
    """
    killed: list[psutil.Process] = []

    def kill_once(ledger: Ledger) -> None:
        for process in () if killed else stage_actors() - dying:
            killed.append(process)
            process.kill()

    settings = {"num_trials": 2, "algorithm": "random", "max_concurrent": 8}
    resources = {"cpus_per_stage": 2}
    tree = search(settings, filters=FILTERS, epochs=8, num_stages=1, resources=resources)
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    folder = tmp_path / "searches" / "a"

    def trials() -> list[Trial]:
        return list(Ledger(folder).trials.values())

    def is_time() -> bool:
        return len(trials()) == 2 and trials()[0].status == "finished" and trials()[1].epochs != ()

    address = ray.get_runtime_context().gcs_address
    command = ("tune", "search.yaml", "--address", address, "--name", "a")
    with shell.started(*command, cwd=tmp_path) as process:
        shell.wait_until(lambda: trials() != [], process)
        shell.wait_until(is_time, process)
        process.kill()
        process.communicate()
    first, second = trials()
    assert (first.status, second.status) == ("finished", "running")
    before = [metrics_of(folder, trial) for trial in (first, second)]

    dying = stage_actors()
    result = resume_search(folder, listener=kill_once)
    assert len(killed) == 1
    lines = [json.loads(text) for text in (folder / "trials.jsonl").read_text().splitlines()]
    assert [x["trial"] for x in lines if x.get("status") == "retried" and x["error"]] == [second.id]
    assert result.is_complete
    assert [(t.id, t.status) for t in result.trials] == [
        (first.id, "finished"),
        (second.id, "finished"),
    ]
    after = [metrics_of(folder, trial) for trial in (first, second)]
    assert after[0] == before[0]
    assert after[1][: len(second.epochs)] == before[1][: len(second.epochs)]
    found = parse_search(tree)
    for trial in result.trials:
        check_whole(found, folder, trial, num_epochs=8)
    assert yaml.safe_load((folder / "best.yaml").read_text())["epochs"] == 8
    assert resume_search(folder) == result


@pytest.mark.timeout(180)
def test_a_trial_that_fails_costs_no_search_and_seeds_train_in_lockstep(tmp_path: Path):
    """The first trial has more stages than blocks, the second trains two seeds side by side."""
    settings = {"algorithm": "grid", "seeds": 2, "max_failures": 0}
    stages = {"num_stages": {"grid": [9, 1]}, "resources": {"cpus_per_stage": 0.1}}
    found = parse_search(search(settings, epochs=2, **stages))
    folder = tmp_path / "a"
    # With an address the plans are left to the cluster, where the data is.
    result = run_search(found, storage_path=tmp_path, name="a", address="auto")
    failed, trial = result.trials
    assert failed.status == "failed"
    assert "number of blocks" in str(failed.error)
    assert trial.status == "finished"
    check_whole(found, folder, trial, num_epochs=2)
    by_seed = trial.last["by_seed"]["test_loss"]
    assert trial.last["test_loss"] == pytest.approx(sum(by_seed) / 2)
    assert len(set(by_seed)) == 2
    assert list((folder / trial.id).glob("events.out.tfevents.*"))
    assert result.is_complete
    assert result.best == (trial,)


@pytest.mark.timeout(180)
def test_pbt_clones_the_better_trial(tmp_path: Path):
    """One comparison, after two of three epochs: each costs a start of all actors."""
    settings = {
        "num_trials": 2,
        "algorithm": "random",
        "metric": "train_loss",
        "scheduler": {"name": "pbt", "quantile": 0.5, "interval": 2, "synchronous": True},
        "seed": 1,
    }
    leaves: dict[str, Any] = {"optimizer": {"lr": {"loguniform": [1e-8, 0.1]}}}
    result = run_search(
        parse_search(search(settings, **leaves, epochs=3, num_stages=1)),
        storage_path=tmp_path,
        name="a",
    )
    assert [t.status for t in result.trials] == ["finished"] * 2
    clones = [t for t in result.trials if t.last["cloned_from"]]
    assert clones
    assert len(list((tmp_path / "a").glob("*/checkpoint_*"))) == 2
    trials = {t.id: t for t in result.trials}
    for clone in clones:
        other = metrics_of(tmp_path / "a", trials[clone.last["cloned_from"]])
        assert [m for m in metrics_of(tmp_path / "a", clone) if m in other]
        own = RunDirectory(tmp_path / "a" / clone.id / "runs" / "seed_0")
        assert own.open_config().optimizer.lr == clone.params["optimizer.lr"]


def test_a_trial_that_never_fits_is_refused_at_once(tmp_path: Path):
    found = parse_search(search(None, num_stages={"choice": [2, 3]}, resources={}))
    with pytest.raises(ResourceError, match=r"the cluster has room for 2 of \{'CPU': 1.0\}"):
        run_search(found, storage_path=tmp_path, name="a", address="auto")
    assert not (tmp_path / "a").exists()
