"""The learning rate as a function of the batch index.

It follows the batch, not the tick, so that late gradients meet their own rate.
"""

from __future__ import annotations

import math

from laminar.config import CosineConfig, OneCycleConfig, ScheduleConfig, StepConfig


def learning_rate(
    schedule: ScheduleConfig, batch: int, *, peak: float, num_batches: int, batches_per_epoch: int
) -> float:
    """Return the learning rate of the update that applies a batch.

    But for one-cycle, linear from peak/warmup to peak first. Then, with p the fraction of the
    remaining batches that are done: cosine peak (1 + cos(pi p)) / 2; linear from peak to its
    final fraction of it; step peak gamma^(milestones passed). Cosine and line would arrive after
    the last batch.

    Args:
        schedule: Which shape.
        batch: Index of the batch in the whole run, from 0.
        peak: Largest rate.
        num_batches: Batches of the whole run.
        batches_per_epoch: Batches of an epoch.
    """
    if isinstance(schedule, OneCycleConfig):
        return peak * _one_cycle(schedule, batch, num_batches)
    warmup = round(schedule.warmup_epochs * batches_per_epoch)
    if batch < warmup:
        return peak * (batch + 1) / warmup
    if isinstance(schedule, StepConfig):
        passed = sum(batch >= round(m * batches_per_epoch) for m in schedule.milestones)
        return peak * schedule.gamma**passed
    progress = (batch - warmup) / max(1, num_batches - warmup)
    if isinstance(schedule, CosineConfig):
        return 0.5 * peak * (1.0 + math.cos(math.pi * progress))
    return peak * (1.0 - progress * (1.0 - schedule.final_fraction))


def _one_cycle(schedule: OneCycleConfig, batch: int, num_batches: int) -> float:
    """Return the rate over its peak: up by half a cosine until `rise`, then down by another.

    Smith and Topin 2018 (arXiv 1708.07120), as torch's OneCycleLR anneals it; the last batch has
    the lowest rate. Deviation: the momentum stays as it is, because look-ahead relies on it.
    """
    first = 1.0 / schedule.initial_divisor
    last = first / schedule.final_divisor
    top = max(0.0, schedule.rise * num_batches - 1)
    if batch <= top:
        return _half_cosine(first, 1.0, batch / top if top else 1.0)
    return _half_cosine(1.0, last, (batch - top) / (num_batches - 1 - top))


def _half_cosine(start: float, end: float, progress: float) -> float:
    """Return the way from start (progress 0) to end (progress 1)."""
    return end + 0.5 * (start - end) * (1.0 + math.cos(math.pi * progress))
