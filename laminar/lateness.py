"""Micro-batches and hop delay of the parallel phase, where the configuration leaves them.

What lateness costs was mapped over K, d and M (docs/decisions/lateness-can-be-chosen.md): the
gradients of the first stage, the latest, may be so many updates late, and batch norm wants so many
samples.
"""

from __future__ import annotations

from collections.abc import Callable

from laminar.config import Config, ParallelConfig
from laminar.schedule import Order, lateness_ticks

MAX_UPDATES_LATE = 1.5
MIN_SAMPLES = 8
MAX_HOP_DELAY = 64


def with_lateness(config: Config, hop_delay: int = 1) -> Config:
    """Return the configuration with all of it written out; one that says it all as it is."""
    if config.parallel.lateness == "given":
        return config
    chosen = ParallelConfig(
        **config.parallel.model_dump(exclude={"lateness", "micro_batches", "hop_delay"}),
        micro_batches=choose_micro_batches(config.num_stages, hop_delay, config.batch_size),
        hop_delay=hop_delay,
    )
    return config.model_copy(update={"parallel": chosen})


def choose_micro_batches(num_stages: int, hop_delay: int, batch_size: int) -> int:
    """Return the smallest M whose lateness is small enough; else the largest that batch norm bears.

    It divides the batch.
    """
    divisors = [m for m in range(1, batch_size + 1) if batch_size % m == 0]
    borne = [m for m in divisors if batch_size // m >= MIN_SAMPLES] or [1]
    ticks = lateness_ticks(0, num_stages, hop_delay)
    return next((m for m in borne if ticks <= MAX_UPDATES_LATE * m), borne[-1])


def choose_hop_delay(
    tick_s: Callable[[int], float], round_trip_s: float, order: Order = "forward_first"
) -> int:
    """Return the smallest d that hides a message and its answer behind the stages' computing.

    Forward first, 2d - 1 ticks pass between the end of a stage's forward and the moment when it
    wants the adjoint that the next stage makes of it, less what that takes; backward first one
    less.

    Args:
        tick_s: Seconds of a tick of the slowest stage, for a d: more micro-batches are shorter.
        round_trip_s: Of one cut, the slowest.
        order: Of a tick.
    """
    waits = 1 if order == "forward_first" else 2
    for delay in range(1, MAX_HOP_DELAY):
        if (2 * delay - waits) * tick_s(delay) >= round_trip_s:
            return delay
    return MAX_HOP_DELAY
