"""What all families of networks share: normalisation and initial weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from torch import nn

Norm = Callable[[int], nn.Module]
"""From the number of channels to a layer that normalises [B, C, H, W]."""

_GROUP_SIZE = 16
"""Channels normalised together: the best of Wu & He 2018 (arXiv 1803.08494), table 3, and unlike a
fixed number of groups it suits the 16 channels of a CIFAR network."""


def norm_layer(kind: Literal["batch", "group"]) -> Norm:
    """Return what builds the normalisation of a number of channels.

    Group norm looks at one sample at a time, so that neither micro-batches nor the mode change
    what it computes. Channels that 16 does not divide form groups of the greatest common divisor.
    """
    if kind == "batch":
        return nn.BatchNorm2d
    return lambda channels: nn.GroupNorm(channels // math.gcd(channels, _GROUP_SIZE), channels)


def draw_weights(module: nn.Module) -> None:
    """Draw all convolutions from He's normal distribution (fan out), in place.

    Linear layers keep torch's own initial weights.
    """
    for layer in module.modules():
        # Without values there is nothing to draw, and torch would import sympy to do it.
        if isinstance(layer, nn.Conv2d) and not layer.weight.is_meta:
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
