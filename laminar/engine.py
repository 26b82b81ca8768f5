"""What a stage does, as a program that asks for messages instead of waiting.

A program is a generator: it yields `Send` and `Receive`, and whoever drives it (a Ray actor with
a mailbox, `laminar/one_process.py`) answers a `Receive` with the message. So what a stage
computes cannot depend on when a message happens to arrive.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from laminar.applied_batch import AppliedBatch, at_weights
from laminar.data import SampleIndices
from laminar.dropout import Samples
from laminar.filters import Message
from laminar.plan import Segment
from laminar.schedule import HOP_DEPTH, Action, Forward, correction_actions
from laminar.stage import Stage

Direction = Literal["forward", "adjoint"]


@dataclass(frozen=True)
class Send:
    """Give a message to the next stage (`forward`) or to the one before (`adjoint`)."""

    direction: Direction
    micro: int
    message: Message


@dataclass(frozen=True)
class Receive:
    """Ask for the message of the stage before (`forward`) or of the next one (`adjoint`)."""

    direction: Direction
    micro: int
    waits: bool = True
    """Whether to wait for it; if not, the answer may be None. It must not change any number."""


@dataclass(frozen=True)
class BatchDone:
    """The stage has applied (or, in evaluation, passed on) another batch; needs no answer."""

    num_batches: int


Program = Generator[Send | Receive | BatchDone, Message | None, None]


class Inputs(Protocol):
    """Images of a batch; only stage 0 has them."""

    def train(self, epoch: int, batch: int, is_augmented: bool = True) -> Tensor:
        """Return fp32 [B, C, H, W]."""

    def test(self, batch: int) -> Tensor:
        """Return fp32 [b, C, H, W], the last one possibly shorter."""


class Labels(Protocol):
    """Labels of a batch; only the last stage has them."""

    def train(self, epoch: int, batch: int, is_augmented: bool = True) -> Tensor:
        """Return int64 [B]; with mixup fp32 [B, classes], a probability for each class."""

    def test(self, batch: int) -> Tensor:
        """Return int64 [b]."""


class MicroBatches:
    """One micro-batch at a time of the batches of a segment; each batch is made once."""

    def __init__(
        self,
        source: Inputs | Labels | SampleIndices | None,
        segment: Segment,
        per_batch: int,
        is_augmented: bool = True,
    ) -> None:
        self._source, self._segment, self._per_batch = source, segment, per_batch
        self._is_augmented = is_augmented
        self._batch, self._parts = -1, tuple[Tensor, ...]()

    def __getitem__(self, micro: int) -> Tensor | None:
        if self._source is None:
            return None
        batch, part = divmod(micro, self._per_batch)
        if batch != self._batch:
            at = self._segment.epoch, self._segment.first_batch + batch
            whole = self._source.train(*at, self._is_augmented)
            self._batch, self._parts = batch, whole.chunk(self._per_batch)
        return self._parts[part]


class Feed:
    """What the data gives to a stage's forwards in a segment."""

    def __init__(
        self,
        stage: Stage,
        segment: Segment,
        inputs: Inputs | None,
        labels: Labels | None,
        per_batch: int,
    ) -> None:
        self.num_micro = per_batch
        is_augmented = segment.phase == "correction" or stage.plan.config.parallel.augmentation
        self.images = MicroBatches(inputs, segment, per_batch, is_augmented)
        self.targets = MicroBatches(labels, segment, per_batch, is_augmented)
        self._indices = MicroBatches(stage.sample_indices, segment, per_batch)
        self._seed, self._epoch = stage.plan.config.seed, segment.epoch

    def samples(self, micro: int) -> Samples | None:
        """Return which samples a micro-batch holds, for a stage that needs to know."""
        indices = self._indices[micro]
        return None if indices is None else Samples(self._seed, self._epoch, indices)


def correction_phase(
    stage: Stage, segment: Segment, inputs: Inputs | None, labels: Labels | None
) -> Program:
    """Train a segment with exact gradients: per batch a 1F1B pipeline, then the update."""
    stage.enter("correction")
    feed = Feed(stage, segment, inputs, labels, stage.plan.config.correction.micro_batches)
    yield from exact_pass(stage, segment, feed)


def exact_pass(stage: Stage, segment: Segment, feed: Feed) -> Program:
    """Train the batches of a segment exactly, with the filters that act at present."""
    per_batch = feed.num_micro
    first = segment.epoch * stage.plan.batches_per_epoch + segment.first_batch
    for batch in range(segment.num_batches):
        for action in correction_actions(stage.index, stage.num_stages, per_batch, HOP_DEPTH):
            micro = batch * per_batch + action.micro
            if isinstance(action, Forward):
                yield from run_forward(stage, micro, feed)
            else:
                yield from run_backward(stage, type(action)(micro))
        stage.update(first + batch)
        yield BatchDone(batch + 1)


def exact_gradient(
    stage: Stage,
    applied: AppliedBatch,
    batch: Segment,
    inputs: Inputs | None,
    labels: Labels | None,
) -> Program:
    """Compute the exact gradient of a batch at the weights that each stage kept, for the ledger.

    The correction phase's program on the parallel phase's micro-batches and filters, so that
    nothing but lateness, and what is done about it, can tell both gradients apart. The stage, which
    must be drained, is afterwards as it was, bit for bit.

    Args:
        stage: The stage.
        applied: What it kept of the batch; gets `exact`.
        batch: A segment of this batch alone.
        inputs: Images, at stage 0.
        labels: Labels, at the last stage.
    """
    stage.enter("parallel")
    per_batch = stage.plan.config.num_micro_of("parallel")
    feed = Feed(stage, batch, inputs, labels, per_batch)
    with at_weights(stage, applied.weights):
        for action in correction_actions(stage.index, stage.num_stages, per_batch, HOP_DEPTH):
            if isinstance(action, Forward):
                yield from run_forward(stage, action.micro, feed)
            else:
                yield from run_backward(stage, action)
        applied.exact = stage.take_gradient()
    yield BatchDone(1)


def evaluation(
    stage: Stage, num_batches: int, inputs: Inputs | None, labels: Labels | None
) -> Program:
    """Run the test set forward, one message per batch; the last stage counts."""
    stage.enter("evaluation")
    for batch in range(num_batches):
        if stage.is_first and inputs is not None:
            x: Tensor | Message | None = inputs.test(batch)
        else:
            x = yield Receive("forward", batch)
        assert x is not None
        out = stage.evaluate(x, None if labels is None else labels.test(batch))
        if out is not None:
            yield Send("forward", batch, out)
        yield BatchDone(batch + 1)


def run_forward(stage: Stage, micro: int, feed: Feed, s: int = 0, lr: float = 0.0) -> Program:
    """Take in one micro-batch, run it forward and send it on; see `Stage.forward`."""
    x: Tensor | Message | None = feed.images[micro] if stage.is_first else None
    if x is None:
        x = yield Receive("forward", micro)
    assert x is not None
    samples = feed.samples(micro)
    if samples is not None:
        stage.module.set_samples(samples)
    out = stage.forward(micro, x, feed.targets[micro], num_micro=feed.num_micro, s=s, lr=lr)
    if out is not None:
        yield Send("forward", micro, out)


def run_backward(stage: Stage, action: Action) -> Program:
    """Take in an adjoint, run its micro-batch backward and send the next one on."""
    adjoint = None
    if not stage.is_last:
        adjoint = yield Receive("adjoint", action.micro)
    reply = stage.backward(action.micro, adjoint)
    if reply is not None:
        yield Send("adjoint", action.micro, reply)
