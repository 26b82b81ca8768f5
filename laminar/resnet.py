"""CIFAR ResNets of He et al. 2016 (arXiv 1512.03385, section 4.2) as lists of blocks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laminar.blocks import Block, block_seed
from laminar.config import ModelConfig


class Stem(nn.Module):
    """3x3 convolution, batch norm, ReLU: image [B, in, H, W] to [B, width, H, W]."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        return F.relu(self.bn1(self.conv1(x)), inplace=True)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a parameter-free shortcut (option A of He et al.).

    Where the resolution halves, the shortcut takes every second pixel and pads new channels
    with zeros.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.extra_channels = channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(shortcut(x) + F(x))."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        shortcut = x if self.stride == 1 else x[:, :, :: self.stride, :: self.stride]
        if self.extra_channels:
            before = self.extra_channels // 2
            shortcut = F.pad(shortcut, (0, 0, 0, 0, before, self.extra_channels - before))
        return F.relu(out + shortcut, inplace=True)


class Head(nn.Module):
    """Global average pooling and a linear classifier: [B, C, H, W] to logits [B, classes]."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


def num_blocks(model: ModelConfig) -> int:
    """Return how many blocks the network has, stem and head included."""
    return (_depth(model) - 2) // 2 + 2


def build_blocks(
    model: ModelConfig,
    *,
    in_channels: int,
    num_classes: int,
    seed: int,
    first: int = 0,
    last: int | None = None,
) -> list[Block]:
    """Build blocks `first .. last-1` of the network with freshly initialised weights.

    Convolutions are drawn from He's normal distribution (fan out), each block from a generator
    of its own, so that a block's weights depend on neither the cuts nor the other blocks.

    Args:
        model: Which network.
        in_channels: Channels of the image.
        num_classes: Length of the logits.
        seed: Seed of the weights.
        first: Index of the first block to build.
        last: Index after the last one; None builds up to the head.
    """
    last = num_blocks(model) if last is None else last
    return [_build(model, index, in_channels, num_classes, seed) for index in range(first, last)]


def _depth(model: ModelConfig) -> int:
    return int(model.name.removeprefix("resnet"))


def _build(model: ModelConfig, index: int, in_channels: int, num_classes: int, seed: int) -> Block:
    per_group = (_depth(model) - 2) // 6
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(block_seed(seed, index))
        module: nn.Module
        if index == 0:
            name, module = "stem", Stem(in_channels, model.width)
        elif index == num_blocks(model) - 1:
            name, module = "head", Head(4 * model.width, num_classes)
        else:
            group, position = divmod(index - 1, per_group)
            name = f"layer{group + 1}.{position}"
            channels = model.width * 2**group
            halves = position == 0 and group > 0
            module = BasicBlock(channels // 2 if halves else channels, channels, 2 if halves else 1)
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return Block(name, module)
