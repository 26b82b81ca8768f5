"""SGD with momentum, its learning rate over the batch index, and the weights it is heading for."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from laminar.config import OptimizerConfig


def learning_rate(batch: int, *, peak: float, num_batches: int, warmup_batches: int) -> float:
    """Return the learning rate of the update that applies a batch.

    Linear from peak/warmup to peak, then half a cosine that would reach zero after the last
    batch. It follows the batch, not the tick, so that late gradients meet their own rate.

    Args:
        batch: Index of the batch in the whole run, from 0.
        peak: Largest rate.
        num_batches: Batches of the whole run.
        warmup_batches: Length of the linear part.
    """
    if batch < warmup_batches:
        return peak * (batch + 1) / warmup_batches
    progress = (batch - warmup_batches) / max(1, num_batches - warmup_batches)
    return 0.5 * peak * (1.0 + math.cos(math.pi * progress))


def build_sgd(parameters: Iterable[Tensor], config: OptimizerConfig) -> torch.optim.SGD:
    """Return torch's own SGD over the parameters of a stage; the caller sets `lr` per update."""
    parameters = list(parameters)
    on_gpu = any(p.is_cuda for p in parameters)
    return torch.optim.SGD(
        parameters,
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        foreach=on_gpu,
    )


def lookahead(weight: Tensor, velocity: Tensor, *, lr: float, momentum: float, s: int) -> Tensor:
    """Return the weight after s more updates if their gradients were zero, detached.

    `W - lr v mu (1 - mu^s) / (1 - mu)`: the sum of the steps that the momentum buffer alone
    would make. Deviation: SpecTrain (arXiv 1809.02839) uses `s lr v`, which overshoots where the
    momentum decays within the s updates.

    Args:
        weight: Any shape.
        velocity: Momentum buffer v, same shape.
        lr: Learning rate of the next update.
        momentum: Coefficient mu, 0 <= mu < 1.
        s: Updates between this forward and the update it belongs to, >= 0.
    """
    factor = lr * momentum * (1.0 - momentum**s) / (1.0 - momentum)
    return weight.detach().sub(velocity, alpha=factor)
