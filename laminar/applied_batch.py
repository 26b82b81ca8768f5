"""What a stage keeps of a batch for the exactness ledger, and how it stands at those weights again.

See `laminar.exactness` for what is compared.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from laminar.exactness import Exactness

if TYPE_CHECKING:
    from laminar.stage import Stage


@dataclass
class AppliedBatch:
    """What a stage keeps of one batch, for the ledger: copies, one for each parameter."""

    weights: list[Tensor]
    """Just before the batch's update."""
    gradient: list[Tensor]
    """As it was applied: the mean over the batch, shrunk where `parallel.shrink` says so, before
    clipping."""
    exact: list[Tensor] = field(default_factory=list)
    """g*, when it has been computed."""

    def exactness(self) -> Exactness:
        """Compare both gradients, summed in double precision."""
        pairs = list(zip(self.gradient, self.exact, strict=True))
        return Exactness(
            dot=_sum((g * e) for g, e in _doubles(pairs)),
            square=_sum(g.square() for g, _ in _doubles(pairs)),
            exact_square=_sum(e.square() for _, e in _doubles(pairs)),
            error_square=_sum((g - e).square() for g, e in _doubles(pairs)),
        )


@contextlib.contextmanager
def at_weights(stage: Stage, weights: Sequence[Tensor]) -> Iterator[None]:
    """Let a drained stage stand at other weights within the block; nothing of it is left behind.

    Its own weights wait in the tensors that are given, so that this takes no memory. Buffers (the
    running statistics of batch norm) and the tally are put back.
    """
    buffers = [(buffer, buffer.clone()) for buffer in stage.module.buffers()]
    tally = stage.take_tally()
    _swap(stage.learner.parameters, weights)
    try:
        yield
    finally:
        stage.discard()
        _swap(stage.learner.parameters, weights)
        for buffer, kept in buffers:
            buffer.copy_(kept)
        stage.tally = tally


@torch.no_grad()
def _swap(parameters: Iterable[Tensor], others: Iterable[Tensor]) -> None:
    for parameter, other in zip(parameters, others, strict=True):
        kept = parameter.clone()
        parameter.copy_(other)
        other.copy_(kept)


def _doubles(pairs: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    for first, second in pairs:
        yield first.double(), second.double()


def _sum(terms: Iterable[Tensor]) -> float:
    return sum(float(term.sum()) for term in terms)
