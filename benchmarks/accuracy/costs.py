"""What a layer-parallel pass takes: time, in serial passes on one device, and bytes sent."""

from __future__ import annotations

import math

from laminar.config import Config
from laminar.filters import Filter
from laminar.planning import make_plan
from laminar.problem import Problem


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


_CIFAR10_16 = Problem((3, 16, 16), num_classes=10, num_train=10_000, num_test=5_000)


def sent_share(config: Config) -> float:
    """Return the bytes that cross the cuts of a network for CIFAR-10 at 16x16 by fp32's, 0..1."""
    plan = make_plan(config, _CIFAR10_16)
    sizes = [(f, plan.shapes[boundary]) for boundary, f in plan.filters.items()]
    whole = sum(Filter().sample_bytes(shape) for _, shape in sizes)
    return sum(f.sample_bytes(shape) for f, shape in sizes) / whole
