"""One stage of the network: its weights, its late backwards, its optimiser. Plain torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.func import functional_call

from laminar.auxiliary import InputNetwork, LocalLoss, make_auxiliary
from laminar.curvature import moved_adjoint
from laminar.data import SampleIndices
from laminar.filters import Message, adjoint_scale, spatial_size
from laminar.learner import Learner
from laminar.plan import Phase, Plan
from laminar.precision import autocast, place, place_input
from laminar.schedule import updates_until_own
from laminar.tally import Tally
from laminar.visit import Again, InnerProduct, Visit
from laminar.weights import load_weights


class Stage:
    """Blocks `bounds[k] .. bounds[k+1]-1`, forward, backward and update.

    Args:
        plan: The resolved run.
        index: k, 0 <= k < K.
        device: Where it computes.
        is_new: Start from `model.weights`, if given; a stage that will load a checkpoint need not.
    """

    def __init__(
        self,
        plan: Plan,
        index: int,
        device: torch.device | str = "cpu",
        *,
        is_new: bool = True,
    ) -> None:
        self.plan, self.index, self.device = plan, index, torch.device(device)
        config, bounds = plan.config, plan.bounds
        self.num_stages = config.num_stages
        self.is_first, self.is_last = index == 0, index == self.num_stages - 1
        module = plan.build_stage_module(bounds[index], bounds[index + 1]).train()
        if is_new:
            load_weights(module, plan)
        self.module = place(module, config.precision, self.device)
        self.sample_indices = (
            SampleIndices(config, plan.problem.num_train) if self.module.has_dropout else None
        )
        self.learner = Learner(plan, self.module)
        self.auxiliary = make_auxiliary(plan, index, self.device)
        self._is_compiled = config.precision.compile
        # Training only: an evaluation's last batch is smaller, and would be compiled anew.
        self._compiled = torch.compile(self._functional) if self._is_compiled else self._functional
        self.enter("correction")
        self._size_in = tuple(plan.shapes[bounds[index]][-2:])
        self._scale = adjoint_scale(config.batch_size)
        self._loss = plan.loss
        self._visits: dict[int, Visit] = {}
        self._gradients: list[Tensor] | None = None
        self.tally = Tally()

    @property
    def needs_labels(self) -> bool:
        """Whether a loss is computed here."""
        return self.is_last or isinstance(self.auxiliary, LocalLoss)

    @property
    def needs_images(self) -> bool:
        """Whether inputs are made of the images themselves here."""
        return self.is_first or isinstance(self.auxiliary, InputNetwork)

    def enter(self, phase: Phase | Literal["evaluation"]) -> None:
        """Let the filters, at the cuts and inside, act as in this phase."""
        filters, bounds = self.plan.filters, self.plan.bounds
        first, last = bounds[self.index], bounds[self.index + 1]
        self._filter_in = None if self.is_first else filters[first].during(phase)
        self._filter_out = None if self.is_last else filters[last].during(phase)
        self.module.enter(phase)

    # -- training ---------------------------------------------------------------------------

    def forward(
        self,
        micro: int,
        x: Tensor | Message,
        labels: Tensor | None,
        *,
        num_micro: int,
        s: int = 0,
        lr: float = 0.0,
        is_visit: bool = False,
    ) -> Message | None:
        """Run one micro-batch forward and keep what its backward will need.

        With s > 0 this stage will make s updates before the one that this micro-batch belongs
        to. It then runs at a detached copy of the weights: where they are heading with
        look-ahead, the present ones without. With `parallel.curvature` it keeps no graph, for
        `backward` will run it again.

        Args:
            micro: Index within the phase; `backward` names it again.
            x: Images [b, C, H, W] at stage 0, else the message of the stage before.
            labels: int64 [b], or with mixup fp32 [b, classes]; only the last stage needs them.
            num_micro: Micro-batches per update, M.
            s: Updates between this forward and its own update.
            lr: Learning rate of this stage's next update, for look-ahead.
            is_visit: Whether this is a visit of the stored feed, to be counted apart.

        Returns:
            What to send to the next stage, detached; None at the last.
        """
        leaf = None
        if isinstance(x, tuple):
            leaf = x_in = self._receive(x).requires_grad_()
        else:
            x_in = self._place(x)
        weights = self.learner.ahead(s, lr) if s else self.learner.parameters
        again = None
        if s and self.plan.config.parallel.runs_again:
            again = Again.of(x_in, self.module.samples)
        with torch.set_grad_enabled(again is None):
            out = self._call(weights if s or self._is_compiled else None, x_in)
        if labels is not None and self.is_last:
            labels = labels.to(self.device)
            loss = self._loss.train(out, labels)
            if is_visit:
                self.tally.add_visit(len(labels), loss.detach())
            else:
                self.tally.add(out.detach(), labels, loss.detach())
            out = loss / num_micro
        self._visits[micro] = Visit(leaf, out, weights if again is None else [], s, again)
        return self._send(out.detach())

    def note_lambda(self, micro: int, phase_micro: int, lam: Tensor, adjoint: Message) -> None:
        """Hear of the lambda that the output of a visit is held against; a measured stage listens.

        Args:
            micro: The visit, as `forward` named it.
            phase_micro: The micro-batch within the phase.
            lam: As the next stage keeps it.
            adjoint: What it last sent back.
        """

    def backward(self, micro: int, adjoint: Message | None) -> Message | None:
        """Differentiate a forward at its own weights and add to the batch's gradient.

        With `parallel.curvature` a late forward is run again at the present weights and
        differentiated there, at the adjoint that belongs to where its output is now.

        Args:
            micro: The micro-batch.
            adjoint: What the next stage sent back; None at the last stage.

        Returns:
            What to send back to the stage before; None at stage 0.
        """
        p = None
        if adjoint is not None:
            assert self._filter_out is not None
            message = tuple(part.to(self.device, non_blocking=True) for part in adjoint)
            visit = self._visits[micro]
            p = self._filter_out.decode_adjoint(message, self._scale, spatial_size(visit.out))
            if visit.again is not None:
                p = self._run_again(visit, visit.again, p)
        at_input = self._differentiate(micro, p)
        if at_input is None:
            return None
        assert self._filter_in is not None
        return self._filter_in.encode_adjoint(at_input, self._scale)

    def _run_again(self, visit: Visit, again: Again, p: Tensor) -> Tensor:
        """Put the forward at the present weights in a visit's place; return its adjoint."""
        if again.samples is not None:
            self.module.set_samples(again.samples)
        # Buffers are copies: batch norm's running statistics have counted this micro-batch.
        buffers = {name: buffer.clone() for name, buffer in self.module.named_buffers()}
        sent, visit.weights = visit.out, self.learner.parameters
        with again.random_numbers():
            visit.out = self._call(visit.weights, again.x, buffers)
        config = self.plan.config
        dx = visit.out.detach() - sent
        return moved_adjoint(p, dx, config.batch_size, config.parallel.curvature)

    def backward_locally(self, micro: int, labels: Tensor, *, num_micro: int) -> None:
        """Do the same with the stage's own classifier in place of the next stage.

        Args:
            micro: The micro-batch.
            labels: As in `forward`.
            num_micro: Micro-batches per update, M.
        """
        p = None
        if isinstance(self.auxiliary, LocalLoss):
            p = self.auxiliary.adjoint(self._visits[micro].out.detach(), labels, num_micro)
        self._differentiate(micro, p)

    def _differentiate(self, micro: int, p: Tensor | None) -> Tensor | None:
        """Add to the batch's gradient, with p at the stage's output; return that at its input."""
        visit = self._visits.pop(micro)
        loss = visit.out if p is None else InnerProduct.apply(p, visit.out)
        inputs = [*visit.weights, *([] if visit.leaf is None else [visit.leaf])]
        gradients = list(torch.autograd.grad(loss, inputs))
        at_input = None if visit.leaf is None else gradients.pop()
        self._accumulate(gradients, self.plan.config.parallel.shrink**visit.s)
        return at_input

    def update(self, batch: int, *, step_size: float = 1.0, momentum: float | None = None) -> None:
        """Apply the accumulated gradient of this batch of the run; see `Learner.update`."""
        self.learner.update(self.take_gradient(), batch, step_size=step_size, momentum=momentum)

    def take_gradient(self) -> list[Tensor]:
        """Return what the batch's backwards have added up, one for each parameter; start anew."""
        assert self._gradients is not None
        taken, self._gradients = self._gradients, None
        return taken

    def updates_until_own(self, micro: int) -> int:
        """Return s of a forward of the parallel phase; see `schedule.updates_until_own`."""
        p = self.plan.config.parallel
        return updates_until_own(
            micro, self.index, self.num_stages, p.micro_batches, p.hop_delay, p.first_half
        )

    def discard(self) -> None:
        """Drop what is in flight: forwards without backwards, a batch's partial gradient."""
        self._visits.clear()
        self._gradients = None
        self.learner.forget_ahead()
        if self.auxiliary is not None:
            self.auxiliary.discard()

    def _accumulate(self, gradients: list[Tensor], factor: float) -> None:
        if factor != 1.0:
            gradients = [g * factor for g in gradients]
        if self._gradients is None:
            self._gradients = gradients
        else:
            pairs = zip(self._gradients, gradients, strict=True)
            self._gradients = [total + gradient for total, gradient in pairs]

    def _call(
        self,
        weights: list[Tensor] | None,
        x: Tensor,
        buffers: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Run the blocks in fp32 or under autocast, at their own weights or at these; fp32."""
        with autocast(self.plan.config.precision, self.device):
            if weights is None:
                out: Tensor = self.module(x)
            else:
                named = dict(zip(self.learner.keys, weights, strict=True)) | dict(buffers or {})
                run = self._compiled if self.module.training else self._functional
                out = run(named, x)
        return out.float()

    def _functional(self, named: dict[str, Tensor], x: Tensor) -> Tensor:
        out: Tensor = functional_call(self.module, named, (x,))
        return out

    # -- evaluation -------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, x: Tensor | Message, labels: Tensor | None) -> Message | None:
        """Run one batch forward with running statistics; the last stage counts into `tally`.

        With `ema` it runs at the averaged weights. The running statistics of batch norm are those
        of training: they are moving averages of their own.
        """
        self.module.eval()
        x_in = self._receive(x) if isinstance(x, tuple) else self._place(x)
        out = self._call(self.learner.average, x_in)
        self.module.train()
        if labels is not None and self.is_last:
            labels = labels.to(self.device)
            self.tally.add_test(out, labels, self._loss.test(out, labels))
        return self._send(out)

    def take_tally(self) -> Tally:
        """Return the sums since the last call and start anew."""
        taken, self.tally = self.tally, Tally()
        return taken

    def _receive(self, message: Message) -> Tensor:
        assert self._filter_in is not None
        parts = tuple(part.to(self.device, non_blocking=True) for part in message)
        x = self._filter_in.decode(parts, self._size_in)  # type: ignore[arg-type]
        return self._place(x.clone() if x is parts[0] else x)

    def _place(self, x: Tensor) -> Tensor:
        return place_input(x, self.plan.config.precision, self.device)

    def _send(self, out: Tensor) -> Message | None:
        return None if self._filter_out is None else self._filter_out.encode(out)

    # -- state ------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """Return the stage's state by names that do not depend on the cuts; see `Learner.state`."""
        state = self.learner.state()
        return state if self.auxiliary is None else state | self.auxiliary.learner.state()

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over this stage's part of what `state` returned; see `Learner.load_state`."""
        self.discard()
        self.learner.load_state(tensors)
        if self.auxiliary is not None:
            self.auxiliary.load_state(tensors)
