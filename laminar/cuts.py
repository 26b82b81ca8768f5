"""Where to cut: the cost of each block, and the contiguous partition with the smallest maximum."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from laminar.blocks import Block, dry_run

_ELEMENT_COST = 300.0
"""Cost of one output element of a convolution, in multiply-adds of that convolution.

Fitted to the blocks of ResNet-20 on one CPU thread (docs/log.md): normalising, rectifying and
adding move memory, and there they take more time than the arithmetic.
"""


def block_costs(
    blocks: Sequence[Block], image_shape: Sequence[int], dtype: torch.dtype = torch.float32
) -> list[float]:
    """Estimate the cost of a forward and backward of each block, in multiply-adds per image.

    Counted, not timed, so that the same network is always cut at the same places.

    Args:
        blocks: The network, all of it.
        image_shape: (C, H, W).
        dtype: Of an image.
    """
    costs: list[float] = []
    x = torch.zeros(1, *image_shape, dtype=dtype)
    for block in blocks:
        cost = 0.0

        def count(module: nn.Module, _: Any, out: Tensor) -> None:
            nonlocal cost
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
                cost += out[0].numel() * (module.weight[0].numel() + _ELEMENT_COST)

        hooks = [module.register_forward_hook(count) for module in block.module.modules()]
        x = dry_run(block, x)
        for hook in hooks:
            hook.remove()
        costs.append(cost)
    return costs


def equal_cost_cuts(costs: Sequence[float], num_stages: int) -> tuple[int, ...]:
    """Return the cuts whose most expensive stage is cheapest.

    Args:
        costs: Cost of each block, >= 0.
        num_stages: K, at most the number of blocks.

    Returns:
        The first block of stages 1..K-1, increasing.
    """
    total = [0.0, *itertools.accumulate(costs)]
    cuts = best_cuts(len(costs), num_stages, lambda k, first, last: total[last] - total[first])
    assert cuts is not None
    return cuts


def best_cuts(
    num_blocks: int, num_stages: int, cost: Callable[[int, int, int], float]
) -> tuple[int, ...] | None:
    """Return the contiguous partition whose most expensive stage is cheapest.

    Dynamic programming over (number of stages, number of blocks): the best way to put the first
    n blocks on k stages ends with some last stage of blocks m..n-1,

        best(k, n) = min over m of max(best(k - 1, m), cost(k - 1, m, n)).

    Of equally good partitions the one with the earliest last cut counts, then the next to last.

    Args:
        num_blocks: Blocks of the network.
        num_stages: K, at most the number of blocks.
        cost: Of stage k made of blocks m..n-1, called with (k, m, n); infinite if that cannot be.

    Returns:
        The first block of stages 1..K-1, increasing; None if every partition costs infinity.
    """
    best = [math.inf] * (num_blocks + 1)
    best[0] = 0.0
    starts: list[list[int]] = []
    for k in range(num_stages):
        row, start = [math.inf] * (num_blocks + 1), [0] * (num_blocks + 1)
        ends = range(k + 1, num_blocks + 1) if k < num_stages - 1 else [num_blocks]
        for n in ends:
            for m in range(k, n) if k else [0]:
                worst = max(best[m], cost(k, m, n))
                if worst < row[n]:
                    row[n], start[n] = worst, m
        best = row
        starts.append(start)
    if best[num_blocks] == math.inf:
        return None
    bounds = [num_blocks]
    for start in reversed(starts):
        bounds.append(start[bounds[-1]])
    return tuple(reversed(bounds[1:-1]))
