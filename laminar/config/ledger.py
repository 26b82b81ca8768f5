"""The exactness ledger."""

from __future__ import annotations

from pydantic import Field

from laminar.config.base import FrozenModel


class LedgerConfig(FrozenModel):
    """How far the parallel phase's gradients are from exact ones, measured while training."""

    every: int = Field(
        1,
        ge=1,
        description="Epochs between two entries; each costs one exact pass over one batch.",
    )
