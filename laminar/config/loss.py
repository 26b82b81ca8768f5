"""The loss."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from laminar.config.base import FrozenModel


class LossConfig(FrozenModel):
    """Cross entropy of the logits, mean over samples."""

    name: Literal["cross_entropy", "custom"] = Field(
        "cross_entropy", description="The loss; custom is one that Python code brings."
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of each training label that is spread evenly over all classes.",
    )
