"""How the network is cut where the configuration does not list the cuts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from laminar.config.base import FrozenModel


class PartitionConfig(FrozenModel):
    """How cuts are chosen, and what a stage may need."""

    costs: Literal["counted", "measured"] = Field(
        "counted",
        description="What cuts share equally: counted multiply-adds, the same on every machine, "
        "or measured seconds of the slower of computing and exchanging.",
    )
    bandwidth_mb_s: float = Field(
        1000.0,
        gt=0,
        description="10^6 bytes per second between two neighbours in each direction, for measured "
        "costs.",
    )
    latency_ms: float = Field(
        1.0,
        ge=0,
        description="Milliseconds that a small message takes between two neighbours, one way, for "
        "`parallel.lateness: auto` with measured costs.",
    )
    memory_limit_mb: float | None = Field(
        None,
        gt=0,
        description="Largest estimated memory of a stage's tensors, in 10^6 bytes; null is no "
        "limit.",
    )
