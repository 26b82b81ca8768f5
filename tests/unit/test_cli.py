"""The command line where nothing is trained: configurations, help, wrong usage."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from laminar import __version__
from laminar.config import Config
from service.cli import app
from tests.tiny import tiny_plan, write_run


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


COMMANDS = (
    "", "train", "resume", "evaluate", "predict", "export", "report", "compare", "doctor", "config",
    "config show", "config schema", "version", "submit", "list", "status", "logs", "stop", "delete",
    "artifacts", "artifacts get", "artifacts list", "serve", "token", "token create", "token list",
    "token revoke",
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_text(command: str):
    result = CliRunner().invoke(app, [*command.split(), "--help"])
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
        (("list", "--address", "host:1"), "must be a URL"),
        (("list", "--state", "dead"), "--state must be a state of jobs"),
        (("submit", "--address", "http://127.0.0.1:1", "--name", "\n"), "--name must be letters"),
        (("resume", "job-1jdq8w7k2h3x9p", "--address", "127.0.0.1:6379"), "must be a URL"),
        (("resume", "job-1jdq8w7k2h3x9p", "--cuts", "3"), "a job must be resumed as it is"),
        (
            ("resume", "job-1jdq8w7k2h3x9", "--set", "resources.device=cpu"),
            "a run directory must contain config.yaml",
        ),
        (("token", "create", "--file", "t", "--user", "a b"), "--user of a token must be"),
        (("token", "create", "--file", "t", "--user", "a", "--role", "x"), "--role of a token"),
    ],
)
def test_a_mistake_of_the_user_is_one_line_and_exit_code_2(
    laminar: Any, arguments: tuple[str, ...], words: str
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


def test_evaluate_prints_a_line_and_writes_the_confusion_matrix(laminar: Any, tmp_path: Path):
    plan = tiny_plan(3, data=tiny_plan().config.data.model_dump() | {"num_classes": 6})
    write_run(tmp_path / "run", plan)
    code, out, err = laminar(
        "evaluate", tmp_path / "run", "--confusion-matrix", tmp_path / "m.json"
    )
    assert (code, len(out.splitlines())) == (0, 1), err
    printed, written = json.loads(out), json.loads((tmp_path / "m.json").read_text())
    assert printed == {k: v for k, v in written.items() if k not in ("class_names", "matrix")}
    assert 0 <= printed["accuracy"] <= printed["top5_accuracy"] <= 1
    assert written["class_names"] == list("012345")
    assert sum(map(sum, written["matrix"])) == printed["num_samples"] == 15
    assert sum(written["matrix"][i][i] for i in range(6)) == round(15 * printed["accuracy"])


@pytest.mark.parametrize("arguments", [("config", "show"), ("--help",), ("export", "--help")])
def test_nothing_slow_is_imported_where_nothing_is_computed(arguments: tuple[str, ...]):
    program = (
        "import sys\n"
        "from service.cli import main\n"
        f"sys.argv = ['laminar', *{arguments}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "slow = {'ray', 'torch', 'matplotlib', 'plotly', 'actors', 'fastapi', 'httpx', 'pyarrow'}\n"
        "slow &= set(sys.modules)\n"
        "sys.exit(', '.join(slow) or 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
