"""A forward between its call and its backward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from laminar.dropout import Samples


@dataclass
class Again:
    """Input of a forward that will be run again before its backward."""

    x: Tensor
    samples: Samples | None
    """Which samples these are, where the stage has dropout."""


@dataclass
class Visit:
    """A forward that waits for its backward."""

    leaf: Tensor | None
    """U(lambda), the stage's input, where a neighbour sent it."""
    out: Tensor
    """The stage's output, or the loss divided by M at the last stage."""
    weights: list[Tensor]
    """The weights it ran with; the backward differentiates at these."""
    s: int
    """Updates of this stage that this gradient comes late."""
    again: Again | None
    """What it takes to run the forward again; then `out` has no graph."""


class InnerProduct(torch.autograd.Function):
    """The stage's own loss <p, x>, whose gradient at x is the adjoint p; its value is not needed.

    Instead of the `grad_outputs` of torch.autograd.grad, which imports sympy, two seconds a stage.
    """

    @staticmethod
    def forward(ctx: Any, p: Tensor, x: Tensor) -> Tensor:
        """Return a zero that depends on x."""
        ctx.save_for_backward(p)
        return x.new_zeros(())

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[None, Tensor]:
        """Return p, for x."""
        return None, ctx.saved_tensors[0]
