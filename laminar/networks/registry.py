"""From the configuration of a network to its blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from laminar.blocks import Block, BlockSpec, build
from laminar.config import Config, ModelConfig
from laminar.config.architecture import Architecture, Family, parse_name
from laminar.errors import ConfigError
from laminar.networks import cifar, imagenet, preact

if TYPE_CHECKING:
    from laminar.factories import Factories
    from laminar.problem import Problem

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


def block_specs(config: Config, problem: Problem, factories: Factories) -> list[BlockSpec]:
    """Return how to build each block of a run's network, a user's own or one of these.

    Raises:
        ConfigError: The samples are no images, and the network is one of these.
        FactoryError: The user's factory fails.
    """
    if factories.blocks is not None:
        return factories.specs(problem)
    if len(problem.image_shape) != 3 or problem.dtype != "float32":
        raise ConfigError(
            f"the network {config.model.name} must be given images, float32 [C, H, W]",
            got=f"samples of shape {list(problem.image_shape)}, {problem.dtype}",
            fix="convert them in datasets, or bring blocks of your own",
        )
    return network(
        config.model, in_channels=problem.image_shape[0], num_classes=problem.num_classes
    )


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
