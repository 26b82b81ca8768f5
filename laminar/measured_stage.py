"""A stage that also says where its seconds go and how far its cut is from the constraint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from laminar.applied_batch import AppliedBatch
from laminar.cut_probe import CutProbe
from laminar.dropout import Samples
from laminar.filters import Message, spatial_size
from laminar.plan import Plan
from laminar.precision import autocast
from laminar.stage import Stage
from laminar.timeline import Clock


@dataclass
class _Probing:
    """A probe under way, between the forward and the update of its micro-batch."""

    u: Tensor
    """Input of the stage."""
    samples: Samples | None
    """Which samples these are, where the stage has dropout."""
    received: Tensor
    """U lambda: what the next stage makes of the message."""
    y_norm: float
    filter_error: float
    adjoint_norm: float | None = None
    """None until the adjoint has come."""


class MeasuredStage(Stage):
    """The same computation, bit for bit, with a clock and, on demand, a probe.

    Args:
        plan: The resolved run.
        index: k, 0 <= k < K.
        device: Where it computes.
        is_new: See `Stage`.
    """

    def __init__(
        self,
        plan: Plan,
        index: int,
        device: torch.device | str = "cpu",
        *,
        is_new: bool = True,
    ) -> None:
        super().__init__(plan, index, device, is_new=is_new)
        is_gpu = self.device.type == "cuda"
        self.clock = Clock(torch.cuda.current_stream(self.device).synchronize if is_gpu else None)
        self.cut: CutProbe | None = None
        """The cut behind this stage; None before the probed batch is done, and without a probe."""
        self._probed_micro: int | None = None
        self._probing: _Probing | None = None
        self._kept_batch: int | None = None
        self._applied: AppliedBatch | None = None

    def begin_phase(self, *, probed_micro: int | None, kept_batch: int | None = None) -> None:
        """Reset the clock and say what to measure.

        Args:
            probed_micro: Micro-batch of the phase to probe the cut on; None does not.
            kept_batch: Batch of the run to keep weights and gradient of, for the ledger, until
                `take_applied` or the next phase that keeps one.
        """
        self.clock.start()
        self._kept_batch = kept_batch
        if kept_batch is not None:
            self._applied = None
        self._probed_micro = None if self.is_last else probed_micro
        self._probing = self.cut = None

    def forward(self, micro: int, x: Tensor | Message, *args: Any, **kwargs: Any) -> Message | None:
        """See `Stage.forward`."""
        with self.clock.span("forward", micro):
            message = super().forward(micro, x, *args, **kwargs)
            is_visit = kwargs.get("is_visit", False)
            if micro == self._probed_micro and message is not None and not is_visit:
                self._start_probe(micro, x, message)
        return message

    def note_lambda(self, micro: int, phase_micro: int, lam: Tensor, adjoint: Message) -> None:
        """See `Stage.note_lambda`; measure the cut: in a visit lambda is not what is sent."""
        if phase_micro != self._probed_micro or self._filter_out is None:
            return
        y = self._visits[micro].out.detach()
        x, received = self._through_filter(y), self._through_filter(y, (lam,))
        p = self._filter_out.decode_adjoint(adjoint, self._scale, spatial_size(y))
        norm = float(y.norm())
        self.cut = CutProbe(
            violation=_ratio(float((x - received).norm()), float(x.norm())),
            filter_error=_ratio(float((y - x).norm()), norm),
            adjoint_ratio=_ratio(float(p.norm()) * self.plan.config.batch_size, norm),
        )
        self._probed_micro = None

    def backward(self, micro: int, adjoint: Message | None) -> Message | None:
        """See `Stage.backward`."""
        with self.clock.span("backward", micro):
            if micro == self._probed_micro and self._probing and self._filter_out and adjoint:
                message = tuple(part.to(self.device) for part in adjoint)
                size = spatial_size(self._probing.received)
                p = self._filter_out.decode_adjoint(message, self._scale, size)
                self._probing.adjoint_norm = float(p.norm()) * self.plan.config.batch_size
            return super().backward(micro, adjoint)

    def backward_locally(self, micro: int, *args: Any, **kwargs: Any) -> None:
        """See `Stage.backward_locally`."""
        with self.clock.span("backward", micro):
            super().backward_locally(micro, *args, **kwargs)

    def update(self, batch: int, *, step_size: float = 1.0, momentum: float | None = None) -> None:
        """See `Stage.update`."""
        with self.clock.span("update"):
            self._finish_probe()
            if batch == self._kept_batch and self._gradients is not None:
                self._applied = AppliedBatch(
                    weights=[p.detach().clone() for p in self.learner.parameters],
                    # An optimiser may write to what it is given.
                    gradient=[g.clone() for g in self._gradients],
                )
            super().update(batch, step_size=step_size, momentum=momentum)

    @property
    def has_applied(self) -> bool:
        """Whether there is something to take."""
        return self._applied is not None

    def take_applied(self) -> AppliedBatch:
        """Return what was kept for the ledger, which must have been asked for, and let it go."""
        assert self._applied is not None
        taken, self._applied = self._applied, None
        return taken

    def evaluate(self, *args: Any, **kwargs: Any) -> Message | None:
        """See `Stage.evaluate`."""
        with self.clock.span("forward"):
            return super().evaluate(*args, **kwargs)

    def _start_probe(self, micro: int, x: Tensor | Message, message: Message) -> None:
        visit = self._visits[micro]
        u = self._place(x) if isinstance(x, Tensor) else visit.leaf
        assert u is not None
        y = visit.out.detach()
        received = self._through_filter(y, message)
        norm = float(y.norm())
        error = _ratio(float((y - received).norm()), norm)
        self._probing = _Probing(u.detach(), self.module.samples, received, norm, error)

    @torch.no_grad()
    def _finish_probe(self) -> None:
        """Compare what was sent with what would be sent now, just before the update."""
        probing = self._probing
        if probing is None or probing.adjoint_norm is None:
            return
        if probing.samples is not None:
            self.module.set_samples(probing.samples)
        # Buffers are copies: a forward too many must not move batch norm's running statistics.
        state = dict(zip(self.learner.keys, self.learner.parameters, strict=True))
        state |= {name: buffer.clone() for name, buffer in self.module.named_buffers()}
        with autocast(self.plan.config.precision, self.device):
            y = functional_call(self.module, state, (probing.u,))
        x = self._through_filter(y.float())
        self.cut = CutProbe(
            violation=_ratio(float((x - probing.received).norm()), float(x.norm())),
            filter_error=probing.filter_error,
            adjoint_ratio=_ratio(probing.adjoint_norm, probing.y_norm),
        )
        self._probing = None

    def _through_filter(self, y: Tensor, message: Message | None = None) -> Tensor:
        """Return U C y."""
        assert self._filter_out is not None
        message = self._filter_out.encode(y) if message is None else message
        return self._filter_out.decode(message, spatial_size(y))


def _ratio(part: float, whole: float) -> float:
    """Return part / whole, 0 of nothing: a network may die, and measuring must not end its run."""
    return part / whole if whole else 0.0
