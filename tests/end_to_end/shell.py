"""The command line as a shell runs it: real processes in a session of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from laminar.run_directory import RunDirectory

Process = subprocess.Popen[str]

TIMEOUT_S = 110
LAMINAR = str(Path(sys.executable).with_name("laminar"))


@dataclass(frozen=True)
class Ended:
    """What a command that has ended leaves to look at."""

    code: int
    out: str
    err: str
    survivors: list[str]
    """Processes of its session that outlive it."""


def run(
    *arguments: object,
    cwd: Path,
    while_running: Callable[[Process], None] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Ended:
    """Run `laminar ARGUMENTS` to its end.

    Args:
        arguments: As strings.
        cwd: Working folder.
        while_running: Called with the process; its pid is also that of its group and session.
        timeout_s: From when that returns.
    """
    with started(*arguments, cwd=cwd) as process:
        if while_running is not None:
            while_running(process)
        out, err = process.communicate(timeout=timeout_s)
        return Ended(process.returncode, out, err, living(process.pid))


def check_output(done: Ended, run: RunDirectory, first_epoch: int = 1) -> None:
    """Check what a command that trained a run to its end, from an epoch on, has said and left."""
    metrics = run.read_metrics()
    num_epochs = len(metrics)
    assert done.out.splitlines() == [
        f"test accuracy {metrics[-1]['test_accuracy']:.4f}",
        f"run directory {run.path}",
        f"plot          {run.plot_file}",
    ]
    lines = done.err.splitlines()
    assert len(lines) == num_epochs + 1 - first_epoch > 0
    for line, epoch in zip(lines, metrics[first_epoch - 1 :], strict=True):
        assert line.startswith(f"epoch {epoch['epoch']}/{num_epochs}: ")
        assert f"test loss {epoch['test_loss']:.4f}" in line
        assert line.endswith(" samples/s")
    assert done.survivors == []


@contextmanager
def started(*arguments: object, cwd: Path) -> Iterator[Process]:
    process = subprocess.Popen(
        [LAMINAR, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell starts what runs in its background with SIGINT ignored, and children inherit it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def living(session: int) -> list[str]:
    """Return the names of a session's processes, zombies apart.

    Nothing that Ray starts leaves the session, while it makes groups of its own, and agents and
    workers overwrite environment and command.
    """
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = path.read_text().partition("(")[2].rpartition(") ")
        except OSError:
            continue
        state, _, _, of_session, *_ = rest.split()
        if int(of_session) == session and state not in "ZX":
            found.append(name)
    return found


def wait_until(condition: Callable[[], bool], process: Process) -> None:
    """Poll until something holds, for as long as the process lives."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)
