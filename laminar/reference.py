"""The whole algorithm in one process: read this first. It is the oracle of the engine's tests.

Minimise phi(F_{K-1}(U lambda_{K-1})) subject to lambda_{k+1} = C F_k(U lambda_k; W_k), all stages
at once (arXiv 2009.01462v2, section 2). Here the auxiliary variables and the adjoints live in two
tables, `sent[k][i]` and `replied[k][j]`, each entry with the tick it left at; nothing else crosses
a cut. With the forward's own weights and eta = 1/rho the penalty method, the augmented Lagrangian
and delayed gradients coincide: the gradient of <kappa, x> + rho/2 |x - lambda|^2 at the x that was
sent is the adjoint p, and p is what the tables carry. The stored feed, where they differ, is in
`laminar/reference_stored.py`.

Shares with the engine the filters, the loss, the learning rate, the precision and the network; the
order of events and the handling of weights are written out again, as plainly as they can be, and so
are the optimisers, in `laminar/reference_optimizers.py`.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import functional_call

from laminar.auxiliary import build_auxnet, build_classifier
from laminar.data import SampleIndices
from laminar.dropout import Samples
from laminar.engine import Inputs, Labels
from laminar.filters import Message, adjoint_scale, spatial_size
from laminar.plan import Plan, Segment
from laminar.precision import autocast, place, place_input
from laminar.reference_auxnet import auxnet
from laminar.reference_greedy import greedy
from laminar.reference_optimizers import Optimizer, Tensors, average, clip, make_optimizer
from laminar.reference_stored import stored_phase
from laminar.weights import load_weights

CPU = torch.device("cpu")
Crossed = defaultdict[int, dict[int, Message]]
Graph = tuple[Tensor, list[Tensor], int]
"""Output, what it is differentiated at, and s: the updates between forward and backward."""


class Reference:
    """K stages in one process, one global clock.

    Args:
        plan: The resolved run.
        inputs: Images of a batch.
        labels: Labels of a batch.
    """

    def __init__(self, plan: Plan, inputs: Inputs, labels: Labels) -> None:
        self.plan, self.inputs, self.labels = plan, inputs, labels
        self.num_stages = plan.config.num_stages
        self.indices = SampleIndices(plan.config, plan.problem.num_train)
        bounds = plan.bounds
        self.precision = plan.config.precision
        self.modules = [
            place(plan.build_stage_module(bounds[k], bounds[k + 1]), self.precision, CPU)
            for k in range(self.num_stages)
        ]
        for module in self.modules:
            load_weights(module, plan)
        auxiliary = {"greedy": build_classifier, "auxnet": build_auxnet}.get(plan.config.method)
        if auxiliary is not None:  # that of the cut before stage k at K + k - 1
            self.modules += [place(auxiliary(plan, b), self.precision, CPU) for b in bounds[1:-1]]
        self.weights: list[Tensors] = [
            {n: p.detach().clone() for n, p in m.named_parameters()} for m in self.modules
        ]
        self.averages = [{n: w.clone() for n, w in weights.items()} for weights in self.weights]
        self.optimizers: list[Optimizer] = [
            make_optimizer(weights, plan.config.optimizer) for weights in self.weights
        ]
        self.scale = adjoint_scale(plan.config.batch_size)
        self.losses: list[float] = []

    def run(self) -> None:
        """Train the whole plan."""
        for segment in self.plan.segments:
            filters = self.plan.filters
            self.filters = [filters[b].during(segment.phase) for b in self.plan.bounds[1:-1]]
            for module in self.modules:
                module.enter(segment.phase)
            p = self.plan.config.parallel
            self.is_augmented = segment.phase == "correction" or p.augmentation
            if segment.phase == "correction":
                self.correction(segment)
            elif self.plan.config.method == "greedy":
                greedy(self, segment)
            elif self.plan.config.method == "auxnet":
                auxnet(self, segment)
            elif p.feed == "stored":
                stored_phase(self, segment)
            else:
                self.streamed(segment)

    def streamed(self, segment: Segment) -> None:
        """One parallel phase: at tick t stage k is at micro-batch t - kd forwards.

        Backwards it is at t - (2(K-1) - k)d; both messages must have left d ticks ago.
        """
        p, K = self.plan.config.parallel, self.num_stages
        M, d = p.micro_batches, p.hop_delay
        num_micro = segment.num_batches * M
        sent: list[dict[int, tuple[int, Message]]] = [{} for _ in range(K)]
        replied: list[dict[int, tuple[int, Message]]] = [{} for _ in range(K)]
        graphs: list[dict[int, Graph]] = [{} for _ in range(K)]
        received: list[dict[int, Message | None]] = [{} for _ in range(K)]
        gradient: list[Tensors] = [{} for _ in range(K)]
        updates = [0] * K

        def forward(t: int, k: int) -> None:
            i = t - k * d
            if not 0 <= i < num_micro:
                return
            s = i // M - updates[k]
            ahead = self.predict(k, s, self.index(segment, updates[k]))
            left, message = sent[k - 1].pop(i) if k else (t - d, None)
            assert left == t - d
            graphs[k][i], out = self.forward(k, segment, i, M, ahead, message, s)
            received[k][i] = message
            if out is not None:
                sent[k][i] = t, out

        def backward(t: int, k: int) -> None:
            j = t - (2 * (K - 1) - k) * d
            if not 0 <= j < num_micro:
                return
            left, adjoint = replied[k + 1].pop(j) if k < K - 1 else (t - d, None)
            assert left == t - d
            graph, message = graphs[k].pop(j), received[k].pop(j)
            again = None
            if p.curvature and graph[2]:
                now = self.predict(k, 0, self.index(segment, updates[k]))
                again = self.forward_again(k, segment, j, M, now, message)
            reply = self.backward(k, graph, adjoint, gradient[k], p.shrink ** graph[2], again)
            if reply is not None:
                replied[k][j] = t, reply
            if j % M == M - 1:
                self.update(k, gradient[k], self.index(segment, updates[k]))
                updates[k] += 1

        for t in range(num_micro + 2 * (K - 1) * d):
            for k in range(K):
                at_once = k == K - 1
                first_forward = p.first_half == "forward_first" or at_once
                halves: list[Callable[[int, int], None]] = [forward, backward]
                for half in halves if first_forward else reversed(halves):
                    half(t, k)

    def correction(self, segment: Segment) -> None:
        """Exact gradients, batch by batch."""
        for batch in range(segment.num_batches):
            self.exact_batch(segment, batch)

    def exact_batch(self, segment: Segment, batch: int) -> tuple[Crossed, Crossed]:
        """Per micro-batch forwards through all stages, then backwards; then all updates.

        Returns what crossed each cut, by the stage behind it: C(x), and adjoints.
        """
        M, K = self.plan.config.correction.micro_batches, self.num_stages
        gradient: list[Tensors] = [{} for _ in range(K)]
        sent, replied = Crossed(dict), Crossed(dict)
        for i in range(batch * M, (batch + 1) * M):
            graphs, message, adjoint = [], None, None
            for k in range(K):
                weights = self.predict(k, 0, self.index(segment, batch))
                graph, message = self.forward(k, segment, i, M, weights, message, 0)
                graphs.append(graph)
                if message is not None:
                    sent[k + 1][i] = message
            for k in reversed(range(K)):
                adjoint = self.backward(k, graphs[k], adjoint, gradient[k], 1.0)
                if adjoint is not None:
                    replied[k][i] = adjoint
        for k in range(K):
            self.update(k, gradient[k], self.index(segment, batch))
        return sent, replied

    def predict(self, k: int, s: int, batch: int) -> Tensors:
        """Return stage k's weights s updates from now, the next being that of a batch.

        Where the optimiser alone would take them with look-ahead, the present ones without.
        """
        s = s if self.plan.config.parallel.lookahead else 0
        lr = self.plan.learning_rate(batch)
        ahead = self.optimizers[k].ahead(self.weights[k], lr, s)
        return {n: w.requires_grad_() for n, w in ahead.items()}

    def forward(
        self,
        k: int,
        segment: Segment,
        i: int,
        M: int,
        weights: Tensors,
        message: Message | None,
        s: int,
    ) -> tuple[Graph, Message | None]:
        """Stage k, micro-batch i of the segment: its graph, and C(x) for the next stage."""
        batch, part = divmod(i, M)
        at = segment.epoch, segment.first_batch + batch
        leaves = list(weights.values())
        if message is None:
            x = self.inputs.train(*at, self.is_augmented).chunk(M)[part]
        else:
            size = self.plan.shapes[self.plan.bounds[k]][-2:]
            x = self.filters[k - 1].decode(message, (size[0], size[-1]))
            x = x.detach().clone()
        x = place_input(x, self.precision, CPU)
        if k:
            leaves.append(x.requires_grad_())
        indices = self.indices.train(*at).chunk(M)[part]
        self.modules[k].set_samples(Samples(self.plan.config.seed, segment.epoch, indices))
        with autocast(self.precision, CPU):
            out = functional_call(self.modules[k], weights, (x,)).float()
        if k == self.num_stages - 1:
            labels = self.labels.train(*at, self.is_augmented)
            loss = self.plan.loss.train(out, labels.chunk(M)[part])
            self.losses.append(float(loss.detach()))
            return (loss / M, leaves, s), None
        return (out, leaves, s), self.filters[k].encode(out.detach())

    def forward_again(
        self, k: int, segment: Segment, i: int, M: int, weights: Tensors, message: Message | None
    ) -> Graph:
        """Return the graph of the same forward at other weights; batch norm counts it once."""
        module, self.modules[k] = self.modules[k], copy.deepcopy(self.modules[k])
        graph, _ = self.forward(k, segment, i, M, weights, message, 0)
        self.modules[k] = module
        return graph

    def backward(
        self,
        k: int,
        graph: Graph,
        adjoint: Message | None,
        gradient: Tensors,
        factor: float,
        again: Graph | None = None,
    ) -> Message | None:
        """Add stage k's gradient at the forward's own weights; return the adjoint for k - 1.

        With the forward run again it is that one's, at the adjoint moved to its output.
        """
        out, leaves, _ = graph
        grad_out = None
        if adjoint is not None:
            grad_out = self.filters[k].decode_adjoint(adjoint, self.scale, spatial_size(out))
        if again is not None and grad_out is not None:
            grad_out = self.moved(grad_out, again[0].detach() - out.detach())
            out, leaves, _ = again
        at_input = self.differentiate(k, out, leaves, grad_out, gradient, factor)
        return self.filters[k - 1].encode_adjoint(at_input, self.scale) if k else None

    def moved(self, p: Tensor, dx: Tensor) -> Tensor:
        """Return p (1 + curvature <g, dx>) per sample, with g the adjoint of its own loss."""
        c = self.plan.config
        per_sample = (c.batch_size * p * dx).flatten(1).sum(1)
        change = (c.parallel.curvature * per_sample).clamp(-0.25, 0.25)
        return torch.stack([a * (1 + b) for a, b in zip(p, change, strict=True)])

    def differentiate(
        self,
        k: int,
        out: Tensor,
        leaves: list[Tensor],
        p: Tensor | None,
        gradient: Tensors,
        factor: float = 1.0,
    ) -> Tensor:
        """Add to the gradient of module k; return that at the last leaf, its input, if any."""
        grads = torch.autograd.grad(out, leaves, p)
        for name, g in zip(self.weights[k], grads, strict=False):
            gradient[name] = gradient[name] + g * factor if name in gradient else g * factor
        return grads[-1]

    def update(
        self,
        k: int,
        gradient: Tensors,
        batch: int,
        step_size: float = 1.0,
        momentum: float | None = None,
    ) -> None:
        """Clip, step and average: the update of stage k that applies a batch. Empties `gradient`.

        The norm is that of stage k's own gradient.
        """
        c = self.plan.config
        if c.optimizer.clip_norm is not None:
            gradient.update(clip(gradient, c.optimizer.clip_norm))
        lr = self.plan.learning_rate(batch) * step_size
        self.optimizers[k].step(self.weights[k], gradient, lr, momentum)
        if c.ema is not None:
            average(self.averages[k], self.weights[k], c.ema.decay, batch + 1)
        gradient.clear()

    def index(self, segment: Segment, batch: int) -> int:
        """Return which batch of the run a batch of the segment is."""
        return segment.epoch * self.plan.batches_per_epoch + segment.first_batch + batch

    def state(self) -> Tensors:
        """Return the state by the names of `Stage.state`: weights, buffers, averages, moments."""
        tensors: Tensors = {}
        for k, module in enumerate(self.modules):
            groups = {f"optimizer.{field}": t for field, t in self.optimizers[k].state().items()}
            groups |= {"model": dict(module.named_buffers()) | self.weights[k]}
            groups |= {"ema": self.averages[k]} if self.plan.config.ema else {}
            for group, members in groups.items():
                for key, tensor in members.items():
                    tensors[f"{group}.{module.public_name(key)}"] = tensor.clone()
        return tensors
