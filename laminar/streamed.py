"""The parallel phase with auxiliary variables in flight: gradients come a few ticks late."""

from __future__ import annotations

from laminar.engine import BatchDone, Feed, Inputs, Labels, Program, run_backward, run_forward
from laminar.plan import Segment
from laminar.schedule import Forward, parallel_actions
from laminar.stage import Stage


def streamed_phase(
    stage: Stage, segment: Segment, inputs: Inputs | None, labels: Labels | None
) -> Program:
    """Train a segment with all stages at once; gradients come `lateness_ticks` late.

    The stage updates when the M-th backward of a batch is done.
    """
    stage.enter("parallel")
    p = stage.plan.config.parallel
    first = segment.epoch * stage.plan.batches_per_epoch + segment.first_batch
    feed = Feed(stage, segment, inputs, labels, p.micro_batches)
    applied = 0
    num_micro = segment.num_batches * p.micro_batches
    for _, action in parallel_actions(
        stage.index, stage.num_stages, num_micro, p.hop_delay, p.first_half
    ):
        if isinstance(action, Forward):
            s = stage.updates_until_own(action.micro)
            lr = stage.plan.learning_rate(first + applied)
            yield from run_forward(stage, action.micro, feed, s, lr)
        else:
            yield from run_backward(stage, action)
            if (action.micro + 1) % p.micro_batches == 0:
                stage.update(first + applied)
                applied += 1
                yield BatchDone(applied)
