"""The stored parallel phase in one process: the other half of `laminar/reference.py`.

lambda, kappa and what was sent last live in tables by cut and micro-batch; cut k is the one before
stage k. A sweep reads the tables, and all that it sends is exchanged when it has ended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from laminar.config.stored import BalancedPenalty
from laminar.filters import Message, unpack
from laminar.plan import Segment

if TYPE_CHECKING:
    from laminar.reference import Reference

Table = dict[int, dict[int, Tensor]]


def stored_phase(ref: Reference, segment: Segment) -> None:
    """Train a segment window by window, n // window of them."""
    n, window = segment.num_batches, ref.plan.config.stored.window or segment.num_batches
    num = max(1, n // window)
    for i in range(num):
        first, end = n * i // num, n * (i + 1) // num
        at = segment.first_batch + first
        Window(ref, Segment(segment.phase, segment.epoch, at, end - first)).run()


class Window:
    """A stretch of batches: an exact pass, then sweeps."""

    def __init__(self, ref: Reference, segment: Segment) -> None:
        self.ref, self.segment, self.config = ref, segment, ref.plan.config
        self.cuts = range(1, ref.num_stages)
        self.M = self.config.correction.micro_batches
        self.lam, self.kappa, self.sent, self.p = (self.table() for _ in range(4))
        self.rho: dict[int, float] = {}

    def table(self) -> Table:
        """Return a place for a tensor of each cut and micro-batch."""
        return {k: {} for k in self.cuts}

    def run(self) -> None:
        """Exact pass, penalties, sweeps."""
        self.exact_pass()
        self.find_penalties()
        for sweep in range(self.config.stored.sweeps):
            if sweep:
                self.exchange()
            self.x_new, self.p_new = self.table(), self.table()
            for batch in range(self.segment.num_batches):
                for k in range(self.ref.num_stages):
                    self.visit(k, batch)

    def exact_pass(self) -> None:
        """Train exactly; lambda = x, and the multiplier is the adjoint."""
        for batch in range(self.segment.num_batches):
            x, p = self.ref.exact_batch(self.segment, batch)
            for k in self.cuts:
                for i in x[k]:
                    self.sent[k][i], self.p[k][i] = unpack(x[k][i]), self.adjoint(p[k][i])
                    self.lam[k][i], self.kappa[k][i] = self.sent[k][i], self.p[k][i]

    def find_penalties(self) -> None:
        """Find rho (over the batch size); the penalty method starts from lambda = x - p/rho."""
        c = self.config.penalty
        for k in self.cuts:
            if self.config.method == "delayed_gradient":
                self.rho[k] = 0.0
            elif isinstance(c, BalancedPenalty):
                self.rho[k] = self.balanced(k, self.config.penalty_ratio(c))
            else:
                batch = self.ref.index(self.segment, 0) / self.ref.plan.num_batches
                rho = c.rho if c.name == "fixed" else c.first * (c.last / c.first) ** batch
                self.rho[k] = rho / self.config.batch_size
        if self.config.method == "penalty":
            for k in self.cuts:
                for i, p in self.p[k].items():
                    self.kappa[k][i] = torch.zeros_like(p)
                    self.lam[k][i] = self.step(k, self.sent[k][i], self.kappa[k][i], p)

    def balanced(self, k: int, ratio: float) -> float:
        """Return rho with rho |x_now - x_sent| = ratio |p| on the first batch."""
        buffers = [b.clone() for b in self.ref.modules[k - 1].buffers()]
        messages = [self.forward(k - 1, i)[1] for i in range(self.M)]
        x = torch.cat([unpack(message) for message in messages if message is not None])
        for b, before in zip(self.ref.modules[k - 1].buffers(), buffers, strict=True):
            b.copy_(before)
        sent, p = (torch.cat([t[k][i] for i in range(self.M)]) for t in (self.sent, self.p))
        violation = max(float((x - sent).norm()), 1e-3 * float(x.norm()))
        return float(torch.tensor(ratio * float(p.norm()) / violation if violation else 0.0))

    def visit(self, k: int, batch: int) -> None:
        """Stage k minimises its own loss by local steps on one batch, and notes new x and p."""
        c, gradient = self.config.stored, dict[str, Tensor]()
        for step in range(c.inner_steps):
            buffers = [b.clone() for b in self.ref.modules[k].buffers()]
            for i in range(batch * self.M, (batch + 1) * self.M):
                graph, message = self.forward(k, i)
                pull = None
                if message is not None:
                    self.x_new[k + 1][i] = x = unpack(message)
                    # The gradient of <kappa, x> + rho/2 |x - lambda|^2 at x.
                    p, dx = self.p[k + 1][i], x - self.sent[k + 1][i]
                    if self.config.parallel.curvature:
                        p = self.ref.moved(p, dx)
                    g = p + self.rho[k + 1] * dx
                    pull = (g * self.ref.scale,)
                reply = self.ref.backward(k, graph, pull, gradient, 1.0)
                if reply is not None and step == 0:
                    self.p_new[k][i] = self.adjoint(reply)
            if step:
                for b, before in zip(self.ref.modules[k].buffers(), buffers, strict=True):
                    b.copy_(before)
            index = self.ref.index(self.segment, batch)
            step_size, momentum = self.config.visit_step_size(), self.config.visit_momentum()
            self.ref.update(k, gradient, index, step_size, momentum)

    def exchange(self) -> None:
        """Move lambda, then kappa, by the x and p of the sweep that ended."""
        for k in self.cuts:
            for i, x in self.x_new[k].items():
                p, kappa = self.p_new[k][i], self.kappa[k][i]
                self.lam[k][i] = self.step(k, x, kappa, p)
                if self.config.method == "augmented_lagrangian":
                    self.kappa[k][i] = kappa + self.config.stored.multiplier_step * (p - kappa)
                self.sent[k][i], self.p[k][i] = x, p

    def step(self, k: int, x: Tensor, kappa: Tensor, p: Tensor) -> Tensor:
        """Return lambda = x + (kappa - p) / rho; with delayed gradients x."""
        return x + (kappa - p) / self.rho[k] if self.rho[k] else x + torch.zeros_like(x)

    def forward(self, k: int, i: int) -> tuple[tuple[Tensor, list[Tensor], int], Message | None]:
        """Run a micro-batch from lambda at the present weights."""
        weights = self.ref.predict(k, 0, 0)
        message = (self.lam[k][i],) if k else None
        return self.ref.forward(k, self.segment, i, self.M, weights, message, 0)

    def adjoint(self, message: Message) -> Tensor:
        """Return p, its scale taken out."""
        return unpack(message) * (1.0 / self.ref.scale)
