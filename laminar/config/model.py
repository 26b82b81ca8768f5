"""The network."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from laminar.config.architecture import EXAMPLES, parse_name
from laminar.config.base import FrozenModel
from laminar.errors import ConfigError


def _known(name: str) -> str:
    parse_name(name)
    return name


class ModelConfig(FrozenModel):
    """The network, a list of residual blocks."""

    name: Annotated[str, AfterValidator(_known)] = Field(
        "resnet20",
        description="resnetD (CIFAR, D = 6n+2), torchvision's resnet18 to resnext101_64x4d, "
        "preact_resnetD, wrnD_K (depth, widening), or custom (made by Python code); see "
        "docs/networks.md.",
        examples=list(EXAMPLES),
    )
    width: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Channels of the first group, before widening; null is what was published, "
        "64 for torchvision's and 16 for the others.",
    )
    norm: Literal["batch", "group"] = Field(
        "batch",
        description="Normalisation; group takes 16 channels each and does not look at the batch.",
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="Probability of dropping a value inside a block of a wrn."
    )

    weights: str | None = Field(
        None,
        description="File to start from, .safetensors or .pth, under the network's own names; a "
        "classifier of another number of classes starts fresh.",
    )

    @model_validator(mode="after")
    def _dropout_is_of_wide_networks(self) -> ModelConfig:
        if self.dropout and parse_name(self.name).family != "wide":
            raise ConfigError(
                "model.dropout must be 0 except for a wrn",
                got=f"{self.dropout:g} for {self.name}",
                fix="choose a wide network, say wrn16_2, or leave model.dropout out",
            )
        return self
