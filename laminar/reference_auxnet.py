"""Auxiliary-variable networks in the reference: every stage makes its input of the images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.func import functional_call

from laminar.auxiliary import RHO
from laminar.filters import unpack
from laminar.plan import Segment
from laminar.precision import autocast, place_input

if TYPE_CHECKING:
    from laminar.filters import Message
    from laminar.reference import Reference
    from laminar.reference_optimizers import Tensors


def auxnet(reference: Reference, segment: Segment) -> None:
    """Train one parallel phase (arXiv 2112.05387)."""
    _Phase(reference, segment).run()


class _Phase:
    """At tick t every stage is at micro-batch t forwards, and at t - (K-1-k)d backwards.

    G_k, module K + k - 1, is fitted to x - p / rho when stage k has both,
    x = C F_{k-1}(lambda_{k-1}) of the stage before and p of its own backward.
    """

    def __init__(self, reference: Reference, segment: Segment) -> None:
        self.r, self.segment = reference, segment
        self.settings, self.K = reference.plan.config.parallel, reference.num_stages
        self.M, self.d = self.settings.micro_batches, self.settings.hop_delay
        self.num_micro = segment.num_batches * self.M
        each = range(self.K)
        self.sent: list[dict[int, tuple[int, Message]]] = [{} for _ in each]
        self.replied: list[dict[int, tuple[int, Message]]] = [{} for _ in each]
        self.graphs: list[dict[int, tuple[Tensor, list[Tensor], int]]] = [{} for _ in each]
        self.gradient: list[Tensors] = [{} for _ in reference.modules]
        self.updates = [0] * self.K

    def run(self) -> None:
        """Go through all ticks, until the slowest has had its last micro-batch."""
        for t in range(self.num_micro + max(self.K - 1, 1) * self.d):
            for k in range(self.K):
                is_forward_first = self.settings.first_half == "forward_first" or k == self.K - 1
                halves = (self.forward, self.backward)
                for half in halves if is_forward_first else reversed(halves):
                    half(t, k)
                self.fit(t, k)

    def make(self, k: int, i: int, weights: Tensors) -> Tensor:
        """G_k(u) of micro-batch i, at these weights."""
        r, (batch, part) = self.r, divmod(i, self.M)
        u = r.inputs.train(self.segment.epoch, self.segment.first_batch + batch, r.is_augmented)
        u = u.chunk(self.M)[part]
        u = place_input(u, r.precision, u.device)
        with autocast(r.precision, u.device):
            out: Tensor = functional_call(r.modules[self.K + k - 1], weights, (u,))
        return out.float()

    def forward(self, t: int, k: int) -> None:
        """Run stage k on the lambda that it makes, and send what comes of it."""
        if t >= self.num_micro:
            return
        r, lateness = self.r, t // self.M - self.updates[k]
        ahead = r.predict(k, lateness, r.index(self.segment, self.updates[k]))
        lam = None
        if k:
            with torch.no_grad():
                lam = (self.make(k, t, r.weights[self.K + k - 1]),)
        self.graphs[k][t], out = r.forward(k, self.segment, t, self.M, ahead, lam, lateness)
        if out is not None:
            self.sent[k][t] = t, out

    def backward(self, t: int, k: int) -> None:
        """Take the adjoint that the next stage sent d ticks ago; update after a batch's last."""
        r, j = self.r, t - (self.K - 1 - k) * self.d
        if not 0 <= j < self.num_micro:
            return
        left, adjoint = self.replied[k + 1][j] if k < self.K - 1 else (t - self.d, None)
        assert left == t - self.d
        graph = self.graphs[k].pop(j)
        shrunk = self.settings.shrink ** graph[2]
        reply = r.backward(k, graph, adjoint, self.gradient[k], shrunk)
        if reply is not None:
            self.replied[k][j] = t, reply
        if j % self.M == self.M - 1:
            r.update(k, self.gradient[k], r.index(self.segment, self.updates[k]))
            self.updates[k] += 1

    def fit(self, t: int, k: int) -> None:
        """Move G_k down the gradient of the mean of (G_k(u) - lambda_new)^2."""
        i = t - max((self.K - 1 - k) * self.d, self.d)
        if k == 0 or not 0 <= i < self.num_micro:
            return
        left, x = self.sent[k - 1].pop(i)
        assert left <= t - self.d
        r, own = self.r, self.K + k - 1
        index = r.index(self.segment, i // self.M)
        weights = r.predict(own, 0, index)
        per_sample = r.plan.config.batch_size / r.scale
        target = unpack(x) - unpack(self.replied[k][i][1]) * per_sample / RHO
        loss = (self.make(k, i, weights) - target).square().mean() / self.M
        r.differentiate(own, loss, list(weights.values()), None, self.gradient[own])
        if i % self.M == self.M - 1:
            r.update(own, self.gradient[own], index)
