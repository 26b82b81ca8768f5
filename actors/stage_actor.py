"""The stage actor as its neighbours and the coordinator see it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ray
from numpy.typing import NDArray

from actors.reports import StageProgress, StageReport
from laminar.checkpoint import SavedPart
from laminar.plan import Plan, Segment

if TYPE_CHECKING:
    from actors.stage_worker import StageWorker

Array = NDArray[Any]


@ray.remote(concurrency_groups={"forward": 1, "adjoint": 1, "control": 1})  # type: ignore[call-overload]
class StageActor:
    """A stage in a process of its own; `StageWorker` does the work.

    Ray sends this class to whoever holds a handle of the actor, with all that its methods name. The
    coordinator needs no torch for it: the worker is imported only where the actor lives.
    """

    def __init__(self) -> None:
        from actors.stage_worker import StageWorker

        self._worker: StageWorker = StageWorker()

    def setup(
        self, plan: Plan, index: int, num_threads: int, is_new: bool = True
    ) -> dict[str, Any]:
        """Build the stage, or build it anew, and open the data it reads; see `StageWorker`."""
        return self._worker.setup(plan, index, num_threads, is_new)

    def connect(self, previous: Any, following: Any) -> None:
        """Introduce the neighbours: handles of their actors, None at the ends."""
        self._worker.connect(previous, following)

    # -- the phases -------------------------------------------------------------------------

    def train(
        self, segment: Segment, phase: int, is_measured: bool, is_kept: bool = False
    ) -> StageReport:
        """Run one segment to its end; see `StageWorker`."""
        return self._worker.train(segment, phase, is_measured, is_kept)

    def measure_exactness(self, segment: Segment, phase: int) -> StageReport:
        """Compare the gradient of the batch that was kept of a segment with the exact one."""
        return self._worker.measure_exactness(segment, phase)

    def evaluate(self, phase: int) -> StageReport:
        """Run the test set forward."""
        return self._worker.evaluate(phase)

    # -- called by the neighbours, each direction on a thread of its own ----------------------

    @ray.method(concurrency_group="forward")
    def deliver_forward(self, phase: int, micro: int, *arrays: Array) -> None:
        """Take in C(x) of a micro-batch from the stage before."""
        self._worker.deliver(phase, "forward", micro, arrays)

    @ray.method(concurrency_group="adjoint")
    def deliver_adjoint(self, phase: int, micro: int, *arrays: Array) -> None:
        """Take in the adjoint of a micro-batch from the next stage."""
        self._worker.deliver(phase, "adjoint", micro, arrays)

    # -- called by the coordinator -------------------------------------------------------------

    @ray.method(concurrency_group="control")
    def progress(self) -> StageProgress:
        """Say how far the phase is."""
        return self._worker.progress()

    @ray.method(concurrency_group="control")
    def abort(self) -> None:
        """Leave the phase under way at the next message or batch."""
        self._worker.abort()

    def save(self, folder: str) -> SavedPart:
        """Write this stage's part of a checkpoint."""
        return self._worker.save(folder)

    def load(self, folder: str, parts: Sequence[SavedPart]) -> None:
        """Take over this stage's share of a checkpoint."""
        self._worker.load(folder, parts)

    def state(self) -> dict[str, Array]:
        """Return the state as numpy arrays; for tests of exactness."""
        return self._worker.state()
