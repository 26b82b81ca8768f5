"""The parallel phase by decoupled greedy learning: every stage minimises a loss of its own."""

from __future__ import annotations

from laminar.engine import BatchDone, Feed, Inputs, Labels, Program, run_forward
from laminar.plan import Segment
from laminar.stage import Stage


def greedy_phase(
    stage: Stage, segment: Segment, inputs: Inputs | None, labels: Labels | None
) -> Program:
    """Train a segment; messages go forward only (Belilovsky et al. 2020, arXiv 1901.08164).

    No gradient is late: a stage differentiates a micro-batch as soon as it has run it, and sends
    its output on all the same. What it gets may have been made by older weights of the stage
    before, and nothing waits for it.

    Args:
        stage: The stage.
        segment: What to train.
        inputs: Images, at stage 0.
        labels: Labels, at every stage.
    """
    stage.enter("parallel")
    per_batch = stage.plan.config.parallel.micro_batches
    first = segment.epoch * stage.plan.batches_per_epoch + segment.first_batch
    feed = Feed(stage, segment, inputs, labels, per_batch)
    for batch in range(segment.num_batches):
        for micro in range(batch * per_batch, (batch + 1) * per_batch):
            yield from run_forward(stage, micro, feed)
            targets = feed.targets[micro]
            assert targets is not None
            stage.backward_locally(micro, targets, num_micro=per_batch)
        stage.update(first + batch)
        if stage.auxiliary is not None:
            stage.auxiliary.update(first + batch)
        yield BatchDone(batch + 1)
