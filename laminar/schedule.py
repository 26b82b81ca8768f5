"""Who does what when: the schedules of both phases as pure functions of a few integers.

Parallel phase, tick t, stage k of K, hop delay d (forward first, K=3, d=1):

    tick      0    1    2    3      4      5
    stage 0   F0   F1   F2   F3     F4 B0  F5 B1     forward  of micro-batch t - k d
    stage 1        F0   F1   F2 B0  F3 B1  F4 B2     backward of micro-batch t - (2(K-1) - k) d
    stage 2             F0B0 F1B1   F2B2   F3B3      the last stage does both at once

Correction phase, one batch of M micro-batches (1F1B, Narayanan et al. 2019, arXiv 1806.03377):
stage k runs K-1-k forwards ahead, then alternates one forward, one backward.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Order = Literal["forward_first", "backward_first"]

HOP_DEPTH = 2
"""Forwards of the correction phase that each hop to the last stage adds to the warm-up.

One is 1F1B with free hops; the second hides a hop behind a forward (benchmarks/speed)."""


@dataclass(frozen=True)
class Forward:
    """Run one micro-batch forward."""

    micro: int


@dataclass(frozen=True)
class Backward:
    """Run one micro-batch backward."""

    micro: int


@dataclass(frozen=True)
class Fit:
    """Fit the network that makes a stage's inputs to one micro-batch."""

    micro: int


Action = Forward | Backward


def lateness_ticks(stage: int, num_stages: int, delay: int) -> int:
    """Return the ticks between a micro-batch's forward and its backward at one stage."""
    return 2 * (num_stages - 1 - stage) * delay


def late_share(stage: int, num_stages: int, per_batch: int, delay: int, order: Order) -> float:
    """Return the share of a long phase's forwards with s > 0; see `updates_until_own`."""
    ticks = lateness_ticks(stage, num_stages, delay)
    if order == "backward_first" and stage < num_stages - 1:
        ticks -= 1
    return min(1.0, ticks / per_batch)


def num_ticks(num_micro: int, num_stages: int, delay: int) -> int:
    """Return the ticks of a parallel phase, filling and draining included."""
    return num_micro + 2 * (num_stages - 1) * delay


def min_ticks(num_stages: int, delay: int) -> int:
    """Return the shortest parallel phase worth its filling and draining, in micro-batches."""
    return 4 * (num_stages - 1) * delay


def parallel_actions(
    stage: int, num_stages: int, num_micro: int, delay: int, order: Order
) -> Iterator[tuple[int, Action]]:
    """Yield (tick, action) of one stage in the order in which it performs them."""
    last = stage == num_stages - 1
    for tick in range(num_ticks(num_micro, num_stages, delay)):
        i = tick - stage * delay
        j = i - lateness_ticks(stage, num_stages, delay)
        forward: list[tuple[int, Action]] = [(tick, Forward(i))] if 0 <= i < num_micro else []
        backward: list[tuple[int, Action]] = [(tick, Backward(j))] if 0 <= j < num_micro else []
        if order == "forward_first" or last:
            yield from (*forward, *backward)
        else:
            yield from (*backward, *forward)


def unlocked_lateness_ticks(stage: int, num_stages: int, delay: int) -> int:
    """Return the ticks between forward and backward where no forward waits for another stage's."""
    return (num_stages - 1 - stage) * delay


def unlocked_actions(
    stage: int, num_stages: int, num_micro: int, delay: int, order: Order
) -> Iterator[Action | Fit]:
    """Yield one stage's actions where its inputs are made by a network of its own.

    At tick t every stage runs micro-batch t forward, and micro-batch t - (K-1-k)d backward. Stage
    k > 0 fits the network that makes its inputs when both are there: the stage before's output,
    d ticks old, and its own backward (K=3, d=1, forward first):

        tick      0      1         2            3
        stage 0   F0     F1        F2 B0        F3 B1
        stage 1   F0     F1 B0 T0  F2 B1 T1     F3 B2 T2
        stage 2   F0 B0  F1 B1 T0  F2 B2 T1     F3 B3 T2
    """
    late = unlocked_lateness_ticks(stage, num_stages, delay)
    fit_late = max(late, delay)
    for tick in range(num_micro + max(fit_late, late)):
        forward: list[Action] = [Forward(tick)] if tick < num_micro else []
        backward: list[Action] = [Backward(tick - late)] if 0 <= tick - late < num_micro else []
        is_forward_first = order == "forward_first" or stage == num_stages - 1
        yield from (*forward, *backward) if is_forward_first else (*backward, *forward)
        if stage > 0 and 0 <= tick - fit_late < num_micro:
            yield Fit(tick - fit_late)


def updates_until_own(
    micro: int,
    stage: int,
    num_stages: int,
    per_batch: int,
    delay: int,
    order: Order,
    *,
    is_unlocked: bool = False,
) -> int:
    """Return s: the updates of this stage between a forward and the update it belongs to.

    Counted within one phase, which starts drained, so it is 0 while the pipeline fills.

    Args:
        micro: Micro-batch of the forward, from 0 at the start of the phase.
        stage: Stage k.
        num_stages: K.
        per_batch: Micro-batches per update, M.
        delay: Hop delay d in ticks.
        order: Which half of a tick comes first.
        is_unlocked: Of `unlocked_actions` instead of `parallel_actions`.
    """
    lateness = unlocked_lateness_ticks if is_unlocked else lateness_ticks
    backwards_done = micro - lateness(stage, num_stages, delay)
    if order == "backward_first" and stage < num_stages - 1:
        backwards_done += 1
    return micro // per_batch - max(0, backwards_done) // per_batch


def correction_actions(
    stage: int, num_stages: int, per_batch: int, depth: int = 1
) -> Iterator[Action]:
    """Yield one stage's actions for one batch.

    Args:
        stage: Stage k.
        num_stages: K.
        per_batch: Micro-batches of the batch, M.
        depth: 1 is 1F1B; more runs further ahead, so that hops hide behind forwards, until all
            forwards come first (GPipe). It changes the memory, never a number.
    """
    ahead = min(per_batch, (num_stages - 1 - stage) * depth)
    yield from (Forward(i) for i in range(ahead))
    for i in range(ahead, per_batch):
        yield Forward(i)
        yield Backward(i - ahead)
    yield from (Backward(i) for i in range(per_batch - ahead, per_batch))
