"""CIFAR ResNets of He et al. 2016 (arXiv 1512.03385, section 4.2): resnet20 to resnet1202."""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from laminar.blocks import BlockSpec
from laminar.config import ModelConfig
from laminar.config.architecture import Architecture
from laminar.networks.layers import Norm, draw_weights, norm_layer


class Stem(nn.Module):
    """3x3 convolution, norm, ReLU: image [B, in, H, W] to [B, width, H, W]."""

    def __init__(self, in_channels: int, width: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = norm(width)
        draw_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        return F.relu(self.bn1(self.conv1(x)), inplace=True)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a parameter-free shortcut (option A of He et al.).

    Where the resolution halves, the shortcut takes every second pixel and pads new channels
    with zeros.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = norm(channels)
        self.stride = stride
        self.extra_channels = channels - in_channels
        draw_weights(self)

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


def specify(
    model: ModelConfig, architecture: Architecture, in_channels: int, num_classes: int
) -> list[BlockSpec]:
    """Return stem, three groups of (depth - 2) / 6 blocks, and head."""
    width, norm = model.width or 16, norm_layer(model.norm)
    specs = [BlockSpec("stem", partial(Stem, in_channels, width, norm))]
    before = width
    for group in range(3):
        for position in range((architecture.depth - 2) // 6):
            channels, stride = width * 2**group, 2 if position == 0 and group > 0 else 1
            make = partial(BasicBlock, before, channels, stride, norm)
            specs.append(BlockSpec(f"layer{group + 1}.{position}", make))
            before = channels
    return [*specs, BlockSpec("head", partial(Head, before, num_classes))]
