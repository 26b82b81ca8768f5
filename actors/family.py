"""The processes of a local cluster, so that none of them outlives it.

Now and then a worker hangs in Ray's own exit, and an interrupted `ray.init` forgets its agents.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator

import psutil

_MARK = "LAMINAR_LOCAL_CLUSTER"


class Family:
    """What is started within `marked`, and whatever that starts in turn.

    Daemons inherit a mark through their environment. Agents and workers overwrite theirs with a
    title of their own, but their parents are known while these live.
    """

    def __init__(self) -> None:
        self._mark = uuid.uuid4().hex
        self._known: set[psutil.Process] = set()

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
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(_MARK) == self._mark:
                    self._known |= {process, *process.children(recursive=True)}

    def end(self) -> None:
        """Kill who of the family still lives; never another process that got its number."""
        self.remember()
        for process in self._known:
            with contextlib.suppress(psutil.Error):
                process.kill()
