"""Where to cut: the cost of each block, and the contiguous partition with the smallest maximum."""

from __future__ import annotations

from collections.abc import Sequence
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

    Dynamic programming over (number of stages, number of blocks): the best way to put the first
    n blocks on k stages ends with some last stage of blocks m..n-1.

    Args:
        costs: Cost of each block, >= 0.
        num_stages: K, at most the number of blocks.

    Returns:
        The first block of stages 1..K-1, increasing.
    """
    total = [0.0]
    for cost in costs:
        total.append(total[-1] + cost)
    num = len(costs)
    best = [[total[n] for n in range(num + 1)]]
    start = [[0] * (num + 1)]
    for k in range(1, num_stages):
        row, starts = [float("inf")] * (num + 1), [0] * (num + 1)
        for n in range(k + 1, num + 1):
            for m in range(k, n):
                cost = max(best[k - 1][m], total[n] - total[m])
                if cost < row[n]:
                    row[n], starts[n] = cost, m
        best.append(row)
        start.append(starts)
    cuts: list[int] = []
    n = num
    for k in range(num_stages - 1, 0, -1):
        n = start[k][n]
        cuts.append(n)
    return tuple(reversed(cuts))
