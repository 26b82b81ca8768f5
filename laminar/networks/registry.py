"""From the configuration of a network to its blocks."""

from __future__ import annotations

from collections.abc import Callable

import torch

from laminar.blocks import Block, BlockSpec, build
from laminar.config import ModelConfig
from laminar.config.architecture import Architecture, Family, parse_name
from laminar.networks import cifar, imagenet, preact

Specify = Callable[[ModelConfig, Architecture, int, int], list[BlockSpec]]

FAMILIES: dict[Family, Specify] = {
    "cifar": cifar.specify,
    "torchvision": imagenet.specify,
    "preact": preact.specify,
    "preact_bottleneck": preact.specify,
    "wide": preact.specify,
}


def network(model: ModelConfig, *, in_channels: int, num_classes: int) -> list[BlockSpec]:
    """Return how to build each block of a network; nothing is built yet.

    Args:
        model: Which network.
        in_channels: Channels of the image.
        num_classes: Length of the logits.
    """
    architecture = parse_name(model.name)
    return FAMILIES[architecture.family](model, architecture, in_channels, num_classes)


def num_blocks(model: ModelConfig) -> int:
    """Return how many blocks the network has, stem and head included."""
    return len(network(model, in_channels=3, num_classes=1))


def build_blocks(
    model: ModelConfig,
    *,
    in_channels: int,
    num_classes: int,
    seed: int,
    first: int = 0,
    last: int | None = None,
    device: torch.device | str = "cpu",
) -> list[Block]:
    """Build blocks `first .. last-1` of the network with freshly initialised weights.

    Args:
        model: Which network.
        in_channels: Channels of the image.
        num_classes: Length of the logits.
        seed: Seed of the weights; each block draws from a generator of its own.
        first: Index of the first block to build.
        last: Index after the last one; None builds up to the head.
        device: `meta` builds shapes only, in no time and memory.
    """
    specs = network(model, in_channels=in_channels, num_classes=num_classes)
    return build(specs, seed=seed, first=first, last=last, device=device)
