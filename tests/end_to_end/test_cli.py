"""The command line end to end: one run, interrupted and resumed to its end, serves most tests.

What a run says that nobody interrupts is looked at in test_docs.py, where one trains anyway.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import yaml

from laminar.checkpoint import list_checkpoints, load_tensors, read_manifest
from laminar.config_file import dump_config
from laminar.data import describe
from laminar.planning import make_plan
from laminar.run_directory import RunDirectory
from tests.end_to_end.shell import Ended, Process, check_output, living, run, wait_until
from tests.tiny import differing, run_reference, tiny_config

NUM_EPOCHS, NUM_BATCHES = 12, 24
CONFIG = tiny_config(NUM_BATCHES, epochs=NUM_EPOCHS, resources={})


def newest(path: Path) -> dict[str, Any]:
    return load_tensors(read_manifest(list_checkpoints(path / "checkpoints")[-1]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a configuration file."""
    path = tmp_path_factory.mktemp("cli")
    (path / "tiny.yaml").write_text(dump_config(CONFIG))
    return path


def interrupt_group(process: Process) -> None:
    """What a terminal does at Ctrl-C: the signal goes to everybody in the foreground group."""
    os.killpg(process.pid, signal.SIGINT)


@pytest.fixture(scope="module")
def interrupted(folder: Path) -> tuple[Ended, list[str]]:
    """The run `two`, stopped by Ctrl-C after an epoch or more, and the checkpoints that it left."""
    checkpoints = folder / "runs" / "two" / "checkpoints"

    def stop(process: Process) -> None:
        wait_until(lambda: list_checkpoints(checkpoints) != [], process)
        interrupt_group(process)

    done = run("train", "tiny.yaml", "--name", "two", cwd=folder, while_running=stop)
    return done, [p.name for p in list_checkpoints(checkpoints)]


@pytest.fixture(scope="module")
def address(ray_session: Any) -> str:
    found: str = ray_session.get_runtime_context().gcs_address
    return found


@pytest.fixture(scope="module")
def resumed(interrupted: tuple[Ended, list[str]], address: str, folder: Path) -> Ended:
    """The same, resumed in a running cluster, to its end."""
    assert interrupted[1][-1] != f"epoch_{NUM_EPOCHS:04d}"
    return run("resume", "runs/two", "--address", address, cwd=folder)


@pytest.fixture
def two(resumed: Ended, folder: Path) -> RunDirectory:
    """The run with everything that a finished one has."""
    assert resumed.code == 0, resumed.err
    return RunDirectory(folder / "runs" / "two")


# -- train and resume ------------------------------------------------------------------------


def test_ctrl_c_ends_a_run_cleanly(interrupted: tuple[Ended, list[str]], folder: Path):
    done, checkpoints = interrupted
    two = folder / "runs" / "two"
    assert done.code == 130, done.err
    assert checkpoints
    assert done.out.splitlines() == [
        f"stopped; last checkpoint: {checkpoints[-1]}",
        f"go on with: laminar resume {two}",
    ]
    assert not [line for line in done.err.splitlines() if not line.startswith("epoch ")]
    assert done.survivors == []
    assert (two / "plot.png").is_file()


def test_a_broken_run_resumes_in_a_running_cluster_and_says_how_well_and_where(
    interrupted: tuple[Ended, list[str]], resumed: Ended, two: RunDirectory, ray_session: Any
):
    check_output(resumed, two, first_epoch=int(interrupted[1][-1].removeprefix("epoch_")) + 1)
    # Whose cluster it is must find it running.
    assert ray_session.get(ray_session.remote(num_cpus=0)(lambda: 1).remote()) == 1


def test_it_resumes_to_the_end_of_an_unbroken_run(two: RunDirectory):
    """That of the reference; test_resume.py holds all metrics against those of an unbroken run."""
    plan = make_plan(CONFIG, describe(CONFIG.data))
    assert differing(run_reference(plan).state(), newest(two.path)) == []
    for epoch, metrics in enumerate(two.read_metrics()):
        planned = [(s.phase, s.num_batches) for s in plan.segments if s.epoch == epoch]
        assert [(p["phase"], p["num_batches"]) for p in metrics["phases"]] == planned
        assert metrics["lr"] == plan.learning_rate((epoch + 1) * NUM_BATCHES - 1)


# -- what a finished run leaves --------------------------------------------------------------


def test_the_written_configuration_is_resolved(two: RunDirectory):
    content = yaml.safe_load(two.config_file.read_text())
    assert content["cuts"] == [2]
    assert content["filters"] == [{"pool": 2, "cast": "fp16", "parallel_only": False}]
    assert {p["phase"] for p in content["phases"]} == {"correction", "parallel"}
    assert sum(p["epochs"] for p in content["phases"]) == pytest.approx(NUM_EPOCHS)
    config = two.open_config()
    plan = make_plan(CONFIG, describe(CONFIG.data))
    assert config == plan.config != CONFIG
    assert make_plan(config, describe(config.data)) == plan


def test_metrics_have_a_line_for_each_epoch(two: RunDirectory):
    lines = [json.loads(line) for line in two.metrics_file.read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, NUM_EPOCHS + 1))
    assert 0 <= lines[-1]["test_accuracy"] <= 1
    assert lines[-1]["parallel_fraction"] >= 0.85
    for line in lines:
        assert sum(p["num_batches"] for p in line["phases"]) == line["num_batches"] == NUM_BATCHES
        assert line["cuts"][0]["boundary"] == 2
        assert line["cuts"][0]["inline_bytes"] > 0


def test_the_environment_is_recorded(two: RunDirectory):
    found = json.loads(two.environment_file.read_text())
    assert found["torch"]
    assert found["ray"]
    assert [stage["device"] for stage in found["stages"]] == ["cpu", "cpu"]


def test_the_timeline_says_where_the_seconds_of_each_stage_went(two: RunDirectory):
    lines = two.read_timeline()
    assert [line["epoch"] for line in lines] == list(range(1, NUM_EPOCHS + 1))
    for line, metrics in zip(lines, two.read_metrics(), strict=True):
        *training, evaluation = line["phases"]
        assert [(p["phase"], p["num_batches"]) for p in training] == [
            (p["phase"], p["num_batches"]) for p in metrics["phases"]
        ]
        assert evaluation["phase"] == "evaluation"
        for phase in line["phases"]:
            first, last = phase["stages"]
            assert 0 < sum(first.values()) <= phase["seconds"]
            assert first["data"] > 0
            assert last["wait_forward"] > 0
            assert ("backward" in last) == (phase is not evaluation)
        (cut,) = metrics["cuts"]
        sent = [p["cuts"][0][way] for p in training for way in ("forward", "adjoint")]
        for way in ("inline_bytes", "store_bytes"):
            assert sum(s[way] for s in sent) == cut[way]
        assert evaluation["cuts"][0]["adjoint"] == {"inline_bytes": 0, "store_bytes": 0}


def test_each_phase_of_an_epoch_is_traced_and_probed(two: RunDirectory):
    for phase in (p for line in two.read_timeline() for p in line["phases"][:-1]):
        first, last = phase["trace"]
        for spans in (first, last):
            assert {"forward", "backward", "update", "send"} <= {span[0] for span in spans}
            assert all(a[3] <= b[2] for a, b in itertools.pairwise(spans))
        assert min(first[-1][3], last[-1][3]) > 0, "no stretch in common"
        violation = phase["cuts"][0]["violation"]
        assert violation == 0 if phase["phase"] == "correction" else 0 < violation < 1
        assert 0 < phase["cuts"][0]["filter_error"] < 1


def test_a_finished_run_has_a_report(two: RunDirectory, laminar: Callable[..., Any]):
    code, out, err = laminar("report", two.path)
    assert (code, err) == (0, "")
    page = Path(out.strip()).read_text()
    for title in ("Timeline", "Constraint violation", "Bytes over each cut"):
        assert f"<h2>{title}</h2>" in page


def test_the_plot_is_a_picture(two: RunDirectory):
    assert two.plot_file.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = matplotlib.image.imread(two.plot_file)
    assert pixels.shape[0] > 300
    assert pixels.shape[1] > 600
    assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 50


def test_a_run_is_not_trained_over(two: RunDirectory, folder: Path, laminar: Callable[..., Any]):
    before = {path: path.stat().st_mtime_ns for path in two.path.rglob("*")}
    runs = ("--name", "two", "--storage-path", folder / "runs")
    code, out, err = laminar("train", folder / "tiny.yaml", *runs)
    assert (code, out) == (2, "")
    assert err.startswith("error: a new run needs an empty folder")
    assert len(err.splitlines()) == 1
    assert {path: path.stat().st_mtime_ns for path in two.path.rglob("*")} == before


# -- evaluate --------------------------------------------------------------------------------


def test_evaluate_prints_the_accuracy_of_the_last_epoch(
    two: RunDirectory, laminar: Callable[..., Any]
):
    code, out, err = laminar("evaluate", two.path)
    assert code == 0, err
    assert len(out.splitlines()) == 1
    found = json.loads(out)
    last = two.read_metrics()[-1]
    assert found["accuracy"] == last["test_accuracy"]
    assert found["loss"] == pytest.approx(last["test_loss"], rel=1e-5)
    assert (found["checkpoint"], found["split"]) == (f"epoch_{NUM_EPOCHS:04d}", "test")
    assert found["num_samples"] == 15


def test_evaluate_takes_a_checkpoint_and_a_split(two: RunDirectory, laminar: Callable[..., Any]):
    name = f"epoch_{NUM_EPOCHS - 1:04d}"
    code, out, _ = laminar("evaluate", two.path, "--checkpoint", name, "--split", "train")
    assert code == 0
    found = json.loads(out)
    assert (found["checkpoint"], found["num_samples"]) == (name, NUM_BATCHES * 8 + 1)


def scalars(run: RunDirectory) -> dict[str, list[tuple[int, float]]]:
    """Return what TensorBoard shows: (step, value) of each name."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.events), size_guidance={"scalars": 0}).Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def test_tensorboard_shows_every_epoch_once(two: RunDirectory):
    """What was done again after the interruption must not be there twice."""
    shown = scalars(two)
    for split in ("train", "test"):
        for what in ("loss", "accuracy"):
            assert shown[f"{what}/{split}"] == [
                (m["epoch"], pytest.approx(m[f"{split}_{what}"])) for m in two.read_metrics()
            ]
    assert [step for step, _ in shown["lr"]] == list(range(1, NUM_EPOCHS + 1))
    assert "violation/cut_at_block_2/parallel" in shown


def test_sigterm_while_ray_starts_leaves_nothing(folder: Path):
    def stop(process: Process) -> None:
        wait_until(lambda: "raylet" in living(process.pid), process)
        process.terminate()

    done = run("train", "tiny.yaml", "--name", "three", cwd=folder, while_running=stop)
    assert done.code == 130
    assert done.out.startswith("stopped")
    assert done.err == ""
    assert done.survivors == []


def test_resuming_a_finished_run_says_what_it_reached(
    two: RunDirectory, resumed: Ended, laminar: Callable[..., Any]
):
    before = two.metrics_file.read_bytes(), newest(two.path)
    code, out, _ = laminar("resume", two.path, "--quiet")
    assert code == 0
    assert out == resumed.out
    assert two.metrics_file.read_bytes() == before[0]
    assert differing(before[1], newest(two.path)) == []


def test_a_folder_that_the_cluster_lacks_is_one_line(
    address: str, tmp_path: Path, laminar: Callable[..., Any]
):
    data = ("--set", "data={name: image_folder, root: nowhere}")
    where = ("--address", address, "--storage-path", tmp_path, "--name", "four")
    code, out, err = laminar("train", *data, *where)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("error: data.root must hold a folder `train` (got no folder")
    assert not (tmp_path / "four").exists()
