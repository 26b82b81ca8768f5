"""The exactness ledger: what it compares, and that looking changes no bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from actors.epoch_record import ledger_entry
from actors.reports import StageReport
from laminar.applied_batch import AppliedBatch, at_weights
from laminar.config import LedgerConfig
from laminar.cut_probe import CutProbe
from laminar.data import open_inputs, open_labels
from laminar.engine import exact_gradient
from laminar.event_log import epoch_scalars
from laminar.exactness import Exactness, is_in_ledger, probed_batch
from laminar.measured_stage import MeasuredStage
from laminar.one_process import LedgerEngine, OneProcessEngine
from laminar.plan import Plan, Segment
from laminar.tally import Tally
from tests.tiny import differing, tiny_plan

NUM_BATCHES = 10
FILTERS = [{"pool": 1, "cast": "int8"}, {"pool": 2, "cast": "fp16"}]


def plan_of(phase: str = "parallel", **changes: Any) -> Plan:
    base = {
        "epochs": 1,
        "num_stages": 3,
        "cuts": [1, 3],
        "filters": FILTERS,
        "phases": [{"phase": phase, "epochs": 1}],
    }
    return tiny_plan(NUM_BATCHES, **{**base, **changes})


def measured(**changes: Any) -> list[Exactness]:
    engine = LedgerEngine(plan_of(**changes))
    engine.run()
    return [applied.exactness() for applied in engine.applied]


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 2, "phases": [{"phase": "parallel", "epochs": 2}]},
        {
            "model": {"name": "wrn10_1", "width": 4, "dropout": 0.3},
            "optimizer": {"name": "adamw"},
            "ema": {"decay": 0.9},
        },
        {"optimizer": {"nesterov": True, "clip_norm": 0.1}, "precision": {"compute": "bf16"}},
    ],
)
def test_looking_changes_no_bit(changes: dict[str, Any]):
    plan = plan_of(**changes)
    plain, looked_at = OneProcessEngine(plan), LedgerEngine(plan)
    plain.run()
    looked_at.run()
    assert differing(plain.state(), looked_at.state()) == []
    assert plain.stages[-1].take_tally() == looked_at.stages[-1].take_tally()


def test_what_is_compared_with_is_backprop_at_the_kept_weights():
    """The whole network in one piece, filters inside, on the batch's micro-batches."""
    plan = plan_of(optimizer={"lr": 0.2})
    engine = LedgerEngine(plan)
    engine.run()
    network = plan.build_stage_module(0, 5).train()
    network.enter("parallel")
    kept = [w for applied in engine.applied for w in applied.weights]
    assert all(
        not torch.equal(old, new.detach())
        for applied, stage in zip(engine.applied, engine.stages, strict=True)
        for old, new in zip(applied.weights, stage.learner.parameters, strict=True)
    ), "the segment went on after this batch"
    with torch.no_grad():
        for parameter, weight in zip(network.parameters(), kept, strict=True):
            parameter.copy_(weight)
    batch = probed_batch(plan.segments[0])
    x = open_inputs(plan.config).train(0, batch.first_batch)
    y = open_labels(plan.config).train(0, batch.first_batch)
    for images, labels in zip(x.chunk(2), y.chunk(2), strict=True):
        (torch.nn.functional.cross_entropy(network(images), labels) / 2).backward()
    expected = [p.grad for p in network.parameters()]
    found = [g for applied in engine.applied for g in applied.exact]
    assert all(torch.equal(g, e) for g, e in zip(found, expected, strict=True))
    assert not all(
        torch.equal(g, e)
        for g, e in zip((g for a in engine.applied for g in a.gradient), found, strict=True)
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"phase": "correction", "correction": {"micro_batches": 2}},
        {"optimizer": {"lr": 1e-30}},
        {"num_stages": 1, "cuts": [], "filters": []},
    ],
)
def test_exact_gradients_are_exact_bit_for_bit(changes: dict[str, Any]):
    for stage in measured(**changes):
        assert (stage.cosine, stage.relative_error) == (1.0, 0.0)
        assert stage.square == stage.exact_square > 0


def test_lateness_costs_the_first_stage_most_and_a_high_learning_rate_more():
    slow, fast = measured(optimizer={"lr": 0.01}), measured(optimizer={"lr": 0.1})
    for stages in (slow, fast):
        assert stages[0].relative_error > stages[2].relative_error > 0
        assert 0 < stages[0].cosine < stages[2].cosine < 1
    for a, b in zip(slow, fast, strict=True):
        assert a.relative_error < b.relative_error


def test_shrinking_is_an_error_of_length_alone():
    """At a learning rate of nothing late gradients are exact, and shrunk by 0.5^s."""
    options = {"parallel": {"shrink": 0.5, "micro_batches": 1}, "optimizer": {"lr": 1e-30}}
    first, second, last = measured(**options)
    for stage, s in ((first, 4), (second, 2), (last, 0)):
        assert stage.cosine == pytest.approx(1.0, abs=1e-12)
        assert stage.relative_error == pytest.approx(1 - 0.5**s, rel=1e-6)


def test_sums_by_hand():
    applied = AppliedBatch(
        weights=[], gradient=[torch.tensor([3.0, 0.0]), torch.tensor([0.0])],
        exact=[torch.tensor([3.0, 4.0]), torch.tensor([0.0])],
    )  # fmt: skip
    found = applied.exactness()
    assert found == Exactness(dot=9, square=9, exact_square=25, error_square=16)
    assert (found.cosine, found.relative_error) == (0.6, 0.8)
    assert found + found == Exactness(18, 18, 50, 32)
    dead = Exactness(0, 1, 0, 1)
    assert (dead.cosine, dead.relative_error) == (0, 0)


def test_an_exact_pass_that_is_left_leaves_nothing():
    plan = plan_of()
    stage = MeasuredStage(plan, 0)
    before, state = stage.tally, stage.state()
    weights = [torch.zeros_like(p) for p in stage.learner.parameters]
    applied = AppliedBatch(weights, [])
    batch = Segment("parallel", 0, 0, 1)
    program = exact_gradient(stage, applied, batch, open_inputs(plan.config), None)
    next(program)
    assert all(float(p.detach().abs().sum()) == 0 for p in stage.learner.parameters)
    program.close()
    assert differing(stage.state(), state) == []
    assert all(float(w.abs().sum()) == 0 for w in weights)
    assert applied.exact == []
    assert stage.tally is before
    with pytest.raises(ZeroDivisionError), at_weights(stage, weights):
        raise ZeroDivisionError
    assert differing(stage.state(), state) == []


def test_a_batch_that_a_phase_did_not_come_to_is_not_kept():
    engine = LedgerEngine(plan_of())
    engine.run()
    stage = engine.stages[0]
    assert isinstance(stage, MeasuredStage)
    stage.begin_phase(probed_micro=None, kept_batch=NUM_BATCHES)
    assert not stage.has_applied
    stage.begin_phase(probed_micro=None, kept_batch=0)
    OneProcessEngine.train(engine, engine.plan.segments[0])
    assert stage.has_applied
    stage.begin_phase(probed_micro=None)
    assert stage.has_applied, "until it is taken, whatever phase comes next"
    stage.take_applied()
    assert not stage.has_applied


def test_which_epochs_have_an_entry():
    segments = [Segment("parallel", epoch, 0, 5) for epoch in range(5)]
    found = [is_in_ledger(s, LedgerConfig(every=2)) for s in segments]
    assert found == [True, False, True, False, True]
    assert not is_in_ledger(segments[0], None)
    assert not is_in_ledger(Segment("correction", 0, 0, 5), LedgerConfig())
    assert probed_batch(Segment("parallel", 3, 10, 5)) == Segment("parallel", 3, 12, 1)


def test_an_entry_and_what_tensorboard_shows_of_it():
    cut = CutProbe(violation=0.25, filter_error=0.0, adjoint_ratio=1.0)
    reports = [StageReport(1.0, {}, {}, Tally(), (), c) for c in (cut, None)]
    stages = [Exactness(9, 9, 25, 16), Exactness(1, 1, 1, 0)]
    segment = Segment("parallel", 0, 2, 4)
    entry = ledger_entry(plan_of(num_stages=2, cuts=[3], filters={}), segment, stages, reports)
    assert entry == {
        "batch": 4,
        "cosine": 10 / 260**0.5,
        "relative_error": (16 / 26) ** 0.5,
        "stages": [
            {"cosine": 0.6, "relative_error": 0.8, "norm": 3, "exact_norm": 5},
            {"cosine": 1, "relative_error": 0, "norm": 1, "exact_norm": 1},
        ],
        "cuts": [{"boundary": 3, "violation": 0.25}],
    }
    names = ("train_loss", "test_loss", "train_accuracy", "test_accuracy")
    metrics = dict.fromkeys((*names, "lr", "samples_per_s", "parallel_fraction"), 0.5)
    for recorded in (entry, None):
        line = {**metrics, "seconds": {}, "cuts": [], "ledger": recorded}
        shown = epoch_scalars(line, {"phases": []})
        found = {k: v for k, v in shown.items() if "stage" in k}
        assert found == (
            {
                "cosine/stage_0": 0.6, "relative_error/stage_0": 0.8,
                "cosine/stage_1": 1, "relative_error/stage_1": 0,
            }
            if recorded
            else {}
        )  # fmt: skip
