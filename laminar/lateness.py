"""Micro-batches, hop delay and order of the parallel phase, where the configuration leaves them.

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


def with_lateness(config: Config, hop_delay: int = 1, order: Order | None = None) -> Config:
    """Return the configuration with all of it written out; one that says it all as it is.

    Args:
        config: May say `auto`.
        hop_delay: d.
        order: Of a tick; None leaves it.
    """
    parallel = config.parallel
    if parallel.lateness == "given":
        return config
    order = order or parallel.first_half
    chosen = ParallelConfig(
        **parallel.model_dump(exclude={"lateness", "micro_batches", "hop_delay", "order"}),
        micro_batches=choose_micro_batches(config.num_stages, hop_delay, config.batch_size, order),
        hop_delay=hop_delay,
        order=order,
    )
    return config.model_copy(update={"parallel": chosen})


def choose_micro_batches(
    num_stages: int, hop_delay: int, batch_size: int, order: Order = "forward_first"
) -> int:
    """Return the smallest M whose lateness is small enough; else the largest that batch norm bears.

    It divides the batch.
    """
    divisors = [m for m in range(1, batch_size + 1) if batch_size % m == 0]
    borne = [m for m in divisors if batch_size // m >= MIN_SAMPLES] or [1]
    ticks = lateness_ticks(0, num_stages, hop_delay) - (order == "backward_first")
    return next((m for m in borne if ticks <= MAX_UPDATES_LATE * m), borne[-1])


def choose_hop_delay(
    tick_s: Callable[[int, Order], float], round_trip_s: float, order: Order | None = None
) -> tuple[int, Order]:
    """Return the smallest d that hides a message and its answer behind the stages' computing.

    Forward first, 2d - 1 ticks pass between the end of a stage's forward and the moment when it
    wants the adjoint that the next stage makes of it, less what that takes; backward first one
    less, and gradients are one tick less late. So of two orders that both hide the exchange at
    this d, it is backward first.

    Args:
        tick_s: Seconds of a tick of the slowest stage, for d and order: more micro-batches are
            shorter.
        round_trip_s: Of one cut, the slowest.
        order: Of a tick; None leaves the choice.
    """
    orders: tuple[Order, ...] = ("backward_first", "forward_first") if order is None else (order,)
    for delay in range(1, MAX_HOP_DELAY):
        for each in orders:
            hidden = 2 * delay - (2 if each == "backward_first" else 1)
            if hidden * tick_s(delay, each) >= round_trip_s:
                return delay, each
    return MAX_HOP_DELAY, orders[-1]
