"""What a stage actor does: drive a `laminar.stage.Stage`, its messages pushed to its neighbours."""

from __future__ import annotations

import collections
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import torch
from numpy.typing import NDArray

from actors.mailbox import Aborted, Mailbox
from actors.reports import SentBytes, StageProgress, StageReport
from actors.wire import count_bytes, from_arrays, to_arrays
from laminar.allocator import keep_freed_memory
from laminar.checkpoint import SavedPart, load_parts, write_part
from laminar.data import open_inputs, open_labels
from laminar.engine import (
    BatchDone,
    Direction,
    Program,
    Receive,
    Send,
    evaluation,
    exact_gradient,
)
from laminar.errors import ResourceError
from laminar.exactness import probed_batch
from laminar.filters import Message
from laminar.measured_stage import MeasuredStage
from laminar.plan import Plan, Segment
from laminar.precision import check_compiler, use_tf32
from laminar.timeline import Kind, TimedBatches, traced_batches
from laminar.training import training_phase

Array = NDArray[Any]

_VISITS_AHEAD = 4
"""Visits of the stored feed whose messages a mailbox holds before their sender waits."""


def pick_device(wanted: str) -> torch.device:
    """Return where to compute: `auto` takes the GPU that Ray gave, if torch can see it.

    Raises:
        ResourceError: `cuda` is wanted and there is none.
    """
    has_gpu = bool(ray.get_gpu_ids()) and torch.cuda.is_available()
    if wanted == "cuda" and not has_gpu:
        raise ResourceError(
            "resources.device cuda must give every stage a GPU that torch can use",
            got=f"GPUs {ray.get_gpu_ids()} from Ray, "
            f"{torch.cuda.device_count()} visible to torch {torch.__version__}",
            fix="mend the CUDA driver or torch build there, or set resources.device to auto or cpu",
        )
    return torch.device("cuda" if has_gpu and wanted != "cpu" else "cpu")


class StageWorker:
    """Owns one stage; its neighbours push messages into its mailbox while it computes.

    Its methods are those of `StageActor`.
    """

    def __init__(self) -> None:
        self._mailbox = Mailbox(capacity=1)
        self._done = 0

    def setup(
        self, plan: Plan, index: int, num_threads: int, is_new: bool = True
    ) -> dict[str, Any]:
        """Build the stage, or build it anew, and open the data it reads.

        Args:
            plan: The resolved run.
            index: k.
            num_threads: Intra-op threads.
            is_new: Whether no checkpoint will be loaded.

        Returns:
            For the environment record: address of the node, device, threads; from stage 0 the
            data's mean and std.
        """
        torch.set_num_threads(num_threads)
        keep_freed_memory()
        resources = plan.config.resources
        device = pick_device(resources.device)
        check_compiler(plan.config.precision, device.type)
        use_tf32(plan.config.precision)
        if device.type == "cuda" and 0 < resources.gpus_per_stage < 1:
            torch.cuda.set_per_process_memory_fraction(resources.gpus_per_stage)
        self._stage = MeasuredStage(plan, index, device, is_new=is_new)
        self._clock = self._stage.clock
        config, datasets = plan.config, plan.factories.datasets
        self._inputs = open_inputs(config, datasets) if self._stage.needs_images else None
        self._labels = open_labels(config, datasets) if self._stage.needs_labels else None
        # What the schedule lets a neighbour run ahead, so that training never waits for room.
        p = plan.config.parallel
        ahead = 2 * plan.config.num_stages * p.hop_delay + plan.config.correction.micro_batches
        if p.feed == "stored":
            ahead += _VISITS_AHEAD * plan.config.correction.micro_batches
        self._mailbox = Mailbox(capacity=ahead + 1)
        self._max_in_flight = ahead + 1
        info: dict[str, Any] = {
            "node": ray.util.get_node_ip_address(),  # type: ignore[no-untyped-call]
            "device": str(device),
            "num_threads": torch.get_num_threads(),
        }
        if self._inputs is not None:
            info["mean"], info["std"] = self._inputs.mean.tolist(), self._inputs.std.tolist()
        return info

    def connect(self, previous: Any, following: Any) -> None:
        """Introduce the neighbours: handles of their actors, None at the ends."""
        self._neighbours = {"forward": following, "adjoint": previous}

    # -- the phases -------------------------------------------------------------------------

    def train(
        self, segment: Segment, phase: int, is_measured: bool, is_kept: bool = False
    ) -> StageReport:
        """Run one segment to its end.

        Args:
            segment: What to train.
            phase: Number of the segment within the run.
            is_measured: Whether to trace and probe a few batches in its middle.
            is_kept: Whether to keep, of the batch there, what `measure_exactness` needs.
        """
        program = training_phase(self._stage, segment, *self._timed_data())
        if not is_measured:
            return self._run(phase, program)
        plan, batch = self._stage.plan, probed_batch(segment)
        config = plan.config
        kept = batch.epoch * plan.batches_per_epoch + batch.first_batch if is_kept else None
        is_parallel = segment.phase == "parallel"
        is_stored = is_parallel and config.parallel.feed == "stored"
        per_batch = config.num_micro_of(segment.phase)
        hop_ticks = config.parallel.hop_delay if is_parallel and not is_stored else 0
        traced = traced_batches(segment.num_batches, config.num_stages, hop_ticks, per_batch)
        probed: int | None = (batch.first_batch - segment.first_batch) * per_batch
        if is_parallel and config.method in ("greedy", "auxnet"):
            probed = None  # no adjoint crosses, or no stage works on what crosses
        return self._run(phase, program, traced, probed, kept)

    def measure_exactness(self, segment: Segment, phase: int) -> StageReport:
        """Compare the gradient of the batch that was kept of a segment with the exact one."""
        applied = self._stage.take_applied()
        batch = probed_batch(segment)
        program = exact_gradient(self._stage, applied, batch, *self._timed_data())
        return replace(self._run(phase, program), exactness=applied.exactness())

    def evaluate(self, phase: int) -> StageReport:
        """Run the test set forward."""
        num_batches = self._stage.plan.num_test_batches
        return self._run(phase, evaluation(self._stage, num_batches, *self._timed_data()))

    def _timed_data(self) -> tuple[TimedBatches | None, TimedBatches | None]:
        inputs, labels = (
            None if batches is None else TimedBatches(batches, self._clock)
            for batches in (self._inputs, self._labels)
        )
        return inputs, labels

    def _run(
        self,
        phase: int,
        program: Program,
        traced: range = range(0),
        probed_micro: int | None = None,
        kept_batch: int | None = None,
    ) -> StageReport:
        self._mailbox.open_phase(phase)
        self._done = 0
        self._stage.begin_phase(probed_micro=probed_micro, kept_batch=kept_batch)
        self._sent: dict[Direction, SentBytes] = {
            "forward": SentBytes(0, 0),
            "adjoint": SentBytes(0, 0),
        }
        self._in_flight: collections.deque[Any] = collections.deque()
        self._timeout_s = self._stage.plan.config.resources.message_timeout_s
        self._stage.discard()
        self._stage.take_tally()
        started = time.perf_counter()
        try:
            self._drive(phase, program, traced)
        except BaseException:
            self._stage.discard()
            raise
        seconds = time.perf_counter() - started
        return StageReport(
            seconds,
            self._clock.finish(seconds),
            self._sent,
            self._stage.take_tally(),
            tuple(self._clock.spans),
            self._stage.cut,
            self._stage.has_applied,
        )

    def _drive(self, phase: int, program: Program, traced: range) -> None:
        answer: Message | None = None
        while True:
            self._clock.is_tracing = self._done in traced
            try:
                step = program.send(answer)
            except StopIteration:
                break
            answer = None
            if isinstance(step, Receive):
                answer = self._receive(phase, step)
            elif isinstance(step, Send):
                self._send(phase, step)
            elif isinstance(step, BatchDone):
                self._done = step.num_batches
                if self._mailbox.is_aborted:
                    raise Aborted("the run was stopped")
        ray.get(list(self._in_flight), timeout=self._timeout_s)

    def _receive(self, phase: int, step: Receive) -> Message | None:
        if not step.waits:
            found = self._mailbox.take_now(phase, step.direction, step.micro)
            return None if found is None else from_arrays(found)
        kind: Kind = "wait_forward" if step.direction == "forward" else "wait_adjoint"
        with self._clock.span(kind, step.micro):
            arrays = self._mailbox.take(phase, step.direction, step.micro, self._timeout_s)
        return from_arrays(arrays)

    def _send(self, phase: int, step: Send) -> None:
        with self._clock.span("send", step.micro):
            self._push(phase, step)

    def _push(self, phase: int, step: Send) -> None:
        arrays = to_arrays(step.message)
        self._sent[step.direction] += count_bytes(arrays)
        neighbour = self._neighbours[step.direction]
        deliver = getattr(neighbour, f"deliver_{step.direction}")
        self._in_flight.append(deliver.remote(phase, step.micro, *arrays))
        if len(self._in_flight) > self._max_in_flight:
            ray.get(self._in_flight.popleft(), timeout=self._timeout_s)

    # -- called while a phase is under way, each on a thread of its own ------------------------

    def deliver(
        self, phase: int, direction: Direction, micro: int, arrays: Sequence[Array]
    ) -> None:
        """Take in a neighbour's message."""
        self._mailbox.put(phase, direction, micro, arrays)

    def progress(self) -> StageProgress:
        """Say how far the phase is."""
        return StageProgress(self._done, replace(self._stage.tally))

    def abort(self) -> None:
        """Leave the phase under way at the next message or batch."""
        self._mailbox.abort()

    # -- between phases ------------------------------------------------------------------------

    def save(self, folder: str) -> SavedPart:
        """Write this stage's part of a checkpoint."""
        name = f"stage_{self._stage.index:03d}.safetensors"
        return write_part(Path(folder), name, self._stage.state())

    def load(self, folder: str, parts: Sequence[SavedPart]) -> None:
        """Take over this stage's share of a checkpoint, which may have had other cuts."""
        self._stage.load_state(load_parts(Path(folder), parts))

    def state(self) -> dict[str, Array]:
        """Return the state as numpy arrays; for tests of exactness."""
        return {name: tensor.numpy() for name, tensor in self._stage.state().items()}
