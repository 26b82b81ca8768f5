"""Engine = reference where stages compute on another device than the CPU, which data come from."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from laminar import one_process
from laminar.engine import Program, Send
from laminar.measured_stage import MeasuredStage
from laminar.one_process import LedgerEngine, OneProcessEngine
from laminar.profile import time_blocks
from tests.other_device import other_device
from tests.tiny import differing, run_reference, tiny_plan

STORED = {"feed": "stored"}
PLANS: dict[str, dict[str, Any]] = {
    "two stages": {},
    "int8, late, EMA": {
        "num_stages": 3,
        "parallel": {"micro_batches": 2, "hop_delay": 4},
        "ema": {"decay": 0.9},
    },
    "curvature, channels last, AdamW": {
        "num_stages": 3,
        "parallel": {"micro_batches": 4, "curvature": 4},
        "precision": {"memory_format": "channels_last"},
        "optimizer": {"name": "adamw"},
    },
    "dropout, bf16 on the wire, a filter inside": {
        "model": {"name": "wrn10_1", "width": 4, "dropout": 0.3},
        "filters": {"pool": 1, "cast": "bf16"},
        "kept_filters": [{"boundary": 2, "pool": 2, "cast": "fp16"}],
    },
    "greedy": {"num_stages": 3, "method": "greedy", "loss": {"label_smoothing": 0.1}},
    "auxnet": {"num_stages": 3, "method": "auxnet"},
    "stored, delayed gradients with curvature": {
        "method": "delayed_gradient",
        "parallel": {**STORED, "curvature": 4},
    },
    "stored, penalty": {"method": "penalty", "parallel": STORED},
    "stored, two sweeps": {
        "method": "augmented_lagrangian",
        "parallel": STORED,
        "stored": {"sweeps": 2, "inner_steps": 2, "memory_limit_mb": 0},
    },
}


def through_the_cpu(program: Program) -> Program:
    """Drive a program with its messages on the CPU, as Ray's object store hands them over."""
    answer = None
    while True:
        try:
            step = program.send(answer)
        except StopIteration:
            return
        if isinstance(step, Send):
            step = Send(step.direction, step.micro, tuple(part.cpu() for part in step.message))
        answer = yield step


@pytest.fixture(params=["device to device", "through the CPU"])
def _messages(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "through the CPU":
        run = one_process.run_programs
        monkeypatch.setattr(
            one_process, "run_programs", lambda p, seed: run([through_the_cpu(x) for x in p], seed)
        )


@pytest.mark.usefixtures("_messages")
@pytest.mark.parametrize("name", PLANS)
def test_engine_equals_reference(name: str):
    plan = tiny_plan(4, **PLANS[name])
    engine = OneProcessEngine(plan, device=other_device())
    engine.run()
    state = engine.state()
    assert differing(run_reference(plan).state(), state) == []
    resumed = OneProcessEngine(plan, device=other_device())
    for stage in resumed.stages:
        stage.load_state(state)
    assert differing(state, resumed.state()) == []
    assert 0 <= resumed.evaluate(plan.num_test_batches) <= 1
    assert {p.device for stage in resumed.stages for p in stage.learner.parameters} == {
        other_device()
    }


@pytest.mark.parametrize("name", ["int8, late, EMA", "greedy", "stored, two sweeps"])
def test_ledger_and_probes_measure_there(name: str):
    plan = tiny_plan(4, **PLANS[name])

    def measure(device: torch.device) -> tuple[list[Any], list[Any]]:
        engine = LedgerEngine(plan, device=device)
        engine.run()
        probed = OneProcessEngine(plan, device=device)
        probed.stages = stages = [
            MeasuredStage(plan, k, device) for k in range(plan.config.num_stages)
        ]
        for segment in plan.segments:
            for stage in stages:
                stage.begin_phase(probed_micro=0)
            probed.train(segment)
        return [a.exactness() for a in engine.applied], [stage.cut for stage in stages[:-1]]

    assert measure(other_device()) == measure(torch.device("cpu"))


def test_blocks_are_timed_there():
    plan = tiny_plan(4)
    times = time_blocks(plan, other_device(), "contiguous", num_repeats=1)
    assert len(times) == plan.bounds[-1]


def test_tensors_of_two_devices_do_not_mix():
    there = torch.ones(2).to(other_device())
    with pytest.raises(RuntimeError, match="two devices"):
        there + torch.ones(2)
    assert (there + 1).cpu().tolist() == [2.0, 2.0]
