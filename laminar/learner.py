"""The weights of one stage and what moves them: optimiser, clipping, look-ahead, averages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from laminar.blocks import BlockSequence
from laminar.optimizer import STATE_FIELDS, Optimizer, clip, ema_decay, lookahead
from laminar.plan import Plan


class Learner:
    """Parameters of a stage's module, updated in place.

    Args:
        plan: The resolved run.
        module: The stage's blocks, where they compute.
    """

    def __init__(self, plan: Plan, module: BlockSequence) -> None:
        self._plan, self._config, self._module = plan, plan.config, module
        self.keys = [key for key, _ in module.named_parameters()]
        self.parameters: list[Tensor] = [p for _, p in module.named_parameters()]
        self.optimizer = Optimizer(self.parameters, self._config.optimizer)
        self.average: list[Tensor] | None = None
        """Averaged parameters, with `ema`."""
        if self._config.ema is not None:
            self.average = [p.detach().clone() for p in self.parameters]
        self._ahead: dict[tuple[int, float], list[Tensor]] = {}

    def update(
        self,
        gradients: Sequence[Tensor],
        batch: int,
        *,
        step_size: float = 1.0,
        momentum: float | None = None,
    ) -> None:
        """Apply the gradient of this batch of the run at the batch's learning rate.

        Args:
            gradients: One for each parameter.
            batch: From 0.
            step_size: Factor of the learning rate.
            momentum: Of SGD, in place of the configured one.
        """
        config = self._config
        if config.optimizer.clip_norm is not None:
            gradients = clip(gradients, config.optimizer.clip_norm)
        self.optimizer.step(gradients, self._plan.learning_rate(batch) * step_size, momentum)
        self.forget_ahead()
        if config.ema is not None and self.average is not None:
            weight = 1.0 - ema_decay(config.ema.decay, batch)
            for average, parameter in zip(self.average, self.parameters, strict=True):
                average.lerp_(parameter.detach(), weight)

    def ahead(self, s: int, lr: float) -> list[Tensor]:
        """Return detached weights for a forward s updates early, shared until the next update."""
        if (s, lr) not in self._ahead:
            self._ahead[s, lr] = [
                self._one_ahead(p, s, lr).requires_grad_() for p in self.parameters
            ]
        return self._ahead[s, lr]

    def forget_ahead(self) -> None:
        """Let weights for early forwards go; who still differentiates at them keeps them."""
        self._ahead.clear()

    def _one_ahead(self, parameter: Tensor, s: int, lr: float) -> Tensor:
        if not self._config.parallel.lookahead:
            return parameter.detach().clone()
        state = self.optimizer.state.get(parameter, {})
        return lookahead(parameter, state, self._config.optimizer, lr=lr, s=s)

    def state(self) -> dict[str, Tensor]:
        """Return parameters, buffers, averages and optimiser state by name, on the CPU, copied.

        Names do not depend on the cuts: `model.NAME`, `ema.NAME` and `optimizer.FIELD.NAME`, with
        the fields of torch's own optimiser.
        """
        tensors = {f"model.{n}": t for n, t in self._module.public_tensors()}
        for name, parameter in self._named(self.parameters):
            for field, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{field}.{name}"] = value
        tensors |= {f"ema.{name}": average for name, average in self._named(self.average or ())}
        return {k: t.detach().to("cpu", copy=True).contiguous() for k, t in tensors.items()}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over this stage's part of what `state` returned, at any cuts.

        Raises:
            KeyError: A parameter, buffer or average of this stage is missing.
            ValueError: A tensor has another shape.
        """
        self.forget_ahead()
        with torch.no_grad():
            for name, target in self._module.public_tensors():
                _copy(tensors[f"model.{name}"], target, name)
            for name, target in self._named(self.average or ()):
                _copy(tensors[f"ema.{name}"], target, name)
        self.optimizer.state.clear()
        for name, parameter in self._named(self.parameters):
            for field in STATE_FIELDS[self._config.optimizer.name]:
                saved = tensors.get(f"optimizer.{field}.{name}")
                if saved is None:
                    continue
                # Torch wants the count of updates on the CPU, the moments where and how the
                # parameter lies.
                value = saved.clone()
                if field != "step":
                    value = torch.empty_like(parameter, requires_grad=False).copy_(saved)
                self.optimizer.state.setdefault(parameter, {})[field] = value

    def _named(self, tensors: Sequence[Tensor]) -> Iterator[tuple[str, Tensor]]:
        for key, tensor in zip(self.keys, tensors, strict=False):
            yield self._module.public_name(key), tensor


def _copy(source: Tensor, target: Tensor, name: str) -> None:
    if source.shape != target.shape:
        raise ValueError(f"{name}: {tuple(source.shape)} != {tuple(target.shape)}")
    target.copy_(source)
