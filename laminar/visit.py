"""A forward between its call and its backward."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
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
    random_states: list[Tensor]
    """Of torch's own generators, for blocks that draw from them."""

    @classmethod
    def of(cls, x: Tensor, samples: Samples | None) -> Again:
        """Keep the input of the forward that comes next."""
        states = [torch.get_rng_state()]
        if x.is_cuda:
            states.append(torch.cuda.get_rng_state(x.device))
        return cls(x, samples, states)

    @contextlib.contextmanager
    def random_numbers(self) -> Iterator[None]:
        """Let the same random numbers be drawn again within the block, and then go on."""
        with torch.random.fork_rng([self.x.device] if self.x.is_cuda else []):
            torch.set_rng_state(self.random_states[0])
            if self.x.is_cuda:
                torch.cuda.set_rng_state(self.random_states[1], self.x.device)
            yield


@dataclass
class Visit:
    """A forward that waits for its backward."""

    leaf: Tensor | None
    """U(lambda), the stage's input, where a neighbour sent it."""
    out: Tensor
    """The stage's output, or the loss divided by M at the last stage."""
    weights: list[Tensor]
    """The weights it ran with, at which it is differentiated; none before it runs again."""
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
