"""The command line: what it prints, and the exit code of everything that can go wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from laminar import __version__
from laminar.config import Config
from laminar.errors import DataError
from laminar.run_directory import RunDirectory
from service.cli import app, main

METRICS = {
    "epoch": 1,
    "num_batches": 4,
    "phases": [{"phase": "parallel", "num_batches": 4}],
    "parallel_fraction": 1.0,
    "train_loss": 1.0,
    "train_accuracy": 0.5,
    "test_loss": 1.1,
    "test_accuracy": 0.8125,
    "seconds": {"parallel": 1.0},
    "samples_per_s": 10.0,
}


class RunStopped(Exception):  # noqa: N818 - named like what it stands for
    def __init__(self, run_path: str, last_checkpoint: str | None) -> None:
        super().__init__(run_path, last_checkpoint)
        self.run_path, self.last_checkpoint = run_path, last_checkpoint


class FakeTrainer:
    """A trainer that writes a run directory of one epoch, or does what a test tells it to."""

    made: dict[str, Any]
    during_fit: Any

    def __init__(self, config: Config, *, run_config: Any, address: str | None, callback: Any):
        type(self).made = {"config": config, "run_config": run_config, "address": address}
        self.run = RunDirectory(Path(run_config.storage_path) / run_config.name)
        self.is_new = True

    @classmethod
    def resume(cls, path: Path, *, address: str | None, callback: Any) -> FakeTrainer:
        run_config = types.SimpleNamespace(storage_path=str(path.parent), name=path.name)
        config = RunDirectory(path).open_config()
        trainer = cls(config, run_config=run_config, address=address, callback=callback)
        trainer.is_new = False
        return trainer

    def fit(self) -> Any:
        if self.is_new:
            self.run.create(self.made["config"])
        type(self).during_fit(self.run)
        self.run.append_metrics(METRICS)
        return types.SimpleNamespace(path=str(self.run.path))


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> type[FakeTrainer]:
    """Stand-ins for actors and ray.train, which take seconds to import."""
    actors, ray, ray_train = (types.ModuleType(n) for n in ("actors", "ray", "ray.train"))
    actors.LayerParallelTrainer, actors.RunStopped = FakeTrainer, RunStopped  # type: ignore[attr-defined]
    for name in ("RunConfig", "CheckpointConfig", "FailureConfig"):
        setattr(ray_train, name, types.SimpleNamespace)
    for module in (actors, ray, ray_train):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    FakeTrainer.during_fit = lambda run: None
    return FakeTrainer


@pytest.fixture
def laminar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the entry point as the shell would; return exit code, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["laminar", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


def test_config_show_prints_the_whole_configuration(tmp_path: Path):
    path = tmp_path / "config.yaml"
    path.write_text("epochs: 3")
    result = CliRunner().invoke(app, ["config", "show", str(path), "--set", "optimizer.lr=0.2"])
    assert result.exit_code == 0
    shown = Config.model_validate(yaml.safe_load(result.stdout))
    assert (shown.epochs, shown.optimizer.lr) == (3, 0.2)


def test_config_schema_prints_json():
    result = CliRunner().invoke(app, ["config", "schema"])
    assert result.exit_code == 0
    assert "num_stages" in json.loads(result.stdout)["properties"]


def test_version():
    assert CliRunner().invoke(app, ["version"]).stdout == f"{__version__}\n"


@pytest.mark.parametrize("command", [(), ("train",), ("resume",), ("evaluate",), ("config",)])
def test_every_command_has_a_help_text(command: tuple[str, ...]):
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("config", "show", "absent.yaml"), "absent.yaml"),
        (("config", "show", "--set", "epochs=0"), "`epochs`"),
        (("config", "show", "--set", "epoch=1"), "did you mean `epochs`?"),
        (("train", "--set", "batch_size=7"), "parallel.micro_batches"),
        (("evaluate", "absent"), "absent"),
        (("evaluate", "absent", "--split", "x"), "--split must be test or train"),
    ],
)
def test_a_mistake_of_the_user_is_one_line_and_exit_code_2(
    laminar: Any, trainer: Any, arguments: tuple[str, ...], words: str
):
    code, out, err = laminar(*arguments)
    assert code == 2
    assert out == ""
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert words in lines[0]


@pytest.mark.parametrize(
    "arguments", [["nope"], ["train", "--nope"], ["resume"], ["train", "--keep", "0"]]
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]):
    assert CliRunner().invoke(app, arguments).exit_code == 2


def test_train_ends_with_a_plot_and_says_where_everything_is(
    laminar: Any, trainer: type[FakeTrainer], tmp_path: Path
):
    code, out, _ = laminar(
        *("train", "--set", "epochs=1", "--name", "one", "--storage-path", tmp_path),
        *("--address", "auto", "--keep", "2", "--max-failures", "1", "--quiet"),
    )
    assert code == 0
    assert out.splitlines()[0] == "test accuracy 0.8125"
    assert str(tmp_path / "one") in out
    assert (tmp_path / "one" / "plot.png").is_file()
    made = trainer.made
    assert made["config"].epochs == 1
    assert made["address"] == "auto"
    assert made["run_config"].checkpoint_config.num_to_keep == 2
    assert made["run_config"].failure_config.max_failures == 1


def test_a_run_without_a_name_gets_one(laminar: Any, trainer: type[FakeTrainer], tmp_path: Path):
    assert laminar("train", "--storage-path", tmp_path, "--quiet")[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == [trainer.made["run_config"].name]


def test_resume_goes_on_in_the_same_folder(laminar: Any, trainer: Any, tmp_path: Path):
    RunDirectory(tmp_path / "one").create(Config(epochs=7))
    code, out, _ = laminar("resume", tmp_path / "one", "--quiet")
    assert code == 0
    assert trainer.made["config"].epochs == 7
    assert str(tmp_path / "one") in out


def test_a_user_error_while_training_is_exit_code_2(laminar: Any, trainer: Any, tmp_path: Path):
    def fail(run: RunDirectory) -> None:
        raise DataError("images must be there", got="none", fix="add some")

    trainer.during_fit = fail
    code, _, err = laminar("train", "--storage-path", tmp_path, "--quiet")
    assert (code, err) == (2, "error: images must be there (got none); add some\n")


def test_a_failure_of_the_engine_is_one_line_and_exit_code_1(
    laminar: Any, trainer: Any, tmp_path: Path
):
    def fail(run: RunDirectory) -> None:
        raise RuntimeError("training failed: stage 1 died")

    trainer.during_fit = fail
    code, _, err = laminar("train", "--storage-path", tmp_path, "--quiet")
    assert code == 1
    assert err.startswith("error: training failed: stage 1 died")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_cleanly(
    laminar: Any, trainer: Any, tmp_path: Path, number: signal.Signals
):
    def stop(run: RunDirectory) -> None:
        run.append_metrics(METRICS)
        try:
            os.kill(os.getpid(), number)
        except KeyboardInterrupt:
            raise RunStopped(str(run.path), "epoch_0001") from None
        pytest.fail("the signal did not interrupt")

    trainer.during_fit = stop
    before = signal.getsignal(signal.SIGTERM)
    code, out, _ = laminar("train", "--name", "one", "--storage-path", tmp_path, "--quiet")
    assert code == 130
    assert "epoch_0001" in out
    assert f"laminar resume {tmp_path / 'one'}" in out
    assert (tmp_path / "one" / "plot.png").is_file()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_stop_before_the_first_epoch_has_nothing_to_resume(
    laminar: Any, trainer: Any, tmp_path: Path
):
    def stop(run: RunDirectory) -> None:
        raise RunStopped(str(run.path), None)

    trainer.during_fit = stop
    code, out, _ = laminar("train", "--name", "one", "--storage-path", tmp_path, "--quiet")
    assert code == 130
    assert "resume" not in out
    assert not (tmp_path / "one" / "plot.png").exists()


def test_configurations_are_shown_without_importing_anything_slow():
    program = (
        "import sys\n"
        "from service.cli import main\n"
        "sys.argv = ['laminar', 'config', 'show']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "slow = [n for n in ('ray', 'torch', 'matplotlib', 'actors') if n in sys.modules]\n"
        "sys.exit(', '.join(slow) or 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
