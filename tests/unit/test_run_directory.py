"""The folder of a run: what is written can be read back, and nothing is overwritten."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from laminar.checkpoint import list_checkpoints, prune
from laminar.config import Config
from laminar.errors import ConfigError
from laminar.run_directory import MANIFEST, RunDirectory


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "runs" / "one")
    run.create(Config(epochs=3))
    return run


def epoch(number: int) -> dict[str, object]:
    return {"epoch": number, "train_loss": 1.0 / number}


def test_a_created_run_opens_with_its_configuration(run: RunDirectory):
    assert RunDirectory(run.path).open_config() == Config(epochs=3)
    assert run.checkpoints == run.path / "checkpoints"
    assert run.plot_file == run.path / "plot.png"


def test_an_empty_folder_can_become_a_run(tmp_path: Path):
    RunDirectory(tmp_path).create(Config())
    assert (tmp_path / "config.yaml").is_file()


def test_a_run_is_never_created_over_another(run: RunDirectory):
    before = run.config_file.read_bytes()
    with pytest.raises(ConfigError) as raised:
        RunDirectory(run.path).create(Config())
    for words in ("is not empty", "--name", "laminar resume"):
        assert words in str(raised.value)
    assert run.config_file.read_bytes() == before


def test_a_run_is_never_created_over_a_file(tmp_path: Path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(ConfigError, match="--name"):
        RunDirectory(tmp_path / "taken").create(Config())
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--storage-path"):
        RunDirectory(tmp_path / "file" / "run").create(Config())


def test_a_run_that_never_began_is_discarded(run: RunDirectory):
    run.truncate_metrics(0)
    run.write_environment([])
    run.events.mkdir()
    (run.events / "events.out").write_text("")
    run.discard()
    assert not run.path.exists()


def test_a_run_that_began_is_kept(run: RunDirectory):
    run.append_metrics(epoch(1))
    run.discard()
    assert run.open_config() == Config(epochs=3)
    assert run.read_metrics() == [epoch(1)]


def test_a_folder_that_cannot_be_written_is_found_before_anything_starts(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"must be writable \(got .*file is a file\)"):
        RunDirectory(tmp_path / "file" / "a" / "run").check_is_free()


def test_opening_what_is_no_run_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"must contain config\.yaml.*laminar train"):
        RunDirectory(tmp_path).open_config()
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        RunDirectory(tmp_path / "absent").open_config()


def test_metrics_come_back_in_order(run: RunDirectory):
    assert run.read_metrics() == []
    for number in (1, 2):
        run.append_metrics(epoch(number))
    assert run.read_metrics() == [epoch(1), epoch(2)]
    assert len(run.metrics_file.read_text().splitlines()) == 2


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_last_line_that_a_crash_tore_is_ignored(run: RunDirectory, cut: int):
    run.append_metrics(epoch(1))
    with run.metrics_file.open("a") as file:
        file.write(json.dumps(epoch(2))[:cut])
    assert run.read_metrics() == [epoch(1)]


def test_a_resumed_run_drops_what_it_will_do_again(run: RunDirectory):
    for number in (1, 2, 3):
        run.append_metrics(epoch(number))
    with run.metrics_file.open("a") as file:
        file.write('{"epoch": 4, "tr')
    run.truncate_metrics(2)
    run.append_metrics({"epoch": 3, "again": True})
    assert run.read_metrics() == [epoch(1), epoch(2), {"epoch": 3, "again": True}]
    assert sorted(path.name for path in run.path.iterdir()) == ["config.yaml", "metrics.jsonl"]


def test_the_timeline_is_cut_with_the_metrics(run: RunDirectory):
    assert run.read_timeline() == []
    for number in (1, 2, 3):
        run.append_timeline({"epoch": number, "phases": []})
    run.truncate_metrics(2)
    assert run.read_timeline() == [{"epoch": n, "phases": []} for n in (1, 2)]


def test_metrics_of_a_run_without_any_can_be_truncated(run: RunDirectory):
    run.truncate_metrics(0)
    assert run.read_metrics() == []


def test_the_environment_names_versions_and_hardware(run: RunDirectory):
    run.write_environment([{"device": "cpu", "threads": 1}])
    found = json.loads(run.environment_file.read_text())
    for name in ("laminar", "python", "torch", "torchvision", "ray", "numpy", "platform"):
        assert found[name]
    assert found["num_cpus"] >= 1
    assert isinstance(found["gpus"], list)
    assert found["stages"] == [{"device": "cpu", "threads": 1}]


def test_the_confusion_matrix_is_that_of_the_newest_epoch(run: RunDirectory):
    for epoch in (1, 2):
        run.write_confusion(epoch, ("ant", "bee"), [[epoch, 0], [1, 3]])
    content = json.loads(run.confusion_file.read_text())
    assert content == {"epoch": 2, "class_names": ["ant", "bee"], "matrix": [[2, 0], [1, 3]]}
    assert not list(run.path.glob("*.tmp"))


def test_the_newest_checkpoint_has_the_highest_epoch(run: RunDirectory):
    """By the number, which has a digit more from 10,000 on."""
    for number in (10_000, 9_998, 9_999):
        folder = run.checkpoints / f"epoch_{number:04d}"
        folder.mkdir(parents=True)
        (folder / MANIFEST).write_text("{}")
    prune(run.checkpoints, keep=2)
    names = [path.name for path in list_checkpoints(run.checkpoints)]
    assert names == ["epoch_9999", "epoch_10000"]
