"""How a parallel segment is divided for the stored feed."""

from __future__ import annotations

import itertools

from laminar.plan import Segment


def split_windows(segment: Segment, window: int | None) -> list[Segment]:
    """Return windows of nearly equal length, none shorter than `window` unless the segment is.

    Args:
        segment: Of one epoch, so that every window ends where a checkpoint may be written.
        window: Batches; None is the whole segment.
    """
    n = segment.num_batches
    num = max(1, n // window) if window else 1
    ends = [n * i // num for i in range(num + 1)]
    return [
        Segment(segment.phase, segment.epoch, segment.first_batch + a, b - a)
        for a, b in itertools.pairwise(ends)
    ]
