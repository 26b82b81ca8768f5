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


def auxnet(r: Reference, segment: Segment) -> None:
    """One parallel phase: at tick t every stage is at micro-batch t, forwards (arXiv 2112.05387).

    Backwards it is at t - (K-1-k)d. G_k, module K + k - 1, is fitted to x - p / rho when stage k
    has both, x = C F_{k-1}(lambda_{k-1}) of the stage before and p of its own backward.
    """
    p, K = r.plan.config.parallel, r.num_stages
    M, d, size = p.micro_batches, p.hop_delay, r.plan.config.batch_size
    num_micro = segment.num_batches * M
    sent: list[dict[int, tuple[int, Message]]] = [{} for _ in range(K)]
    replied: list[dict[int, tuple[int, Message]]] = [{} for _ in range(K)]
    graphs: list[dict[int, tuple[Tensor, list[Tensor], int]]] = [{} for _ in range(K)]
    gradient: list[Tensors] = [{} for _ in r.modules]
    updates = [0] * K

    def make(k: int, i: int, weights: Tensors) -> Tensor:
        """G_k(u) of micro-batch i, at these weights."""
        batch, part = divmod(i, M)
        u = r.inputs.train(segment.epoch, segment.first_batch + batch, r.is_augmented)
        u = u.chunk(M)[part]
        u = place_input(u, r.precision, u.device)
        with autocast(r.precision, u.device):
            out: Tensor = functional_call(r.modules[K + k - 1], weights, (u,))
        return out.float()

    def forward(t: int, k: int) -> None:
        if t >= num_micro:
            return
        s = t // M - updates[k]
        ahead = r.predict(k, s, r.index(segment, updates[k]))
        lam = None
        if k:
            with torch.no_grad():
                lam = (make(k, t, r.weights[K + k - 1]),)
        graphs[k][t], out = r.forward(k, segment, t, M, ahead, lam, s)
        if out is not None:
            sent[k][t] = t, out

    def backward(t: int, k: int) -> None:
        j = t - (K - 1 - k) * d
        if not 0 <= j < num_micro:
            return
        left, adjoint = replied[k + 1][j] if k < K - 1 else (t - d, None)
        assert left == t - d
        graph = graphs[k].pop(j)
        reply = r.backward(k, graph, adjoint, gradient[k], p.shrink ** graph[2])
        if reply is not None:
            replied[k][j] = t, reply
        if j % M == M - 1:
            r.update(k, gradient[k], r.index(segment, updates[k]))
            updates[k] += 1

    def fit(t: int, k: int) -> None:
        i = t - max((K - 1 - k) * d, d)
        if k == 0 or not 0 <= i < num_micro:
            return
        left, x = sent[k - 1].pop(i)
        assert left <= t - d
        own, index = K + k - 1, r.index(segment, i // M)
        weights = r.predict(own, 0, index)
        target = unpack(x) - unpack(replied[k][i][1]) * (size / r.scale) / RHO
        loss = (make(k, i, weights) - target).square().mean() / M
        r.differentiate(own, loss, list(weights.values()), None, gradient[own])
        if i % M == M - 1:
            r.update(own, gradient[own], index)

    for t in range(num_micro + max(K - 1, 1) * d):
        for k in range(K):
            is_forward_first = p.order == "forward_first" or k == K - 1
            for half in (forward, backward) if is_forward_first else (backward, forward):
                half(t, k)
            fit(t, k)
