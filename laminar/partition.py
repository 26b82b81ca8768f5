"""Which blocks each stage gets: by counted or measured cost, within a limit on memory."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from laminar.config import Config, ParallelConfig
from laminar.cuts import best_cuts
from laminar.errors import ConfigError
from laminar.filters import Filter
from laminar.memory import block_memories, stage_bytes
from laminar.schedule import late_share

if TYPE_CHECKING:
    from laminar.plan import Plan

Cuts = tuple[int, ...]
Exchange = Callable[[int, int], float]


def work_factor(parallel: ParallelConfig, stage: int, num_stages: int) -> float:
    """Return what a stage computes in the parallel phase, over one forward and backward each.

    A forward that runs again is a third of both.
    """
    if not parallel.runs_again:
        return 1.0
    M, d = parallel.micro_batches, parallel.hop_delay
    return 1 + late_share(stage, num_stages, M, d, parallel.first_half) / 3


def choose_cuts(plan: Plan, costs: Sequence[float], exchange: Exchange | None = None) -> Cuts:
    """Return the cuts whose slowest stage is fastest, of those within the limit on memory.

    A stage is as slow as the slower of its computing and the exchange at the cut before it: both
    happen at once, and the cut behind it is that of the next stage.

    Args:
        plan: A run at any cuts.
        costs: Of computing each block.
        exchange: Of what crosses the cut before stage k if it is at a boundary, in the same unit;
            None is free.

    Raises:
        ConfigError: Every partition has a stage above the limit.
    """
    config, num_blocks = plan.config, plan.bounds[-1]
    total = [0.0, *itertools.accumulate(costs)]
    limit = config.partition.memory_limit_mb
    needs = None if limit is None else _memory_of(plan)

    def cost(k: int, first: int, last: int) -> float:
        if needs is not None and limit is not None and needs(k, first, last) > limit * 1e6:
            return math.inf
        compute = total[last] - total[first]
        if config.method != "exact":
            compute *= work_factor(config.parallel, k, config.num_stages)
        return max(compute, exchange(k, first)) if exchange is not None and k else compute

    cuts = best_cuts(num_blocks, config.num_stages, cost)
    if cuts is None:
        assert needs is not None
        raise _too_little_memory(config, needs, num_blocks)
    return cuts


def check_memory(plan: Plan) -> None:
    """Hold cuts that the user chose against the limit on memory, if there is one.

    Not part of making a plan: it runs the network, and plans are made wherever a checkpoint is
    read.

    Raises:
        ConfigError: A stage is above it.
    """
    limit = plan.config.partition.memory_limit_mb
    if limit is None:
        return
    needs = _memory_of(plan)
    for k, (first, last) in enumerate(itertools.pairwise(plan.bounds)):
        if needs(k, first, last) > limit * 1e6:
            raise ConfigError(
                f"stage {k}, blocks {first}..{last - 1}, must fit partition.memory_limit_mb",
                got=f"about {needs(k, first, last) / 1e6:.0f} MB, limit {limit:g}",
                fix="raise the limit or the micro_batches, or move the cuts (null chooses them)",
            )


def exchange_seconds(plan: Plan) -> Exchange:
    """Return the seconds that a message of one micro-batch takes across a cut, one way.

    Both directions run at once and carry the same number of bytes.
    """
    config = plan.config
    size = config.batch_size // config.num_micro_of("parallel")

    def seconds(stage: int, boundary: int) -> float:
        f = config.filter_of_cut(stage, boundary, plan.shapes)
        num_bytes = size * Filter(f.pool, f.cast).sample_bytes(plan.shapes[boundary])
        return num_bytes / (config.partition.bandwidth_mb_s * 1e6)

    return seconds


def _memory_of(plan: Plan) -> Callable[[int, int, int], float]:
    memories = block_memories(plan)
    return lambda k, first, last: stage_bytes(memories, plan, k, first, last)


def _too_little_memory(
    config: Config, needs: Callable[[int, int, int], float], num_blocks: int
) -> ConfigError:
    cuts = best_cuts(num_blocks, config.num_stages, needs)
    assert cuts is not None
    bounds = itertools.pairwise((0, *cuts, num_blocks))
    least = max(needs(k, first, last) for k, (first, last) in enumerate(bounds))
    return ConfigError(
        f"partition.memory_limit_mb must be enough for some partition into {config.num_stages} "
        "stages",
        got=f"{config.partition.memory_limit_mb:g}",
        expected=f">= {math.ceil(least / 1e6)} (cuts {list(cuts)})",
        fix="raise it or num_stages, or lower batch_size, or raise the micro_batches",
    )
