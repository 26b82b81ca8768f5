"""One stage of the network: its weights, its late backwards, its optimiser. Plain torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from laminar.data import SampleIndices
from laminar.filters import Filter, Message, adjoint_scale, spatial_size
from laminar.loss import num_correct
from laminar.optimizer import STATE_FIELDS, Optimizer, clip, ema_decay, lookahead
from laminar.plan import Plan
from laminar.schedule import updates_until_own
from laminar.weights import load_weights


@dataclass
class _Visit:
    """A forward that waits for its backward."""

    leaf: Tensor | None
    """U(lambda), the stage's input, where a neighbour sent it."""
    out: Tensor
    """The stage's output, or the loss divided by M at the last stage."""
    weights: list[Tensor]
    """The weights it ran with; the backward differentiates at these."""
    s: int
    """Updates of this stage that this gradient comes late."""


@dataclass
class Tally:
    """Sums over training or test samples, kept by the last stage."""

    loss_sum: float = 0.0
    num_correct: int = 0
    num_samples: int = 0


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
        self.module = plan.build_stage_module(bounds[index], bounds[index + 1])
        if is_new:
            load_weights(self.module, plan)
        self.module.to(self.device).train()
        self.sample_indices = (
            SampleIndices(config, plan.problem.num_train) if self.module.has_dropout else None
        )
        self._keys = [key for key, _ in self.module.named_parameters()]
        self._parameters: list[Tensor] = [p for _, p in self.module.named_parameters()]
        self.optimizer = Optimizer(self._parameters, config.optimizer)
        self._average = [p.detach().clone() for p in self._parameters] if config.ema else None
        self._filter_in = None if self.is_first else self._filter_at(bounds[index])
        self._filter_out = None if self.is_last else self._filter_at(bounds[index + 1])
        self._size_in = tuple(plan.shapes[bounds[index]][-2:])
        self._scale = adjoint_scale(config.batch_size)
        self._loss = plan.loss
        self._visits: dict[int, _Visit] = {}
        self._gradients: list[Tensor] | None = None
        self._ahead: dict[tuple[int, float], list[Tensor]] = {}
        self.tally = Tally()

    def _filter_at(self, boundary: int) -> Filter:
        return self.plan.filters[boundary]

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
    ) -> Message | None:
        """Run one micro-batch forward and keep what its backward will need.

        With s > 0 this stage will make s updates before the one that this micro-batch belongs
        to. It then runs at a detached copy of the weights: where they are heading with
        look-ahead, the present ones without.

        Args:
            micro: Index within the phase; `backward` names it again.
            x: Images [b, C, H, W] at stage 0, else the message of the stage before.
            labels: At the last stage int64 [b], or with mixup fp32 [b, classes]; else None.
            num_micro: Micro-batches per update, M.
            s: Updates between this forward and its own update.
            lr: Learning rate of this stage's next update, for look-ahead.

        Returns:
            What to send to the next stage, detached; None at the last.
        """
        leaf = None
        if isinstance(x, tuple):
            leaf = x_in = self._receive(x).requires_grad_()
        else:
            x_in = x.to(self.device)
        if s == 0:
            weights, out = self._parameters, self.module(x_in)
        else:
            weights = self._weights_ahead(s, lr)
            out = self._call(weights, x_in)
        if labels is not None:
            labels = labels.to(self.device)
            loss = self._loss.train(out, labels)
            self._count(out.detach(), labels, loss.detach())
            out = loss / num_micro
        self._visits[micro] = _Visit(leaf, out, weights, s)
        return self._send(out.detach())

    def backward(self, micro: int, adjoint: Message | None) -> Message | None:
        """Differentiate a forward at its own weights and add to the batch's gradient.

        Args:
            micro: The micro-batch.
            adjoint: What the next stage sent back; None at the last stage.

        Returns:
            What to send back to the stage before; None at stage 0.
        """
        visit = self._visits.pop(micro)
        loss = visit.out
        if adjoint is not None:
            assert self._filter_out is not None
            message = tuple(part.to(self.device, non_blocking=True) for part in adjoint)
            size = spatial_size(visit.out)
            p = self._filter_out.decode_adjoint(message, self._scale, size)
            loss = _InnerProduct.apply(p, visit.out)
        inputs = [*visit.weights, *([] if visit.leaf is None else [visit.leaf])]
        gradients = list(torch.autograd.grad(loss, inputs))
        reply = None
        if visit.leaf is not None:
            assert self._filter_in is not None
            reply = self._filter_in.encode_adjoint(gradients.pop(), self._scale)
        self._accumulate(gradients, self.plan.config.parallel.shrink**visit.s)
        return reply

    def update(self, batch: int) -> None:
        """Apply the accumulated gradient of this batch of the run at the batch's learning rate."""
        assert self._gradients is not None
        config = self.plan.config
        if config.optimizer.clip_norm is not None:
            self._gradients = clip(self._gradients, config.optimizer.clip_norm)
        self.optimizer.step(self._gradients, self.plan.learning_rate(batch))
        self._gradients = None
        self._ahead.clear()
        if config.ema is not None and self._average is not None:
            weight = 1.0 - ema_decay(config.ema.decay, batch)
            for average, parameter in zip(self._average, self._parameters, strict=True):
                average.lerp_(parameter.detach(), weight)

    def updates_until_own(self, micro: int) -> int:
        """Return s of a forward of the parallel phase; see `schedule.updates_until_own`."""
        p = self.plan.config.parallel
        return updates_until_own(
            micro, self.index, self.num_stages, p.micro_batches, p.hop_delay, p.order
        )

    def discard(self) -> None:
        """Drop what is in flight: forwards without backwards, a batch's partial gradient."""
        self._visits.clear()
        self._gradients = None
        self._ahead.clear()

    def _accumulate(self, gradients: list[Tensor], factor: float) -> None:
        if factor != 1.0:
            gradients = [g * factor for g in gradients]
        if self._gradients is None:
            self._gradients = gradients
        else:
            pairs = zip(self._gradients, gradients, strict=True)
            self._gradients = [total + gradient for total, gradient in pairs]

    def _weights_ahead(self, s: int, lr: float) -> list[Tensor]:
        """Return detached weights for a forward s updates early, shared until the next update."""
        if (s, lr) not in self._ahead:
            self._ahead[s, lr] = [
                self._weight_ahead(p, s, lr).requires_grad_() for p in self._parameters
            ]
        return self._ahead[s, lr]

    def _weight_ahead(self, parameter: Tensor, s: int, lr: float) -> Tensor:
        config = self.plan.config
        if not config.parallel.lookahead:
            return parameter.detach().clone()
        state = self.optimizer.state.get(parameter, {})
        return lookahead(parameter, state, config.optimizer, lr=lr, s=s)

    def _call(self, weights: list[Tensor], x: Tensor) -> Tensor:
        """Run the blocks at these weights, which stand for the module's own."""
        named = dict(zip(self._keys, weights, strict=True))
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
        x_in = self._receive(x) if isinstance(x, tuple) else x.to(self.device)
        out = self.module(x_in) if self._average is None else self._call(self._average, x_in)
        self.module.train()
        if labels is not None:
            labels = labels.to(self.device)
            self._count(out, labels, self._loss.test(out, labels))
        return self._send(out)

    def take_tally(self) -> Tally:
        """Return the sums since the last call and start anew."""
        taken, self.tally = self.tally, Tally()
        return taken

    def _count(self, logits: Tensor, labels: Tensor, mean_loss: Tensor) -> None:
        self.tally.loss_sum += float(mean_loss) * len(labels)
        self.tally.num_correct += num_correct(logits, labels)
        self.tally.num_samples += len(labels)

    def _receive(self, message: Message) -> Tensor:
        assert self._filter_in is not None
        parts = tuple(part.to(self.device, non_blocking=True) for part in message)
        x = self._filter_in.decode(parts, self._size_in)  # type: ignore[arg-type]
        return x.clone() if x is parts[0] else x

    def _send(self, out: Tensor) -> Message | None:
        return None if self._filter_out is None else self._filter_out.encode(out)

    # -- state ------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """Return parameters, buffers, averages and optimiser state by name, on the CPU, copied.

        Names do not depend on the cuts: `model.NAME`, `ema.NAME` and `optimizer.FIELD.NAME`, with
        the fields of torch's own optimiser.
        """
        tensors = {f"model.{n}": t for n, t in self.module.public_tensors()}
        for name, parameter in self._named_parameters():
            for field, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{field}.{name}"] = value
        tensors |= {f"ema.{name}": average for name, average in self._named_averages()}
        return {k: t.detach().to("cpu", copy=True).contiguous() for k, t in tensors.items()}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over this stage's part of what `state` returned, at any cuts.

        Raises:
            KeyError: A parameter, buffer or average of this stage is missing.
            ValueError: A tensor has another shape.
        """
        self.discard()
        with torch.no_grad():
            for name, target in self.module.public_tensors():
                _copy(tensors[f"model.{name}"], target, name)
            for name, target in self._named_averages():
                _copy(tensors[f"ema.{name}"], target, name)
        self.optimizer.state.clear()
        for name, parameter in self._named_parameters():
            for field in STATE_FIELDS[self.plan.config.optimizer.name]:
                key = f"optimizer.{field}.{name}"
                if key in tensors:
                    # Torch wants the count of updates on the CPU, wherever the parameter is.
                    device = "cpu" if field == "step" else self.device
                    value = tensors[key].to(device, copy=True)
                    self.optimizer.state.setdefault(parameter, {})[field] = value

    def _named_averages(self) -> Iterable[tuple[str, Tensor]]:
        for key, average in zip(self._keys, self._average or (), strict=False):
            yield self.module.public_name(key), average

    def _named_parameters(self) -> Iterable[tuple[str, Tensor]]:
        for key, parameter in zip(self._keys, self._parameters, strict=True):
            yield self.module.public_name(key), parameter


class _InnerProduct(torch.autograd.Function):
    """The stage's own loss <p, x>, whose gradient at x is the adjoint p; its value is not needed.

    Instead of the `grad_outputs` of torch.autograd.grad, which imports sympy, two seconds a stage.
    """

    @staticmethod
    def forward(ctx: Any, p: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(p)
        return x.new_zeros(())

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[None, Tensor]:
        return None, ctx.saved_tensors[0]


def _copy(source: Tensor, target: Tensor, name: str) -> None:
    if source.shape != target.shape:
        raise ValueError(f"{name}: {tuple(source.shape)} != {tuple(target.shape)}")
    target.copy_(source)
