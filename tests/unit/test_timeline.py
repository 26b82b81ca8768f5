"""Where seconds go and how far cuts are from their constraints; measuring changes no bit."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest
import torch

from laminar.cut_probe import CutProbe
from laminar.measured_stage import MeasuredStage
from laminar.one_process import OneProcessEngine
from laminar.plan import Plan, Segment
from laminar.timeline import MAX_SPANS, Clock, Span, TimedBatches, traced_batches
from tests.tiny import differing, tiny_plan

NUM_BATCHES = 12


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clocks of this process, to be set by hand; the system's is 1000 s ahead."""
    at = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: at[0])
    monkeypatch.setattr(time, "time", lambda: at[0] + 1000)
    return at


def test_a_clock_sums_by_kind(now: list[float]):
    clock = Clock()
    for kind, seconds in (("forward", 2), ("send", 1), ("forward", 3)):
        with clock.span(kind):  # type: ignore[arg-type]
            now[0] += seconds
    assert clock.seconds == {"forward": 5, "send": 1}
    assert clock.finish(10) == {"forward": 5, "send": 1, "other": 4}
    assert clock.spans == []
    clock.start()
    assert clock.finish(1) == {"other": 1}


def test_spans_are_kept_while_tracing_and_wait_for_the_gpu(now: list[float]):
    def synchronize() -> None:
        now[0] += 0.5

    clock = Clock(synchronize)
    for clock.is_tracing in (False, True, False):
        with clock.span("backward", 7):
            now[0] += 1
    assert clock.spans == [Span("backward", 7, 1001, 1002.5)]
    assert clock.seconds == {"backward": 3.5}


def test_spans_do_not_grow_without_end():
    clock = Clock()
    clock.is_tracing = True
    for micro in range(MAX_SPANS + 5):
        with clock.span("forward", micro):
            pass
    assert len(clock.spans) == MAX_SPANS


def test_what_fails_is_counted_too(now: list[float]):
    clock = Clock()

    class Failing:
        def train(self, epoch: int, batch: int, is_augmented: bool) -> None:
            now[0] += 2
            raise OSError

    with pytest.raises(OSError):  # noqa: PT011
        TimedBatches(Failing(), clock).train(0, 0)
    assert clock.seconds == {"data": 2}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((10, 2, 1, 2), range(3, 6)),  # one tick apart: one more batch than two
        ((10, 2, 0, 4), range(4, 6)),  # correction: the stages end a batch together
        ((10, 1, 1, 2), range(4, 6)),
        ((20, 4, 4, 4), range(7, 12)),
        ((1, 2, 0, 4), range(1)),
        ((3, 4, 1, 1), range(3)),
    ],
)
def test_the_middle_of_a_phase_is_traced(arguments: Any, expected: range):
    assert traced_batches(*arguments) == expected


class MeasuredEngine(OneProcessEngine):
    """The scripted engine with stages that measure each segment's middle batch."""

    def __init__(self, plan: Plan, seed: int = 0) -> None:
        super().__init__(plan, seed)
        self.stages = [MeasuredStage(plan, k) for k in range(plan.config.num_stages)]
        self.cuts: list[list[CutProbe | None]] = []

    def train(self, segment: Any) -> None:
        config = self.plan.config
        phase = config.parallel if segment.phase == "parallel" else config.correction
        for stage in self.stages:
            stage.begin_phase(probed_micro=segment.num_batches // 2 * phase.micro_batches)
            stage.clock.is_tracing = True
        super().train(segment)
        self.cuts.append([stage.cut for stage in self.stages])


def plan_of(phase: str, **changes: Any) -> Plan:
    base = {
        "epochs": 1,
        "num_stages": 3,
        "cuts": [1, 3],
        "filters": [{"pool": 1, "cast": "fp32"}, {"pool": 2, "cast": "fp16"}],
        "phases": [{"phase": phase, "epochs": 1}],
    }
    return tiny_plan(NUM_BATCHES, **{**base, **changes})


@pytest.mark.parametrize("phase", ["parallel", "correction"])
def test_measuring_changes_no_bit(phase: str):
    plan = plan_of(phase)
    plain, measured = OneProcessEngine(plan), MeasuredEngine(plan)
    plain.run()
    measured.run()
    assert differing(plain.state(), measured.state()) == []
    assert [cut is not None for cut in measured.cuts[0]] == [True, True, False]


def test_the_correction_phase_is_on_the_constraint():
    engine = MeasuredEngine(plan_of("correction"))
    engine.run()
    first, second, _ = engine.cuts[0]
    assert first is not None
    assert second is not None
    assert first.violation == second.violation == 0
    assert first.filter_error == 0, "an identity loses nothing"
    assert 0.01 < second.filter_error < 1, "noise pooled 2x2 loses much"
    assert first.adjoint_ratio > 0
    assert second.adjoint_ratio > 0


def test_the_same_samples_are_dropped_again():
    changes = {"model": {"name": "wrn10_1", "width": 4, "dropout": 0.3}, "optimizer": {"lr": 1e-30}}
    engine = MeasuredEngine(plan_of("parallel", **changes))
    engine.run()
    assert [cut.violation for cut in engine.cuts[0] if cut is not None] == [0, 0]


def test_lateness_leaves_the_constraint_as_far_as_the_weights_move():
    found = []
    for lr in (1e-30, 0.01, 0.1):
        engine = MeasuredEngine(plan_of("parallel", optimizer={"lr": lr}))
        engine.run()
        found.append([cut.violation for cut in engine.cuts[0] if cut is not None])
    assert found[0] == [0, 0], "the same weights must send the same again, bit for bit"
    assert found[0][0] < found[1][0] < found[2][0] < 1
    assert found[0][1] < found[1][1] < found[2][1] < 1


def test_a_dead_stage_can_be_measured():
    engine = MeasuredEngine(plan_of("parallel"))
    for name, tensor in engine.stages[0].module.public_tensors():
        if name.startswith("stem.bn1"):
            tensor.detach().zero_()
    engine.run()
    assert engine.cuts[0][0] == CutProbe(violation=0, filter_error=0, adjoint_ratio=0)


def test_the_adjoint_is_compared_with_the_output_of_a_sample():
    """By hand: the correction phase's adjoint is the exact gradient of the batch's mean loss."""
    plan = plan_of("correction", num_stages=2, cuts=[3], filters=[{"pool": 1, "cast": "fp32"}],
                   correction={"micro_batches": 1})  # fmt: skip
    engine = MeasuredEngine(plan)
    images, labels = engine.inputs[0], engine.labels[1]
    assert images is not None
    assert labels is not None
    first, last = (plan.build_stage_module(*plan.bounds[k : k + 2]) for k in (0, 1))
    y = first(images.train(0, 0)).detach().requires_grad_()
    loss = torch.nn.functional.cross_entropy(last(y), labels.train(0, 0), reduction="sum")
    (p,) = torch.autograd.grad(loss, y)
    engine.train(Segment("correction", epoch=0, first_batch=0, num_batches=1))
    cut = engine.cuts[0][0]
    assert cut is not None
    assert cut.adjoint_ratio == pytest.approx(float(p.norm() / y.detach().norm()), rel=1e-5)


def test_every_action_is_a_span():
    plan = plan_of("parallel")
    engine = MeasuredEngine(plan)
    engine.run()
    for stage in engine.stages:
        spans = stage.clock.spans  # type: ignore[attr-defined]
        for kind in ("forward", "backward"):
            assert [s.micro for s in spans if s.kind == kind] == list(range(2 * NUM_BATCHES))
        assert len([s for s in spans if s.kind == "update"]) == NUM_BATCHES
        assert all(a.end_s <= b.start_s for a, b in itertools.pairwise(spans))
