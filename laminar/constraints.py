"""The updates of auxiliary variables, multipliers and penalties at one cut.

Each is an equation of arXiv 2009.01462v2, section 2, as docs/method.md derives it, for one
micro-batch and elementwise. With phi the loss of the batch, a mean over samples, p and kappa are
gradients of phi, and rho is the penalty coefficient of one sample over the batch size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from laminar.config.stored import FixedPenalty, ScheduledPenalty

SMALLEST_VIOLATION = 1e-3
"""Of |x|; below it a penalty is not balanced any more: casting to fp16 moves x by about as much."""


def auxiliary(x: Tensor, kappa: Tensor | float, p: Tensor, rho: float) -> Tensor:
    """Return lambda - eta [rho (lambda - x) - kappa + p] for eta = 1/rho: x + (kappa - p) / rho.

    With rho = 0 the constraint is not relaxed, and lambda is x.
    """
    return x + offset(kappa, p, rho)


def offset(kappa: Tensor | float, p: Tensor, rho: float) -> Tensor:
    """Return lambda - x = (kappa - p) / rho of `auxiliary`, which does not need x."""
    return (kappa - p) / rho if rho else torch.zeros_like(p)


def multiplier(kappa: Tensor, p: Tensor, step: float) -> Tensor:
    """Return kappa + step rho (x - lambda) for the lambda of `auxiliary`: kappa + step (p - kappa).

    With step 1 the multiplier is the adjoint.
    """
    return kappa + step * (p - kappa)


def constraint_gradient(p: Tensor, x: Tensor, x_sent: Tensor, rho: float) -> Tensor:
    """Return the gradient of <kappa, x> + rho/2 |x - lambda|^2 with respect to x.

    That is kappa + rho (x - lambda). With the old kappa and the lambda that `auxiliary` made of it,
    p and the x that was sent, it is p + rho (x - x_sent), whatever kappa was: so p is all that the
    stage before needs to be told.
    """
    return p + rho * (x - x_sent)


def balanced_penalty(p: Tensor, x: Tensor, x_sent: Tensor, ratio: float) -> float:
    """Return rho such that rho |x - x_sent| = ratio |p|, norms over all samples given.

    Residual balancing (Boyd et al. 2011, section 3.4.1). Deviation: there both residuals are
    compared once an iteration, and rho is doubled or halved; here they are known before the
    window's first visit, and rho is what makes their ratio right at once.

    Args:
        p: Adjoints.
        x: What the stage before would send now.
        x_sent: What it sent in the exact pass.
        ratio: Wanted.
    """
    violation = max(float((x - x_sent).norm()), SMALLEST_VIOLATION * float(x.norm()))
    return ratio * float(p.norm()) / violation if violation else 0.0


def chosen_penalty(config: FixedPenalty | ScheduledPenalty, batch: int, num_batches: int) -> float:
    """Return rho of a sample's own loss where the configuration says it.

    Args:
        config: Fixed, or scheduled: first (last / first)^(batch / num_batches).
        batch: First batch of the window, in the run.
        num_batches: Of the run.
    """
    if isinstance(config, FixedPenalty):
        return config.rho
    return float(config.first * (config.last / config.first) ** (batch / num_batches))
