"""The network."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from laminar.config.base import FrozenModel


class ModelConfig(FrozenModel):
    """The network: a CIFAR ResNet of He et al. 2016, section 4.2."""

    name: Literal["resnet8", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110"] = Field(
        "resnet20", description="CIFAR ResNet by depth (6n+2 layers)."
    )
    width: int = Field(16, ge=1, le=1024, description="Channels of the stem and first group.")
