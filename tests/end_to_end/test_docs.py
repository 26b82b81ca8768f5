"""What the documentation says works: its commands, its Python, its links, the files it names."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from laminar.run_directory import RunDirectory
from tests.end_to_end import shell

BIN = Path(sys.executable).parent


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(readme: str) -> list[str]:
    """Return the commands of the README in their order, without their comments."""
    lines = "".join(blocks(readme, "console")).splitlines()
    return [line.removeprefix("$ ").partition("  #")[0].rstrip() for line in lines if line]


@pytest.fixture(scope="module")
def readme(repository: Path) -> str:
    return (repository / "README.md").read_text()


def run(command: list[str], cwd: Path, timeout_s: float = 300) -> str:
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout_s
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.timeout(400)
def test_make_train_trains_digits_to_97_percent(readme: str, repository: Path, tmp_path: Path):
    """The main job: two stage actors, the filter on, at least 85% of the passes parallel."""
    assert commands(readme)[:2] == ["make train", "make test"]
    storage = tmp_path / "runs"
    make = ["make", f"VENV={BIN.parent}", f"ARGS=--storage-path {storage} --name digits --keep 2"]
    if not (BIN.parent / ".installed").exists():  # another virtual environment runs this test
        make += ["--assume-old", str(BIN.parent / ".installed")]
    run([*make, "train"], repository)
    lines = (storage / "digits/metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in lines]
    assert metrics[-1]["test_accuracy"] >= 0.97
    assert metrics[-1]["parallel_fraction"] >= 0.85
    newest = [f"epoch_{len(metrics) - 1:04d}", f"epoch_{len(metrics):04d}"]
    assert sorted(p.name for p in (storage / "digits/checkpoints").iterdir()) == newest
    config = (storage / "digits/config.yaml").read_text()
    for words in ("num_stages: 2", "name: digits", "pool: 2", "cast: fp16"):
        assert words in config
    assert (storage / "digits/plot.png").stat().st_size > 10_000
    assert "pytest" in run(["make", "--dry-run", "test"], repository)


@pytest.mark.timeout(400)
def test_the_commands_of_the_readme_run(
    readme: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    laminar: Callable[..., tuple[int, str, str]],
):
    """The first, which trains, in a process of its own; the others save themselves the imports."""
    first, *others = [c.split() for c in commands(readme) if not c.startswith("make ")]
    assert first[:2] == ["laminar", "train"]
    done = shell.run(*first[1:], cwd=tmp_path, timeout_s=300)
    assert done.code == 0, done.err
    trained = RunDirectory(tmp_path / "runs/first")
    shell.check_output(done, trained)
    assert trained.plot_file.is_file()
    assert len(others) >= 5
    monkeypatch.chdir(tmp_path)
    for program, *arguments in others:
        assert program == "laminar"
        code, _, err = laminar(*arguments)
        assert code == 0, (arguments, err)


def test_the_python_of_the_readme_runs(
    readme: str,
    tmp_path: Path,
    ray_session: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """In the Ray that this process has, which a trainer uses as it is."""
    (program,) = blocks(readme, "python")
    assert len([line for line in program.splitlines() if line.strip()]) <= 10
    (tmp_path / "program.py").write_text(program)
    monkeypatch.chdir(tmp_path)
    runpy.run_path("program.py")
    accuracy, checkpoint = capsys.readouterr().out.split()
    assert 0 < float(accuracy) <= 1
    assert (Path(checkpoint) / "manifest.json").is_file()


def test_relative_links_lead_somewhere(repository: Path):
    pages = [*repository.glob("*.md"), *repository.glob("docs/**/*.md")]
    assert len(pages) > 5
    broken = []
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(repository)}: {target}")
    assert broken == []


def test_files_that_the_pages_name_exist(repository: Path):
    """`laminar/engine.py`, `benchmarks/speed` and the like, wherever a page names them."""
    folders = "laminar|actors|service|tuning|tests|benchmarks|docs|docker|examples"
    missing = []
    for page in [*repository.glob("*.md"), *repository.glob("docs/**/*.md")]:
        for name in re.findall(rf"`((?:{folders})/[\w./-]+)`", page.read_text()):
            if not (repository / name).exists():
                missing.append(f"{page.relative_to(repository)}: {name}")
    assert missing == []
