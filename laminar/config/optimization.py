"""Optimisers, learning-rate schedules and averaged weights."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from laminar.config.base import FrozenModel
from laminar.errors import ConfigError

_ClipNorm = Annotated[
    float | None,
    Field(
        gt=0,
        description="Largest L2 norm of one stage's gradient of a batch; null does not clip.",
    ),
]
_WarmupEpochs = Annotated[
    float, Field(ge=0, description="Length of the linear warm-up, in epochs.")
]


class SgdConfig(FrozenModel):
    """SGD with momentum, Nesterov's if wanted, as torch.optim.SGD defines it."""

    name: Literal["sgd"] = Field("sgd", description="Optimiser.")
    lr: float = Field(0.23, gt=0, description="Peak learning rate.")
    momentum: float = Field(0.85, ge=0, lt=1, description="Momentum coefficient mu.")
    weight_decay: float = Field(5e-4, ge=0, description="L2 coefficient, on every parameter.")
    nesterov: bool = Field(False, description="Step along g + mu v instead of v.")
    clip_norm: _ClipNorm = None

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> SgdConfig:
        if self.nesterov and self.momentum == 0:
            raise ConfigError(
                "optimizer.nesterov must have optimizer.momentum > 0",
                got=self.momentum,
                fix="raise the momentum, or set optimizer.nesterov to false",
            )
        return self


class AdamWConfig(FrozenModel):
    """Adam with decoupled weight decay (arXiv 1711.05101), as torch.optim.AdamW defines it."""

    name: Literal["adamw"] = Field("adamw", description="Optimiser.")
    lr: float = Field(1e-3, gt=0, description="Peak learning rate.")
    beta1: float = Field(0.9, ge=0, lt=1, description="Decay of the first moment.")
    beta2: float = Field(0.999, gt=0, lt=1, description="Decay of the second moment.")
    eps: float = Field(1e-8, gt=0, description="Added to the root of the second moment.")
    weight_decay: float = Field(
        1e-2, ge=0, description="Each update shrinks every parameter by lr times this."
    )
    clip_norm: _ClipNorm = None


class CosineConfig(FrozenModel):
    """A linear warm-up, then half a cosine to zero (arXiv 1608.03983, without restarts)."""

    name: Literal["cosine"] = Field("cosine", description="Shape over the batches of the run.")
    warmup_epochs: _WarmupEpochs = 1.0


class StepConfig(FrozenModel):
    """A linear warm-up, then a constant rate that drops at milestones."""

    name: Literal["step"] = Field("step", description="Shape over the batches of the run.")
    warmup_epochs: _WarmupEpochs = 1.0
    milestones: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        min_length=1, description="Where the rate drops, in epochs from the start, increasing."
    )
    gamma: float = Field(0.1, gt=0, lt=1, description="Factor of each drop.")

    @model_validator(mode="after")
    def _milestones_increase(self) -> StepConfig:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ConfigError(
                "schedule.milestones must be strictly increasing",
                got=list(self.milestones),
                fix="sort them and remove repeats",
            )
        return self


class LinearConfig(FrozenModel):
    """A linear warm-up, then a straight line down."""

    name: Literal["linear"] = Field("linear", description="Shape over the batches of the run.")
    warmup_epochs: _WarmupEpochs = 1.0
    final_fraction: float = Field(
        0.0, ge=0, le=1, description="Where the line ends, as a fraction of the peak."
    )


class OneCycleConfig(FrozenModel):
    """Up and down once by half cosines (arXiv 1708.07120); the momentum stays as it is."""

    name: Literal["one_cycle"] = Field("one_cycle", description="Shape over the batches.")
    rise: float = Field(0.3, gt=0, lt=1, description="Fraction of the run until the peak.")
    initial_divisor: float = Field(25.0, ge=1, description="The peak over the first rate.")
    final_divisor: float = Field(1e4, ge=1, description="The first rate over the last one.")


class EmaConfig(FrozenModel):
    """An exponential moving average of the weights, which evaluation then uses."""

    decay: float = Field(
        0.999,
        gt=0,
        lt=1,
        description="Of the average, per update; min(decay, (1 + t) / (10 + t)) at update t.",
    )


def named(default: str) -> BeforeValidator:
    """Return a validator that takes a mapping without a name for the one of this name."""

    def name(value: Any) -> Any:
        return {"name": default, **value} if isinstance(value, dict) else value

    return BeforeValidator(name)


DEFAULT_NAMES = {"optimizer": "sgd", "schedule": "cosine", "penalty": "balanced"}
"""What a section without a `name` is."""

OptimizerConfig = Annotated[
    Annotated[SgdConfig | AdamWConfig, Field(discriminator="name")],
    named(DEFAULT_NAMES["optimizer"]),
]
ScheduleConfig = Annotated[
    Annotated[
        CosineConfig | StepConfig | LinearConfig | OneCycleConfig, Field(discriminator="name")
    ],
    named(DEFAULT_NAMES["schedule"]),
]
