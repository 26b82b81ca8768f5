"""The processes of a local cluster, so that none of them outlives it.

Now and then a worker hangs in Ray's own exit, and an interrupted `ray.init` forgets its agents.
"""

from __future__ import annotations

import contextlib
import os
import signal
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_MARK = "LAMINAR_LOCAL_CLUSTER"


@dataclass(frozen=True)
class _Process:
    pid: int
    parent: int
    started: int
    """In clock ticks since boot: with the pid it names one process for ever."""


class Family:
    """What is started within `marked`, and whatever that starts in turn.

    Daemons inherit a mark through their environment. Agents and workers overwrite theirs with a
    title of their own, but their parents are known while these live.
    """

    def __init__(self) -> None:
        self._mark = uuid.uuid4().hex
        self._known: set[_Process] = set()

    @contextlib.contextmanager
    def marked(self) -> Iterator[None]:
        """Mark what starts within the block."""
        os.environ[_MARK] = self._mark
        try:
            yield
        finally:
            del os.environ[_MARK]

    def remember(self) -> None:
        """Take down who belongs to the family now; to be called while the daemons live."""
        found = _processes()
        wanted = f"{_MARK}={self._mark}".encode()
        family = {pid for pid in found if wanted in _environment(pid)}
        grown = True
        while grown:
            grown = False
            for pid, process in found.items():
                if process.parent in family and pid not in family:
                    family.add(pid)
                    grown = True
        self._known |= {found[pid] for pid in family}

    def end(self) -> None:
        """Kill who of the family still lives."""
        self.remember()
        found = _processes()
        for process in self._known:
            now = found.get(process.pid)
            if now is not None and now.started == process.started:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)


def _processes() -> dict[int, _Process]:
    """Return the living processes by pid; none where there is no /proc."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # "PID (NAME) STATE PARENT ...": the name may hold spaces and parentheses.
            fields = path.read_text().rpartition(")")[2].split()
            if fields[0] not in ("Z", "X"):
                pid = int(path.parent.name)
                found[pid] = _Process(pid, int(fields[1]), int(fields[19]))
    return found


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []
