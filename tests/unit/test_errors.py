"""Whatever a user gets wrong: one line, exit code 2, and nothing was started.

All rows of `mistakes.py` run in one fresh process, which watches itself: it must initialise no Ray
and start no other process. What only a running cluster can refuse is in
tests/on_ray/test_placement.py.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from laminar.config_file import dump_config
from tests.tiny import tiny_config
from tests.unit.mistakes import ROWS, Row

LINE = re.compile(r"error: (?P<rule>[^\n]+) \(got (?P<got>[^\n]+)\); (?P<fix>[^\n]+)\n")


def attempt(row: Row, folder: Path) -> dict[str, Any]:
    """Make one mistake in this process and return what came of it."""
    import ray

    from service.cli import main

    folder.mkdir()
    (folder / "tiny.yaml").write_text(dump_config(tiny_config(resources={})))
    row.prepare(folder)
    before = sorted(folder.rglob("*"))
    os.chdir(folder)
    started.clear()
    sys.argv = ["laminar", *shlex.split(row.command)]
    out, err = io.StringIO(), io.StringIO()
    code: object = "none"
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code
        except BaseException as error:
            code = f"{type(error).__name__}: {error}"
    made = [str(p) for p in sorted(folder.rglob("*")) if p not in before]
    return {
        "code": code,
        "out": out.getvalue(),
        "err": err.getvalue(),
        "has_ray": ray.is_initialized(),
        "started": list(started),
        "made": made,
    }


started: list[str] = []
"""Programs that this process has started."""


def note_processes(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("subprocess.Popen", "os.posix_spawn", "os.fork", "os.forkpty"):
        started.append(f"{event} {arguments[:2]}")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("errors")
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.test_errors", str(folder)],
        cwd=repository,
        env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache")},
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_a_mistake_is_one_line_before_anything_starts(row: Row, results: dict[str, Any]):
    found = results[row.name]
    assert found["code"] == 2, found
    assert found["out"] == ""
    line = LINE.fullmatch(found["err"])
    assert line, found["err"]
    assert [word for word in row.words if word not in found["err"]] == []
    assert not found["has_ray"]
    assert found["started"] == []
    assert found["made"] == []


def test_rows_have_names_of_their_own():
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_the_watch_for_processes_would_see_one():
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import subprocess, sys\n"
            "from tests.unit.test_errors import note_processes, started\n"
            "sys.addaudithook(note_processes)\n"
            "subprocess.run(['true'], check=True)\n"
            "assert len(started) == 1, started\n",
        ],
        check=False,
    )
    assert done.returncode == 0


def main(folder: Path) -> None:
    """Run all rows; nothing but results.json leaves this process."""
    import service.plot  # noqa: F401 - the first time anywhere it starts a program to list fonts

    torch.set_num_threads(1)
    sys.addaudithook(note_processes)
    found = {row.name: attempt(row, folder / f"row_{n}") for n, row in enumerate(ROWS)}
    (folder / "results.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
