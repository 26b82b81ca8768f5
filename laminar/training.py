"""Which program trains a segment."""

from __future__ import annotations

from laminar.auxnet import auxnet_phase
from laminar.engine import Inputs, Labels, Program, correction_phase
from laminar.greedy import greedy_phase
from laminar.plan import Segment
from laminar.stage import Stage
from laminar.stored import stored_phase
from laminar.streamed import streamed_phase


def training_phase(
    stage: Stage, segment: Segment, inputs: Inputs | None, labels: Labels | None
) -> Program:
    """Return the program of a segment."""
    if segment.phase == "correction":
        return correction_phase(stage, segment, inputs, labels)
    if stage.plan.config.method == "greedy":
        return greedy_phase(stage, segment, inputs, labels)
    if stage.plan.config.method == "auxnet":
        return auxnet_phase(stage, segment, inputs, labels)
    if stage.plan.config.parallel.feed == "stored":
        return stored_phase(stage, segment, inputs, labels)
    return streamed_phase(stage, segment, inputs, labels)
