"""The stored feed of the parallel phase: windows, sweeps, and how strongly constraints bind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from laminar.config.base import FrozenModel
from laminar.config.optimization import DEFAULT_NAMES, named


class BalancedPenalty(FrozenModel):
    """rho of each cut anew in each window, from multiplier and violation (Boyd et al. 2011)."""

    name: Literal["balanced"] = Field("balanced", description="How rho is found.")
    ratio: float | None = Field(
        None,
        gt=0,
        le=100,
        description="rho |x - lambda| over |kappa| where the first batch is visited first; null is "
        "1, with method penalty 3.",
    )


class FixedPenalty(FrozenModel):
    """One rho for all cuts and the whole run."""

    name: Literal["fixed"] = Field(description="How rho is found.")
    rho: float = Field(gt=0, description="Penalty coefficient of a sample's own loss.")


class ScheduledPenalty(FrozenModel):
    """rho from `first` to `last`, geometrically over the batches of the run."""

    name: Literal["scheduled"] = Field(description="How rho is found.")
    first: float = Field(gt=0, description="At the start, of a sample's own loss.")
    last: float = Field(gt=0, description="At the end.")


PenaltyConfig = Annotated[
    Annotated[BalancedPenalty | FixedPenalty | ScheduledPenalty, Field(discriminator="name")],
    named(DEFAULT_NAMES["penalty"]),
]


class StoredConfig(FrozenModel):
    """The parallel phase with auxiliary variables kept per sample (arXiv 2009.01462v2)."""

    window: int | None = Field(
        None,
        ge=1,
        description="Batches of a window; null is all of a segment that lie in one epoch.",
    )
    sweeps: int = Field(1, ge=1, le=100, description="Visits of each batch after its exact pass.")
    multiplier_step: float = Field(
        1.0, gt=0, le=2, description="kappa moves by this times rho (x - lambda)."
    )
    step_size: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Visits take the learning rate of their batch times this; null is 1, with "
        "method penalty 0.3.",
    )
    momentum: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Of SGD in visits; null is the optimizer's, with method penalty 0.",
    )
    inner_steps: int = Field(1, ge=1, le=100, description="Updates per visit.")
    memory_limit_mb: int = Field(
        1000,
        ge=0,
        description="What a stage may keep in memory, in 10^6 bytes; more goes into files.",
    )
    scratch_dir: str | None = Field(
        None, description="Where those files are; null is the system's temporary folder."
    )


@dataclass(frozen=True)
class VisitDefaults:
    """What a null in the settings of the stored feed stands for."""

    ratio: float
    step_size: float
    momentum: float | None
    """Of SGD; None is the optimizer's."""


PENALTY_DEFAULTS = VisitDefaults(ratio=3.0, step_size=0.3, momentum=0.0)
"""Its visits start from x - p/rho, off by what x has drifted: at a whole step, or where the pull is
carried on by momentum, runs died (docs/log.md)."""
OTHER_DEFAULTS = VisitDefaults(ratio=1.0, step_size=1.0, momentum=None)
