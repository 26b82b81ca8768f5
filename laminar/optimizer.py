"""Torch's optimisers, the weights they are heading for, clipping, and averaged weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from laminar.config import AdamWConfig, OptimizerConfig, SgdConfig

STATE_FIELDS = {"sgd": ("momentum_buffer",), "adamw": ("step", "exp_avg", "exp_avg_sq")}
"""What an optimiser keeps for each parameter, by torch's names; a checkpoint holds just this."""


def build_optimizer(parameters: Iterable[Tensor], config: OptimizerConfig) -> torch.optim.Optimizer:
    """Return torch's own optimiser over the parameters of a stage; the caller sets `lr`."""
    parameters = list(parameters)
    on_gpu = any(p.is_cuda for p in parameters)
    if isinstance(config, AdamWConfig):
        return torch.optim.AdamW(
            parameters,
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            weight_decay=config.weight_decay,
            foreach=on_gpu,
        )
    return torch.optim.SGD(
        parameters,
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.nesterov,
        foreach=on_gpu,
    )


def lookahead(
    weight: Tensor, state: Mapping[str, Tensor], config: OptimizerConfig, *, lr: float, s: int
) -> Tensor:
    """Return the weight after s more updates if their gradients were zero, without weight decay.

    Args:
        weight: Any shape.
        state: What the optimiser keeps for it; empty before the first update, when the weight is
            heading nowhere.
        config: The optimiser.
        lr: Learning rate of the next update, taken for all s.
        s: Updates between this forward and the update it belongs to, >= 0.

    Returns:
        A new tensor, detached.
    """
    weight = weight.detach()
    if not state:
        return weight.clone()
    if isinstance(config, AdamWConfig):
        return _adamw_lookahead(weight, state, config, lr, s)
    return _sgd_lookahead(weight, state["momentum_buffer"], config, lr, s)


def _sgd_lookahead(
    weight: Tensor, velocity: Tensor, config: SgdConfig, lr: float, s: int
) -> Tensor:
    """Return W - lr v mu (1 - mu^s) / (1 - mu), and with Nesterov mu times that far.

    With zero gradients the buffer is mu^i v at the i-th of the next updates, a geometric sum.
    Update i steps along mu^i v, or, with Nesterov, along g + mu (mu^i v) = mu^(i+1) v.
    Deviation: SpecTrain (arXiv 1809.02839) uses `s lr v`, which overshoots where the momentum
    decays within the s updates.
    """
    momentum = config.momentum
    factor = lr * momentum * (1.0 - momentum**s) / (1.0 - momentum)
    if config.nesterov:
        factor *= momentum
    return weight.sub(velocity, alpha=factor)


def _adamw_lookahead(
    weight: Tensor, state: Mapping[str, Tensor], config: AdamWConfig, lr: float, s: int
) -> Tensor:
    """Return W - lr sum_i m_i / (sqrt(v_i) + eps) over the next updates i = 1..s.

    With zero gradients the moments m and v, t updates old, are b1^i m and b2^i v at update t + i,
    and with their bias taken out

        m_i = m b1^i / (1 - b1^(t+i)),    v_i = v b2^i / (1 - b2^(t+i)).

    Unlike SGD's, the sum has no closed form, for eps and the corrections change from term to
    term; s is small.
    """
    t, root = float(state["step"]), state["exp_avg_sq"].sqrt()
    for i in range(1, s + 1):
        m_scale = config.beta1**i / (1.0 - config.beta1 ** (t + i))
        v_scale = config.beta2**i / (1.0 - config.beta2 ** (t + i))
        denominator = (root * v_scale**0.5).add_(config.eps)
        weight = weight.addcdiv(state["exp_avg"], denominator, value=-lr * m_scale)
    return weight if s else weight.clone()


def clip(gradients: Sequence[Tensor], max_norm: float) -> list[Tensor]:
    """Return the gradients of a stage, scaled so that together their L2 norm is <= max_norm.

    As `torch.nn.utils.clip_grad_norm_`, but into new tensors: two parameters may share one.
    """
    on_gpu = any(g.is_cuda for g in gradients)
    norm = torch.nn.utils.get_total_norm(gradients, foreach=on_gpu)
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    return [g * factor for g in gradients]


def ema_decay(decay: float, batch: int) -> float:
    """Return the decay of averaged weights at the update that applies a batch of the run.

    min(decay, (1 + t) / (10 + t)) at update t = batch + 1, so that the random initial weights
    leave the average soon (the rule of TensorFlow's ExponentialMovingAverage).
    """
    t = batch + 1
    return min(decay, (1.0 + t) / (10.0 + t))
