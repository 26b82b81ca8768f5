"""What is measured before a run: seconds of each block, on the device that will train it."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

import torch

from laminar.config import Config, PrecisionConfig
from laminar.dropout import Samples
from laminar.inspection import zeros
from laminar.lateness import choose_hop_delay, choose_micro_batches, with_lateness
from laminar.partition import choose_cuts, exchange_seconds, work_factor
from laminar.plan import Plan
from laminar.precision import autocast, place, place_input
from laminar.schedule import Order

T = TypeVar("T")
MemoryFormat = Literal["contiguous", "channels_last"]


@dataclass(frozen=True)
class BlockTime:
    """Of one micro-batch of the parallel phase."""

    forward_s: float
    backward_s: float

    @property
    def both_s(self) -> float:
        """Forward and backward."""
        return self.forward_s + self.backward_s


def needs_measuring(config: Config) -> bool:
    """Whether a configuration leaves something to be found by timing."""
    return config.precision.memory_format == "auto" or _times_cuts(config) or _times_hops(config)


def _times_cuts(config: Config) -> bool:
    return config.cuts is None and config.partition.costs == "measured"


def _times_hops(config: Config) -> bool:
    return config.parallel.lateness == "auto" and config.partition.costs == "measured"


def measure(config: Config, plan: Plan, device: torch.device, num_repeats: int = 5) -> Config:
    """Return the configuration with all that timing chooses written out.

    The memory format is the one in which forward and backward through all blocks take less time.
    The cuts are those whose slowest stage is fastest in that format, the hop delay the smallest
    that hides the slowest exchange, in the order that is least late where both hide it.

    Args:
        config: May say `auto` and `measured`.
        plan: The run that it makes as long as nothing is measured.
        device: Where stages compute.
        num_repeats: Timed passes through each block.

    Raises:
        ConfigError: No cuts keep within the limit on memory.
    """
    wanted = config.precision.memory_format
    formats: tuple[MemoryFormat, ...] = ("contiguous", "channels_last")
    formats = formats if wanted == "auto" else (wanted,)
    times = {f: time_blocks(plan, device, f, num_repeats) for f in formats}
    best = min(formats, key=lambda f: sum(t.both_s for t in times[f]))
    precision = config.precision.model_copy(update={"memory_format": best})
    cuts = config.cuts
    if _times_cuts(config):
        cuts = choose_cuts(plan, [t.both_s for t in times[best]], exchange_seconds(plan))
    found = config.model_copy(update={"precision": precision, "cuts": cuts})
    if _times_hops(config):
        found = _with_hop_delay(found, plan.with_cuts(cuts or plan.bounds[1:-1]), times[best])
    return found


def _with_hop_delay(config: Config, plan: Plan, times: Sequence[BlockTime]) -> Config:
    """Write out lateness by what a tick and a round trip take at the plan's cuts."""
    num_stages, parallel = config.num_stages, config.parallel
    if num_stages == 1:
        return with_lateness(config)
    batch_s = [
        sum(t.both_s for t in times[first:last]) * plan.config.parallel.micro_batches
        for first, last in itertools.pairwise(plan.bounds)
    ]

    def tick_s(delay: int, order: Order) -> float:
        M = choose_micro_batches(num_stages, delay, config.batch_size, order)
        found = {"micro_batches": M, "hop_delay": delay, "order": order}
        tried = parallel.model_copy(update=found)
        return max(s * work_factor(tried, k, num_stages) for k, s in enumerate(batch_s)) / M

    exchange = exchange_seconds(plan)
    message_s = max((exchange(k, b) for k, b in enumerate(plan.bounds[1:-1], 1)), default=0.0)
    delay, order = choose_hop_delay(
        tick_s,
        2 * (message_s + config.partition.latency_ms / 1e3),
        parallel.order,
    )
    return with_lateness(config, delay, order)


def time_blocks(
    plan: Plan, device: torch.device, memory_format: MemoryFormat, num_repeats: int
) -> list[BlockTime]:
    """Time each block by itself, eagerly, on random input of a micro-batch of the parallel phase.

    Returns:
        The median of the repeats, after one pass that does not count, for each block.
    """
    precision = plan.config.precision.model_copy(update={"memory_format": memory_format})
    return [
        _time_block(plan, index, device, precision, num_repeats) for index in range(plan.bounds[-1])
    ]


def _time_block(
    plan: Plan, index: int, device: torch.device, precision: PrecisionConfig, num_repeats: int
) -> BlockTime:
    module = place(plan.build_stage_module(index, index + 1).train(), precision, device)
    size = plan.config.batch_size // plan.config.num_micro_of("parallel")
    module.set_samples(Samples(seed=0, epoch=0, indices=torch.arange(size)))
    x = torch.randn(size, *plan.shapes[index])
    if index == 0 and plan.problem.dtype != "float32":
        x = zeros(plan.problem, size)  # of a user's own data: numbers of tokens, say
    x = place_input(x, precision, device)
    inputs = [*module.parameters(), *([x.requires_grad_()] if index else [])]

    def forward() -> torch.Tensor:
        with autocast(precision, device):
            out: torch.Tensor = module(x)
        return out.float()

    grad_out = torch.randn_like(forward())
    seconds = []
    for _ in range(num_repeats + 1):
        out, forward_s = _timed(forward, device)
        backward_s = 0.0
        if inputs:  # the first block may have no parameters
            _, backward_s = _timed(partial(torch.autograd.grad, out, inputs, grad_out), device)
        seconds.append((forward_s, backward_s))
    forwards, backwards = zip(*seconds[1:], strict=True)
    return BlockTime(statistics.median(forwards), statistics.median(backwards))


def _timed(work: Callable[[], T], device: torch.device) -> tuple[T, float]:
    _wait(device)
    started = time.perf_counter()
    result = work()
    _wait(device)
    return result, time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
