"""Torch's optimisers, the weights they are heading for, clipping, and averaged weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from laminar.config import AdamWConfig, OptimizerConfig, SgdConfig

STATE_FIELDS = {"sgd": ("momentum_buffer",), "adamw": ("step", "exp_avg", "exp_avg_sq")}
"""What an optimiser keeps for each parameter, by torch's names; a checkpoint holds just this."""


class Optimizer:
    """Torch's own update rules over the parameters of a stage, and what they keep.

    Through torch's functional interface: the first object of a class of torch.optim imports
    torch._dynamo, which each stage would wait for (docs/log.md).

    Args:
        parameters: Updated in place.
        config: Which rule.
    """

    def __init__(self, parameters: Iterable[Tensor], config: OptimizerConfig) -> None:
        self._parameters, self._config = list(parameters), config
        self._foreach = any(p.is_cuda for p in self._parameters)
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        """By parameter, with the fields of `STATE_FIELDS`; empty before the first update."""

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], lr: float, momentum: float | None = None) -> None:
        """Apply one gradient for each parameter at this learning rate, and SGD's at a momentum."""
        if isinstance(self._config, AdamWConfig):
            self._adamw(gradients, self._config, lr)
        else:
            momentum = self._config.momentum if momentum is None else momentum
            self._sgd(gradients, self._config, lr, momentum)

    def _sgd(
        self, gradients: Sequence[Tensor], config: SgdConfig, lr: float, momentum: float
    ) -> None:
        buffers = [self.state.get(p, {}).get("momentum_buffer") for p in self._parameters]
        sgd(
            self._parameters,
            list(gradients),
            buffers,
            lr=lr,
            momentum=momentum,
            weight_decay=config.weight_decay,
            nesterov=config.nesterov,
            dampening=0.0,
            maximize=False,
            foreach=self._foreach,
        )
        for parameter, buffer in zip(self._parameters, buffers, strict=True):
            if buffer is not None:
                self.state[parameter] = {"momentum_buffer": buffer}

    def _adamw(self, gradients: Sequence[Tensor], config: AdamWConfig, lr: float) -> None:
        for parameter in self._parameters:
            if parameter not in self.state:
                moments = (
                    torch.zeros((), dtype=torch.float32),
                    *map(torch.zeros_like, (parameter,) * 2),
                )
                self.state[parameter] = dict(zip(STATE_FIELDS["adamw"], moments, strict=True))
        steps, exp_avgs, exp_avg_sqs = (
            [self.state[p][field] for p in self._parameters] for field in STATE_FIELDS["adamw"]
        )
        adamw(
            self._parameters,
            list(gradients),
            exp_avgs,
            exp_avg_sqs,
            [],
            steps,
            lr=lr,
            beta1=config.beta1,
            beta2=config.beta2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            amsgrad=False,
            maximize=False,
            foreach=self._foreach,
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
