"""What is measured before a run, and what is made of it."""

import pytest
import torch
from torch import nn

from laminar import profile
from laminar.data import describe
from laminar.planning import make_plan
from laminar.profile import BlockTime, measure, needs_measuring, time_blocks
from tests.own import blocks, own_plan
from tests.tiny import tiny_config, tiny_plan

CPU = torch.device("cpu")


def test_every_block_is_timed_forward_and_backward():
    plan = tiny_plan(precision={"compute": "bf16"})
    times = time_blocks(plan, CPU, "channels_last", 1)
    assert len(times) == 5
    assert all(t.forward_s > 0 and t.backward_s > 0 for t in times)


def test_a_first_block_without_parameters_has_no_backward():
    plan = own_plan({"blocks": lambda problem: {"flat": nn.Flatten, **blocks(problem)}})
    first, second, *_ = time_blocks(plan, CPU, "contiguous", 1)
    assert first.backward_s == 0 < second.backward_s


def scripted_times(monkeypatch, faster):
    """Let blocks take 1, 2, .. 5 seconds, and half as long again in the other memory format."""

    def times(plan, device, memory_format, num_repeats):
        factor = 1.0 if memory_format == faster else 1.5
        return [BlockTime(0.25 * n * factor, 0.75 * n * factor) for n in range(1, 6)]

    monkeypatch.setattr(profile, "time_blocks", times)


@pytest.mark.parametrize("faster", ["contiguous", "channels_last"])
def test_the_faster_memory_format_is_written_out(monkeypatch, faster):
    config = tiny_config(precision={"memory_format": "auto"})
    plan = make_plan(config, describe(config.data))
    assert needs_measuring(config)
    scripted_times(monkeypatch, faster)
    found = measure(config, plan, CPU)
    assert found.precision.memory_format == faster
    assert not needs_measuring(found)
    unchanged = config.precision.model_copy(update={"memory_format": faster})
    assert found == config.model_copy(update={"precision": unchanged})


def test_measured_cuts_share_the_seconds_and_are_written_out(monkeypatch):
    config = tiny_config(num_stages=3, partition={"costs": "measured"})
    plan = make_plan(config, describe(config.data))
    assert needs_measuring(config)
    scripted_times(monkeypatch, "contiguous")
    found = measure(config, plan, CPU)
    assert found.cuts == (3, 4)  # 1 + 2 + 3, 4, 5 seconds
    resolved = make_plan(found, plan.problem).config
    assert not needs_measuring(resolved)
    assert resolved.cuts == found.cuts


@pytest.mark.parametrize(
    ("latency_ms", "named", "chosen"),
    # The slower stage's tick takes 9 s with two micro-batches, half of it with four. Forward first
    # 2d - 1 of them are hidden, backward first 2d - 2, and gradients are a tick less late.
    [
        (0, None, (1, "forward_first", 2)),
        (4400, None, (1, "forward_first", 2)),
        (4600, None, (2, "backward_first", 2)),
        (8900, None, (2, "backward_first", 2)),
        (9100, None, (3, "forward_first", 4)),
        (4600, "forward_first", (2, "forward_first", 4)),
        (6800, "forward_first", (3, "forward_first", 4)),
        (0, "backward_first", (2, "backward_first", 2)),
    ],
)
def test_hop_delay_and_order_hide_a_round_trip(monkeypatch, latency_ms, named, chosen):
    config = tiny_config(
        batch_size=32,
        parallel={"lateness": "auto"} | ({"order": named} if named else {}),
        partition={"costs": "measured", "latency_ms": latency_ms},
    )
    plan = make_plan(config, describe(config.data))
    assert needs_measuring(config)
    scripted_times(monkeypatch, "contiguous")
    parallel = measure(config, plan, CPU).parallel
    assert parallel.lateness == "given"
    assert (parallel.hop_delay, parallel.order, parallel.micro_batches) == chosen


def test_listed_cuts_are_not_measured():
    assert not needs_measuring(tiny_config(cuts=[2], partition={"costs": "measured"}))
    assert not needs_measuring(tiny_config())
