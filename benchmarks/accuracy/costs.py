"""What a layer-parallel pass takes, in passes of serial training on one of the devices."""

from __future__ import annotations

import math


def whole(passes: float) -> int:
    """Return the least number of passes that is no less, rounding errors apart."""
    return math.ceil(round(passes, 6))


def free_cost(num_stages: int, exact: float, forwards: int = 1) -> float:
    """Return the time of a pass on K equal devices in serial passes, exchange free.

    Where all stages but the last run `forwards` forwards, a third of a step each, they get so much
    less of the network than 1/K. A correction phase of 4 micro-batches takes (4+K-1)/4 as long as
    the largest stage.
    """
    work = (2 + forwards) / 3
    parallel = work / (num_stages - 1 + work)
    return (1 - exact) * parallel + exact * parallel * (4 + num_stages - 1) / 4


PARALLEL_SPEED, _CORRECTION_SPEED = 1.697, 1.364
"""Of K=2 on two cores, in serial speeds of one core: benchmarks/speed/table.md."""
K2_COST = 0.9 / PARALLEL_SPEED + 0.1 / _CORRECTION_SPEED
"""The time of a pass at K=2 in serial passes, a tenth of them exact."""
