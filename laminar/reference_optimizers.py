"""The optimisers of the reference, written out: update, look-ahead, clipping, averaged weights.

Every function is one equation over the weights of one stage by name. `laminar/optimizer.py` uses
torch's optimisers instead; on CPU both give the same bits.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from laminar.config import AdamWConfig, OptimizerConfig, SgdConfig

Tensors = dict[str, Tensor]


class Optimizer(Protocol):
    """Moments of one stage's weights."""

    def step(
        self, weights: Tensors, gradient: Tensors, lr: float, momentum: float | None = None
    ) -> None:
        """Update weights and moments in place, SGD with another momentum if one is given."""

    def ahead(self, weights: Tensors, lr: float, s: int) -> Tensors:
        """Return where s steps without gradients or weight decay would take the weights."""

    def state(self) -> dict[str, Tensors]:
        """Return the moments by field and name."""


class Sgd:
    """v <- mu v + (g + wd W), then W <- W - lr v; with Nesterov W <- W - lr (g + wd W + mu v)."""

    def __init__(self, weights: Tensors, config: SgdConfig) -> None:
        self.config = config
        self.v = {n: torch.zeros_like(w) for n, w in weights.items()}

    def step(
        self, weights: Tensors, gradient: Tensors, lr: float, momentum: float | None = None
    ) -> None:
        """Update weights and velocity in place."""
        c = self.config
        mu = c.momentum if momentum is None else momentum
        for n, w in weights.items():
            g = gradient[n].add(w, alpha=c.weight_decay)
            if mu == 0:  # and v, which torch leaves alone, is there for the next step with momentum
                w.add_(g, alpha=-lr)
                continue
            self.v[n].mul_(mu).add_(g)
            w.add_(g.add(self.v[n], alpha=mu) if c.nesterov else self.v[n], alpha=-lr)

    def ahead(self, weights: Tensors, lr: float, s: int) -> Tensors:
        """Return W - lr (mu + .. + mu^s) v, with Nesterov W - lr mu (mu + .. + mu^s) v."""
        mu = self.config.momentum
        step = lr * mu * (1.0 - mu**s) / (1.0 - mu)
        step = step * mu if self.config.nesterov else step
        return {n: w.sub(self.v[n], alpha=step) for n, w in weights.items()}

    def state(self) -> dict[str, Tensors]:
        """Return the velocity."""
        return {"momentum_buffer": self.v}


class AdamW:
    """W <- (1 - lr wd) W - lr m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps).

    Before that t <- t + 1, m <- b1 m + (1 - b1) g, v <- b2 v + (1 - b2) g^2.
    """

    def __init__(self, weights: Tensors, config: AdamWConfig) -> None:
        self.config, self.t = config, 0
        self.m = {n: torch.zeros_like(w) for n, w in weights.items()}
        self.v = {n: torch.zeros_like(w) for n, w in weights.items()}

    def step(
        self, weights: Tensors, gradient: Tensors, lr: float, momentum: float | None = None
    ) -> None:
        """Update weights and moments in place."""
        c = self.config
        self.t += 1
        for n, w in weights.items():
            g, m, v = gradient[n], self.m[n], self.v[n]
            m.lerp_(g, 1.0 - c.beta1)
            v.mul_(c.beta2).addcmul_(g, g, value=1.0 - c.beta2)
            root = v.sqrt() / (1.0 - c.beta2**self.t) ** 0.5 + c.eps
            w.mul_(1.0 - lr * c.weight_decay)
            w.addcdiv_(m, root, value=-(lr / (1.0 - c.beta1**self.t)))

    def ahead(self, weights: Tensors, lr: float, s: int) -> Tensors:
        """Return W after s steps with m <- b1 m and v <- b2 v, biases taken out at t + 1 .. t + s.

        Step i is m b1^i / (1 - b1^(t+i)) over sqrt(v b2^i / (1 - b2^(t+i))) + eps.
        """
        c, t = self.config, self.t
        moved = {n: w.clone() for n, w in weights.items()}
        for i in range(1, s + 1):
            m_scale = c.beta1**i / (1.0 - c.beta1 ** (t + i))
            v_scale = c.beta2**i / (1.0 - c.beta2 ** (t + i))
            for n, w in moved.items():
                w.addcdiv_(self.m[n], self.v[n].sqrt() * v_scale**0.5 + c.eps, value=-lr * m_scale)
        return moved

    def state(self) -> dict[str, Tensors]:
        """Return both moments, and for each weight the number of updates."""
        step = {n: torch.tensor(float(self.t)) for n in self.m}
        return {"step": step, "exp_avg": self.m, "exp_avg_sq": self.v}


def make_optimizer(weights: Tensors, config: OptimizerConfig) -> Optimizer:
    """Return the optimiser of one stage."""
    return AdamW(weights, config) if isinstance(config, AdamWConfig) else Sgd(weights, config)


def clip(gradient: Tensors, max_norm: float) -> Tensors:
    """Return g min(1, max_norm / |g|), with |g| over all of the stage's weights."""
    norm = torch.stack([g.norm() for g in gradient.values()]).norm()
    return {n: g * (max_norm / (norm + 1e-6)).clamp(max=1.0) for n, g in gradient.items()}


def average(averages: Tensors, weights: Tensors, decay: float, t: int) -> None:
    """A <- a A + (1 - a) W in place, a = min(decay, (1 + t) / (10 + t)) after t updates."""
    for n, w in weights.items():
        averages[n].lerp_(w, 1.0 - min(decay, (1.0 + t) / (10.0 + t)))
