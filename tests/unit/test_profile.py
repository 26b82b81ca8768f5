"""What is measured before a run, and what is made of it."""

import pytest
import torch

from laminar import profile
from laminar.profile import BlockTime, measure, needs_measuring, time_blocks
from tests.tiny import tiny_plan

CPU = torch.device("cpu")


def test_every_block_is_timed_forward_and_backward():
    plan = tiny_plan(precision={"compute": "bf16"})
    times = time_blocks(plan, CPU, "channels_last", 1)
    assert len(times) == 5
    assert all(t.forward_s > 0 and t.backward_s > 0 for t in times)


@pytest.mark.parametrize("faster", ["contiguous", "channels_last"])
def test_the_faster_memory_format_is_written_out(monkeypatch, faster):
    plan = tiny_plan(precision={"memory_format": "auto"})
    assert needs_measuring(plan.config)

    def times(plan, device, memory_format, num_repeats):
        return [BlockTime(1.0, 2.0 if memory_format == faster else 2.5)] * 5

    monkeypatch.setattr(profile, "time_blocks", times)
    config = measure(plan, CPU)
    assert config.precision.memory_format == faster
    assert not needs_measuring(config)
    unchanged = plan.config.precision.model_copy(update={"memory_format": faster})
    assert config == plan.config.model_copy(update={"precision": unchanged})


def test_nothing_is_measured_without_need():
    plan = tiny_plan()
    assert not needs_measuring(plan.config)
    assert measure(plan, CPU) is plan.config
