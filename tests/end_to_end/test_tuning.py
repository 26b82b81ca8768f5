"""Searches on a small cluster: killed, bereft of a stage, cloned, queued, refused."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import yaml

from laminar.checkpoint import list_checkpoints, load_tensors, read_manifest
from laminar.data import describe
from laminar.errors import ResourceError
from laminar.plan import make_plan
from laminar.run_directory import RunDirectory
from tests.end_to_end import shell
from tests.tiny import differing, run_reference
from tests.unit.test_tuning_space import FILTERS, search
from tuning.config import Search, parse_search
from tuning.ledger import Ledger, Trial
from tuning.search import SearchResult, resume_search, run_search

pytestmark = pytest.mark.usefixtures("ray_session")


def check_whole(found: Search, folder: Path, trial: Trial, num_epochs: int) -> None:
    """Each epoch was trained once, in order, and the weights are those of an unbroken run."""
    for config in found.configs(trial.params):
        run = RunDirectory(folder / trial.id / "runs" / f"seed_{config.seed}")
        assert [m["epoch"] for m in run.read_metrics()] == list(range(1, num_epochs + 1))
        plan = make_plan(config, describe(config.data))
        saved = load_tensors(read_manifest(list_checkpoints(run.checkpoints)[-1]))
        assert differing(run_reference(plan).state(), saved) == []


@pytest.mark.timeout(240)
def test_a_killed_search_goes_on_and_repeats_nothing(tmp_path: Path):
    """Room for two trials, eight wanted at once: the others queue."""
    settings = {"num_trials": 3, "algorithm": "random", "max_concurrent": 8}
    tree = search(
        settings, filters=FILTERS, epochs=4, resources={"cpus_per_stage": 0.5}, num_stages=2
    )
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    folder = tmp_path / "searches" / "a"

    def trials() -> list[Trial]:
        return list(Ledger(folder).trials.values())

    def is_time() -> bool:
        return any(t.status == "finished" for t in trials()) and len(trials()) >= 2

    address = ray.get_runtime_context().gcs_address
    command = ("tune", "search.yaml", "--address", address, "--name", "a")
    with shell.started(*command, cwd=tmp_path) as process:
        shell.wait_until(is_time, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = {t.id: t for t in trials()}
    finished = [t for t in before.values() if t.status == "finished"]
    assert finished
    num_lines = len((folder / "trials.jsonl").read_text().splitlines())

    result = resume_search(folder)
    assert result.is_complete
    assert [t.status for t in result.trials] == ["finished"] * 3
    later = [json.loads(t) for t in (folder / "trials.jsonl").read_text().splitlines()[num_lines:]]
    touched = {line["trial"] for line in later if line["event"] == "report"}
    assert [t.id for t in finished if t.id in touched] == []
    assert {t.id for t in before.values() if t.epochs} <= {t.id for t in result.trials}
    found = parse_search(tree)
    for trial in result.trials:
        check_whole(found, folder, trial, num_epochs=4)
    assert yaml.safe_load((folder / "best.yaml").read_text())["epochs"] == 4
    assert resume_search(folder) == result


@pytest.mark.timeout(180)
def test_a_trial_whose_stage_dies_goes_on_from_its_checkpoint(tmp_path: Path):
    """Two seeds in lockstep, and one of four stages is killed after the first epoch."""
    killed: list[int] = []

    def kill_once(ledger: Ledger) -> None:
        if killed or not any(trial.epochs for trial in ledger.trials.values()):
            return
        for process in psutil.Process().children(recursive=True):
            if "StageActor" in " ".join(process.cmdline()):
                killed.append(process.pid)
                process.kill()
                return

    found = parse_search(search({"num_trials": 1, "seeds": 2}, epochs=6, optimizer={
        "lr": {"choice": [0.05]}}))  # fmt: skip
    result = run_search(found, storage_path=tmp_path, name="a", listener=kill_once)
    assert len(killed) == 1
    (trial,) = result.trials
    lines = [json.loads(t) for t in (tmp_path / "a/trials.jsonl").read_text().splitlines()]
    errors = [line["error"] for line in lines if line.get("status") == "retried"]
    assert len(errors) == 1
    assert "died" in errors[0]
    assert trial.status == "finished"
    check_whole(found, tmp_path / "a", trial, num_epochs=6)
    by_seed = trial.last["by_seed"]["test_loss"]
    assert trial.last["test_loss"] == pytest.approx(sum(by_seed) / 2)
    assert len(set(by_seed)) == 2
    assert list((tmp_path / "a" / trial.id).glob("events.out.tfevents.*"))


@pytest.mark.timeout(180)
def test_pbt_clones_the_better_trial(tmp_path: Path):
    settings = {
        "num_trials": 2,
        "algorithm": "random",
        "metric": "train_loss",
        "scheduler": {"name": "pbt", "quantile": 0.5},
        "seed": 1,
    }
    leaves: dict[str, Any] = {"optimizer": {"lr": {"loguniform": [1e-8, 0.1]}}}
    result = run_search(
        parse_search(search(settings, **leaves, epochs=4)), storage_path=tmp_path, name="a"
    )
    assert [t.status for t in result.trials] == ["finished"] * 2
    clones = [t for t in result.trials if t.last["cloned_from"]]
    assert clones
    runs = {t.id: RunDirectory(tmp_path / "a" / t.id / "runs" / "seed_0") for t in result.trials}
    for clone in clones:
        own, other = runs[clone.id], runs[clone.last["cloned_from"]]
        # Lines of metrics have wall-clock times in them: equal ones are one and the same epoch.
        shared = [m for m in own.read_metrics() if m in other.read_metrics()]
        assert shared
        assert own.open_config().optimizer.lr == clone.params["optimizer.lr"]


def test_a_trial_that_never_fits_is_refused_at_once(tmp_path: Path):
    found = parse_search(search(None, num_stages={"choice": [2, 3]}, resources={}))
    with pytest.raises(ResourceError, match=r"the cluster has room for 2 of \{'CPU': 1.0\}"):
        run_search(found, storage_path=tmp_path, name="a", address="auto")
    assert not (tmp_path / "a").exists()


@pytest.mark.timeout(120)
def test_a_trial_that_fails_does_not_end_the_search(tmp_path: Path):
    """Too short a phase: no corner shows it, as the plan is made of the data on the cluster."""
    settings = {"algorithm": "grid", "max_failures": 0}
    phases = [{"phase": "parallel", "epochs": 2}]
    tree = search(settings, phases=phases, parallel={"hop_delay": {"grid": [64, 1]}})
    result: SearchResult = run_search(
        parse_search(tree), storage_path=tmp_path, name="a", address="auto"
    )
    assert [t.status for t in result.trials] == ["failed", "finished"]
    assert "4(K-1)d ticks" in str(result.trials[0].error)
    assert result.is_complete
    assert result.best == (result.trials[1],)
