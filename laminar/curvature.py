"""How an adjoint would read had it been taken where a stage's output is now.

A late adjoint p is the gradient of the loss at the output x that was sent; meanwhile the stage's
weights have moved, and with them its output, by dx. To first order the gradient there is p + H dx,
with H the curvature of the loss behind the cut: delay compensation (Zheng et al. 2017, arXiv
1609.08326), in the space of activations instead of weights. As there, H is taken for the outer
product of the gradient with itself, here per sample: with g the adjoint of the sample's own loss,
p + H dx = p (1 + <g, dx>). The stage's own loss is then <p, x> + B/2 <p, dx>^2, B the batch size: a
penalty along p alone (docs/method.md).
"""

from __future__ import annotations

from torch import Tensor

MAX_CHANGE = 0.25
"""How far the estimate is believed, in parts of p: what keeps it steady (docs/log.md)."""


def moved_adjoint(p: Tensor, dx: Tensor, batch_size: int, strength: float) -> Tensor:
    """Return p (1 + strength <g, dx>) per sample, the change held to +-`MAX_CHANGE`.

    Args:
        p: Adjoint of the batch's mean loss at the output that was sent, fp32 [b, ...].
        dx: How far the output has moved since, as p; of the stored feed as cast by the filter.
        batch_size: Samples that the mean is of, so that g = p batch_size.
        strength: 1 is the estimate, 0 leaves p as it is.
    """
    along = (p * batch_size * dx).flatten(1).sum(1)
    change = (strength * along).clamp(-MAX_CHANGE, MAX_CHANGE)
    return p * (1 + change).view(-1, *[1] * (p.dim() - 1))
