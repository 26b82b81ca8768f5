"""Decoupled greedy learning in the reference: every stage minimises a loss of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor
from torch.func import functional_call

from laminar.plan import Segment
from laminar.precision import autocast

if TYPE_CHECKING:
    from laminar.filters import Message
    from laminar.reference import Reference
    from laminar.reference_optimizers import Tensors


def greedy(r: Reference, segment: Segment) -> None:
    """One parallel phase in which stage k < K-1 minimises phi(A_k(x_k)), the last one phi(x).

    A_k is its classifier, module K + k, and x_k its output, unfiltered (arXiv 1901.08164). Nothing
    goes back and nothing is late, so that the stages may as well take turns.
    """
    K, M = r.num_stages, r.plan.config.parallel.micro_batches
    for batch in range(segment.num_batches):
        index = r.index(segment, batch)
        gradient: list[Tensors] = [{} for _ in r.modules]
        labels = r.labels.train(segment.epoch, segment.first_batch + batch, r.is_augmented)
        targets = labels.chunk(M)
        for i in range(batch * M, (batch + 1) * M):
            message: Message | None = None
            for k in range(K):
                weights = r.predict(k, 0, index)
                (out, leaves, _), message = r.forward(k, segment, i, M, weights, message, 0)
                p: Tensor | None = None
                if k < K - 1:
                    x, own = out.detach().requires_grad_(), r.predict(K + k, 0, index)
                    with autocast(r.precision, x.device):
                        logits = functional_call(r.modules[K + k], own, (x,)).float()
                    loss = r.plan.loss.train(logits, targets[i % M]) / M
                    p = r.differentiate(K + k, loss, [*own.values(), x], None, gradient[K + k])
                r.differentiate(k, out, leaves, p, gradient[k])
        for k in range(len(r.modules)):
            r.update(k, gradient[k], index)
