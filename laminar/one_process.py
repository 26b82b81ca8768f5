"""The engine in one process, without Ray: the same stages and programs, messages handed over.

For tests of exactness, and for studies of accuracy at more stages than a machine has cores. What a
stage computes does not depend on when a message arrives; here a seed chooses the order in which
the stages get on, so that a test can see it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from laminar.applied_batch import AppliedBatch
from laminar.data import open_inputs, open_labels
from laminar.engine import (
    BatchDone,
    Program,
    Receive,
    Send,
    evaluation,
    exact_gradient,
)
from laminar.exactness import probed_batch
from laminar.filters import Message
from laminar.measured_stage import MeasuredStage
from laminar.plan import Plan, Segment
from laminar.stage import Stage
from laminar.tally import Tally
from laminar.training import training_phase


def run_programs(programs: Sequence[Program], seed: int) -> None:
    """Drive the programs, each as far as a randomly chosen one can go, until all have ended."""
    rng = random.Random(seed)
    box: list[dict[tuple[str, int], Message]] = [{} for _ in programs]
    waiting = {k: next(program) for k, program in enumerate(programs)}
    while waiting:
        ready = [
            k
            for k, step in waiting.items()
            if not isinstance(step, Receive)
            or not step.waits
            or (step.direction, step.micro) in box[k]
        ]
        assert ready, f"deadlock: {waiting}"
        k = rng.choice(ready)
        step, answer = waiting[k], None
        if isinstance(step, Receive):
            if step.waits or rng.random() < 0.5:
                answer = box[k].pop((step.direction, step.micro), None)
        elif isinstance(step, Send):
            to = k + 1 if step.direction == "forward" else k - 1
            message = tuple(part.clone() for part in step.message)
            assert (step.direction, step.micro) not in box[to]
            box[to][step.direction, step.micro] = message
        else:
            assert isinstance(step, BatchDone)
        try:
            waiting[k] = programs[k].send(answer)
        except StopIteration:
            del waiting[k]
    assert not any(box), "messages nobody asked for"


class OneProcessEngine:
    """K stages in this process.

    Args:
        plan: The resolved run.
        seed: Chooses the order in which the stages get on; the result is the same for all.
        is_new: As for `Stage`.
        device: Where all stages compute.
    """

    def __init__(
        self, plan: Plan, seed: int = 0, *, is_new: bool = True, device: torch.device | str = "cpu"
    ) -> None:
        self.plan, self.seed = plan, seed
        datasets = plan.factories.datasets
        inputs, labels = open_inputs(plan.config, datasets), open_labels(plan.config, datasets)
        K = plan.config.num_stages
        self.stages = [Stage(plan, k, device, is_new=is_new) for k in range(K)]
        self.inputs = [inputs if stage.needs_images else None for stage in self.stages]
        self.labels = [labels if stage.needs_labels else None for stage in self.stages]

    def run(self) -> None:
        """Train the whole plan."""
        for segment in self.plan.segments:
            self.train(segment)

    def train(self, segment: Segment) -> None:
        """Train one segment."""
        self._drive(lambda stage, x, y: training_phase(stage, segment, x, y))
        self.seed += 1

    def evaluate(self, num_batches: int) -> float:
        """Return the accuracy on so many batches of the test set, 0..1."""
        return self.count_test(num_batches).means()["accuracy"]

    def count_test(self, num_batches: int) -> Tally:
        """Return what is counted over so many batches of the test set."""
        self.stages[-1].take_tally()
        self._drive(lambda stage, x, y: evaluation(stage, num_batches, x, y))
        return self.stages[-1].take_tally()

    def _drive(self, program: Callable[..., Program]) -> None:
        args = zip(self.stages, self.inputs, self.labels, strict=True)
        run_programs([program(*a) for a in args], self.seed)

    def state(self) -> dict[str, Tensor]:
        """Return the state of all stages; see `Stage.state`."""
        return {name: t for stage in self.stages for name, t in stage.state().items()}


class LedgerEngine(OneProcessEngine):
    """The same, with an entry of the exactness ledger for each segment."""

    def __init__(
        self, plan: Plan, seed: int = 0, *, is_new: bool = True, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(plan, seed, is_new=is_new, device=device)
        self._measured = [
            MeasuredStage(plan, k, device, is_new=is_new) for k in range(plan.config.num_stages)
        ]
        self.stages = [*self._measured]
        self.applied: list[AppliedBatch] = []
        """What each stage kept of the last segment's middle batch, and its exact gradient."""

    def train(self, segment: Segment) -> None:
        """Train one segment, then look at the batch in its middle."""
        batch = probed_batch(segment)
        index = batch.epoch * self.plan.batches_per_epoch + batch.first_batch
        for stage in self._measured:
            stage.begin_phase(probed_micro=None, kept_batch=index)
        super().train(segment)
        self.applied = [stage.take_applied() for stage in self._measured]
        self._drive(
            lambda stage, x, y: exact_gradient(stage, self.applied[stage.index], batch, x, y)
        )
