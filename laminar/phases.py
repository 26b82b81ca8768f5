"""The phase plan as data: stretches of batches, each of one epoch and one phase."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from laminar.config import Config, PhaseCycles, PhaseSegment
from laminar.errors import ConfigError
from laminar.schedule import min_ticks

Phase = Literal["correction", "parallel"]


@dataclass(frozen=True)
class Segment:
    """A stretch of batches of one epoch, in one phase; the unit that the engine runs."""

    phase: Phase
    epoch: int
    """From 0."""
    first_batch: int
    """Index within the epoch."""
    num_batches: int


def split_phases(config: Config, per_epoch: int, *, correct_short: bool) -> list[Segment]:
    """Return the segments of a run.

    Args:
        config: Whose `phases` may be cycles or a list.
        per_epoch: Batches of an epoch.
        correct_short: Train parallel pieces of a list that are too short exactly, as those of
            cycles are, instead of refusing them.

    Raises:
        ConfigError: A list does not sum to the epochs, or has such a piece.
    """
    too_short: Literal["correct", "refuse"] = "correct"
    if isinstance(config.phases, PhaseCycles):
        runs = _cycle_runs(config.phases, per_epoch * config.epochs)
    else:
        runs = _listed_runs(config, per_epoch)
        too_short = "correct" if correct_short else "refuse"
    if config.method == "exact":
        runs = [("correction", length) for _, length in runs]
    return _split(config, runs, per_epoch, too_short=too_short)


def _cycle_runs(cycles: PhaseCycles, total: int) -> list[tuple[Phase, int]]:
    """Exact warm-up, then cycles of parallel and correction, in batches that sum to `total`."""
    warmup = math.ceil(cycles.warmup * total)
    exact = min(total - warmup, math.floor(cycles.correction * total))
    runs: list[tuple[Phase, int]] = [("correction", warmup)]
    for index in range(cycles.num_cycles):
        share = [part * (index + 1) // cycles.num_cycles - part * index // cycles.num_cycles
                 for part in (total - warmup - exact, exact)]  # fmt: skip
        runs += [("parallel", share[0]), ("correction", share[1])]
    return runs


def _listed_runs(config: Config, per_epoch: int) -> list[tuple[Phase, int]]:
    assert not isinstance(config.phases, PhaseCycles)
    sums = [0.0, *itertools.accumulate(segment.epochs for segment in config.phases)]
    ends = [round(end * per_epoch) for end in sums]
    if ends[-1] != config.epochs * per_epoch:
        raise ConfigError(
            "the epochs of `phases` must sum to `epochs`",
            got=f"{sums[-1]:g}",
            expected=config.epochs,
            fix="change the last segment, or leave `phases` out for the default plan",
        )
    lengths = [b - a for a, b in itertools.pairwise(ends)]
    return [(s.phase, length) for s, length in zip(config.phases, lengths, strict=True)]


def _split(
    config: Config,
    runs: list[tuple[Phase, int]],
    per_epoch: int,
    *,
    too_short: Literal["correct", "refuse"],
) -> list[Segment]:
    """Split runs at the ends of epochs, where the pipeline drains.

    A parallel piece too short to fill the pipeline is trained exactly in the default plan, and
    refused in a plan that the user wrote.
    """
    per_batch = config.parallel.micro_batches
    needed = math.ceil(min_ticks(config.num_stages, config.parallel.hop_delay) / per_batch)
    if config.parallel.feed == "stored":
        needed = 1
    segments: list[Segment] = []
    position = 0
    for phase, length in runs:
        while length > 0:
            epoch, first = divmod(position, per_epoch)
            num = min(length, per_epoch - first)
            kind: Phase = phase
            if phase == "parallel" and num < needed:
                if too_short == "refuse":
                    raise ConfigError(
                        "a parallel segment must be long enough to fill the pipeline within its "
                        "epoch, 4(K-1)d ticks",
                        got=f"{num} batches in epoch {epoch + 1}",
                        expected=f">= {needed}",
                        fix="lengthen it, lower batch_size, num_stages or parallel.hop_delay, or "
                        "raise parallel.micro_batches",
                    )
                kind = "correction"
            _append(segments, Segment(kind, epoch, first, num))
            position, length = position + num, length - num
    return segments


def correct_from(segments: Iterable[Segment], epoch: int) -> list[Segment]:
    """Return the segments with all from this epoch on in the correction phase."""
    corrected: list[Segment] = []
    for segment in segments:
        exact = dataclasses.replace(segment, phase="correction")
        _append(corrected, exact if segment.epoch >= epoch else segment)
    return corrected


def _append(segments: list[Segment], new: Segment) -> None:
    """Add a segment, joined to the one before where both are exact and of the same epoch."""
    if segments and segments[-1].epoch == new.epoch and segments[-1].phase == new.phase:
        old = segments.pop()
        new = Segment(new.phase, new.epoch, old.first_batch, old.num_batches + new.num_batches)
    segments.append(new)


def as_phases(segments: list[Segment], per_epoch: int) -> tuple[PhaseSegment, ...]:
    """Write segments as the configuration's `phases`, so that a resumed run takes the same."""
    return tuple(
        PhaseSegment(phase=phase, epochs=sum(s.num_batches for s in group) / per_epoch)
        for phase, run in itertools.groupby(segments, key=lambda s: s.phase)
        if (group := list(run))
    )
