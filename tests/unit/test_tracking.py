"""MLflow and Weights & Biases, the real packages: told each epoch, once, whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from laminar.config import Config, TrackingConfig
from laminar.config_file import load_config
from laminar.errors import ConfigError
from laminar.event_log import epoch_scalars
from laminar.run_directory import RunDirectory
from laminar.trackers import check_trackers, flat
from laminar.tracking import Tracking, described

MLFLOW = {"mlflow": {"experiment": "digits"}}
WANDB = {"wandb": {"project": "digits"}}


@pytest.fixture(autouse=True)
def _at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Neither a user's settings nor a network reach these tests, and no process outlives them."""
    for name in list(os.environ):
        if name.startswith(("MLFLOW_", "WANDB_")):
            monkeypatch.delenv(name)
    for name, folder in (("HOME", ""), ("WANDB_CONFIG_DIR", "c"), ("WANDB_CACHE_DIR", "d")):
        monkeypatch.setenv(name, str(tmp_path / "home" / folder))
    # Set by Tracking and left to the process; monkeypatch takes them away again.
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    connect = socket.socket.connect

    def at_home(self: socket.socket, address: Any) -> None:
        assert self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1"), address
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", at_home)
    yield
    if "wandb" in sys.modules and sys.modules["wandb"] is not None:
        sys.modules["wandb"].teardown()


def line(epoch: int) -> dict[str, Any]:
    return {
        "epoch": epoch,
        **{f"{s}_{w}": 1 / (1 + epoch) for s in ("train", "test") for w in ("loss", "accuracy")},
        "lr": 0.1,
        "samples_per_s": 100.0 * epoch,
        "parallel_fraction": 0.5,
        "seconds": {"parallel": 1.0},
        "cuts": [{"boundary": 2, "inline_bytes": 7, "store_bytes": 8}],
    }


def timeline(epoch: int) -> dict[str, Any]:
    cut = {"boundary": 2, "violation": epoch / 8}
    return {"epoch": epoch, "phases": [{"phase": "parallel", "cuts": [cut]}]}


class Run:
    """A run directory, and what a trainer does with it."""

    def __init__(self, path: Path, tracking: dict[str, Any]) -> None:
        self.config = Config.model_validate({"tracking": tracking, "filters": {"cast": "fp16"}})
        self.directory = RunDirectory(path)
        self.directory.create(self.config)
        self.warnings: list[str] = []

    def tracking(self, num_epochs: int = 0, *, is_new: bool = False) -> Tracking:
        return Tracking(
            self.config,
            self.directory,
            num_epochs=num_epochs,
            is_new=is_new,
            warn=self.warnings.append,
        )

    def save(self, epoch: int) -> dict[str, float]:
        self.directory.append_metrics(line(epoch))
        self.directory.append_timeline(timeline(epoch))
        return epoch_scalars(line(epoch), timeline(epoch))

    def train(self, first: int, last: int) -> None:
        """From one epoch to another, all told."""
        with self.tracking(first - 1, is_new=first == 1) as tracking:
            for epoch in range(first, last + 1):
                tracking.write(epoch, self.save(epoch))

    def told(self) -> dict[str, Any]:
        return dict(json.loads(self.directory.tracking_file.read_text()))


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new database of MLflow's, which takes seconds to make."""
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        Run(folder / "one", {"mlflow": {"experiment": "other"}}).train(1, 1)
    # What MLflow would make in the working directory is not there.
    assert {path.name for path in folder.iterdir()} <= {
        "one", "mlflow.db", ".mlflow.db.lock", "mlartifacts",
    }  # fmt: skip
    assert not Path("mlruns").exists()
    return folder / "mlflow.db"


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> Path:
    """A copy beside the run directories of a test."""
    return Path(shutil.copy(empty_store, tmp_path))


def mlflow_client(folder: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")


def history(run: Run, name: str = "loss/test") -> list[tuple[int, float]]:
    client = mlflow_client(run.directory.path.parent)
    metrics = client.get_metric_history(run.told()["mlflow"]["run_id"], name)
    return sorted((metric.step, metric.value) for metric in metrics)


def test_mlflow_is_told_every_epoch_and_the_settings(tmp_path: Path, store: Path):
    run = Run(tmp_path / "one", MLFLOW)
    run.train(1, 3)
    client = mlflow_client(tmp_path)
    (experiment,) = [e for e in client.search_experiments() if e.name == "digits"]
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_id == run.told()["mlflow"]["run_id"]
    assert (found.info.run_name, found.info.status) == ("one", "FINISHED")
    assert found.data.params["optimizer.lr"] == str(run.config.optimizer.lr)
    assert found.data.params["filters.cast"] == "fp16"
    assert found.data.tags["laminar.run"] == str(run.directory.path)
    assert found.data.metrics == epoch_scalars(line(3), timeline(3))
    assert history(run) == [(1, 1 / 2), (2, 1 / 3), (3, 1 / 4)]
    assert run.warnings == []


def test_a_resumed_run_goes_on_in_the_same_mlflow_run(tmp_path: Path, store: Path):
    """Which hears first of epochs that were saved when nobody could tell it of them."""
    run = Run(tmp_path / "one", MLFLOW)
    with contextlib.suppress(KeyboardInterrupt), run.tracking(is_new=True) as tracking:
        tracking.write(1, run.save(1))
        run.save(2)  # the driver is stopped before it says so
        raise KeyboardInterrupt
    before = run.told()["mlflow"]
    client = mlflow_client(tmp_path)
    assert client.get_run(before["run_id"]).info.status == "KILLED"
    with contextlib.suppress(RuntimeError), run.tracking(2):
        assert client.get_run(before["run_id"]).info.status == "RUNNING"
        assert [step for step, _ in history(run)] == [1, 2]
        raise RuntimeError
    assert client.get_run(before["run_id"]).info.status == "FAILED"
    run.save(3)
    run.tracking(3).catch_up()
    assert client.get_run(before["run_id"]).info.status == "FINISHED"
    assert run.told()["mlflow"] == {"run_id": before["run_id"], "num_epochs": 3}
    assert history(run, "violation/cut_at_block_2/parallel") == [(1, 1 / 8), (2, 2 / 8), (3, 3 / 8)]
    ended = client.get_run(before["run_id"]).info.end_time
    run.tracking(3).catch_up()  # nothing is missing
    assert client.get_run(before["run_id"]).info.end_time == ended


def test_a_store_that_forgot_the_run_is_told_all_of_it(
    tmp_path: Path, store: Path, empty_store: Path
):
    run = Run(tmp_path / "one", MLFLOW)
    run.train(1, 2)
    before = run.told()["mlflow"]["run_id"]
    shutil.copy(empty_store, store)
    run.train(3, 3)
    assert run.told()["mlflow"]["run_id"] != before
    assert [step for step, _ in history(run)] == [1, 2, 3]
    assert run.warnings == []


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_server_that_does_not_answer(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
):
    """Is refused by a new run; a resumed one trains on, says so once, and tells it all later."""
    uri = f"http://someone:secret@127.0.0.1:{closed_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    run = Run(tmp_path / "one", MLFLOW)
    with pytest.raises(ConfigError, match=r"tracking\.mlflow must lead to") as raised:
        run.tracking(is_new=True).__enter__()
    assert "secret" not in str(raised.value)
    run.save(1)
    with run.tracking(1) as tracking:
        tracking.write(2, run.save(2))
        (warning,) = run.warnings
        assert warning.startswith("mlflow takes no figures, and will be told later: ")
        assert "secret" not in warning
        monkeypatch.delenv("MLFLOW_TRACKING_URI")
        tracking.write(3, run.save(3))
    assert [step for step, _ in history(run)] == [1, 2, 3]
    assert len(run.warnings) == 1


def test_a_message_is_cut_after_its_passwords_are_left_out(monkeypatch: pytest.MonkeyPatch):
    uri = "http://someone:secret@host.example:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for num_before in range(260, 300):  # the cut goes through every part of the address
        text = described(OSError("x" * num_before + uri + "y" * 100))
        assert len(text) == 300
        assert "someone" not in text
    assert described(OSError(f"no {uri}\nmore")) == "OSError: no the store of MLFLOW_TRACKING_URI"


def wandb_records(path: Path) -> list[Any]:
    """Return the records of an offline file: a log of LevelDB's form behind seven bytes.

    Blocks of 32 KiB; a part of a record has checksum, length and kind (1 whole, 2 to 4 first,
    middle and last) before it.
    """
    from wandb.proto import wandb_internal_pb2

    content, at, records, parts = path.read_bytes(), 7, [], b""
    assert content[:4] == b":W&B"
    while at + 7 <= len(content):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        if at + 7 + length > len(content):
            break  # not all of it is written yet
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            records.append(wandb_internal_pb2.Record.FromString(parts))
            parts = b""
    return records


def flushed(path: Path, num_rows: int) -> list[dict[str, Any]]:
    """Return the rows of a file that has been ended, which its writer completes a moment later."""
    deadline = time.monotonic() + 30
    while len(rows := wandb_history(path)) < num_rows:
        assert time.monotonic() < deadline, rows
        time.sleep(0.05)
    return rows


def wandb_history(path: Path) -> list[dict[str, Any]]:
    items = [r.history.item for r in wandb_records(path) if r.HasField("history")]
    return [{(i.key or i.nested_key[0]): json.loads(i.value_json) for i in row} for row in items]


def test_wandb_writes_files_of_one_run_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    run = Run(tmp_path / "one", {**WANDB, "name": "first"})
    with run.tracking(is_new=True) as tracking:
        tracking.write(1, run.save(1))
        children = psutil.Process().children(recursive=True)
        assert "wandb-core" in [child.name() for child in children]
        peers = [c.raddr.ip for p in children for c in p.net_connections("inet") if c.raddr]
        assert set(peers) <= {"127.0.0.1", "::1"}
    run.train(2, 3)
    run_id = run.told()["wandb"]["run_id"]
    files = sorted(run.directory.path.glob(f"wandb/offline-run-*-{run_id}*/run-{run_id}.wandb"))
    assert len(files) == 2
    rows = flushed(files[0], 1) + flushed(files[1], 2)
    assert [row["_step"] for row in rows] == [row["epoch"] for row in rows] == [1, 2, 3]
    for row in rows:
        wanted = epoch_scalars(line(row["epoch"]), timeline(row["epoch"]))
        assert {name: row[name] for name in wanted} == wanted
    (begun,) = [r.run for r in wandb_records(files[0]) if r.HasField("run")][:1]
    assert (begun.run_id, begun.project, begun.display_name) == (run_id, "digits", "first")
    assert run.warnings == []


PROGRAM = """
import os, sys
from pathlib import Path
from laminar.config import Config
from laminar.run_directory import RunDirectory
from laminar.tracking import Tracking, described
import psutil
config = Config.model_validate({"tracking": {"wandb": {}}})
run = RunDirectory(Path(sys.argv[1]))
run.create(config)
tracking = Tracking(config, run, num_epochs=0, is_new=True, warn=print).__enter__()
tracking.write(1, {"loss/test": 0.5})
print(*[child.pid for child in psutil.Process().children(recursive=True)], flush=True)
os._exit(0)
"""


def test_nothing_of_wandb_outlives_a_driver_that_dies(tmp_path: Path, repository: Path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "run")],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    pids = [int(pid) for pid in done.stdout.split()]
    assert pids
    deadline = time.monotonic() + 30
    while any(psutil.pid_exists(pid) for pid in pids):
        assert time.monotonic() < deadline, "wandb-core lives on"
        time.sleep(0.1)
    # What it was told is lost with it, and so told again.
    told = json.loads((tmp_path / "run/tracking.json").read_text())["wandb"]
    assert told["num_epochs"] == 0


@pytest.mark.parametrize("key", ["mlflow", "wandb"])
def test_a_missing_package_is_refused_at_once(key: str, monkeypatch: pytest.MonkeyPatch):
    config = TrackingConfig.model_validate({key: {}})
    check_trackers(config)
    monkeypatch.setitem(sys.modules, key, None)
    with pytest.raises(ConfigError, match=rf"pip install 'laminar-train\[{key}\]'"):
        check_trackers(config)
    check_trackers(TrackingConfig())


def test_a_damaged_record_is_refused(tmp_path: Path):
    run = Run(tmp_path / "one", MLFLOW)
    run.directory.write_tracking('{"mlflow": {"run_id": 3, "num_epochs": -1}}')
    with pytest.raises(ConfigError, match=r"tracking\.json must be as it was written"):
        run.tracking()


def test_without_trackers_nothing_is_written(tmp_path: Path):
    run = Run(tmp_path / "one", {})
    run.train(1, 2)
    assert not run.directory.tracking_file.exists()
    assert not run.directory.wandb.exists()


def test_a_run_that_never_began_leaves_nothing(tmp_path: Path):
    run = Run(tmp_path / "one", WANDB)
    with contextlib.suppress(RuntimeError), run.tracking(is_new=True):
        raise RuntimeError
    run.directory.discard()
    assert not run.directory.path.exists()


def test_one_setting_turns_each_on():
    config = load_config(None, ["tracking.mlflow={}", "tracking.wandb.project=mine"])
    assert config.tracking.mlflow is not None
    assert config.tracking.mlflow.experiment == "laminar"
    assert config.tracking.wandb is not None
    assert config.tracking.wandb.project == "mine"
    settings = dict(flat(load_config(None, ["cuts=[3]"])))
    assert settings["cuts"] == "[3]"
    assert settings["model.name"] == "resnet20"
    assert not any(name.startswith("tracking") for name in settings)
