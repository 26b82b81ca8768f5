"""torchvision's ResNets, with the names and the function of torchvision's: weights load both ways.

Written out again because importing torchvision's own blocks takes seconds in every process: it
imports torch's compiler. The tests compare the two, bit for bit.

He et al. 2016 (arXiv 1512.03385), with the stride of a bottleneck on its 3x3 convolution as
torchvision has it; wide ones of Zagoruyko & Komodakis (1605.07146), ResNeXt of Xie et al.
(1611.05431).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laminar.blocks import BlockSpec
from laminar.config import ModelConfig
from laminar.config.architecture import Architecture
from laminar.networks.layers import Norm, draw_weights, norm_layer


@dataclass(frozen=True)
class _Layout:
    """What torchvision gives to its class `ResNet`."""

    layers: tuple[int, int, int, int]
    is_bottleneck: bool = True
    groups: int = 1
    width_per_group: int = 64


LAYOUTS = {
    "resnet18": _Layout((2, 2, 2, 2), is_bottleneck=False),
    "resnet34": _Layout((3, 4, 6, 3), is_bottleneck=False),
    "resnet50": _Layout((3, 4, 6, 3)),
    "resnet101": _Layout((3, 4, 23, 3)),
    "resnet152": _Layout((3, 8, 36, 3)),
    "wide_resnet50_2": _Layout((3, 4, 6, 3), width_per_group=128),
    "wide_resnet101_2": _Layout((3, 4, 23, 3), width_per_group=128),
    "resnext50_32x4d": _Layout((3, 4, 6, 3), groups=32, width_per_group=4),
    "resnext101_32x8d": _Layout((3, 4, 23, 3), groups=32, width_per_group=8),
    "resnext101_64x4d": _Layout((3, 4, 23, 3), groups=64, width_per_group=4),
}


class Stem(nn.Module):
    """7x7 convolution, norm, ReLU, 3x3 maximum: [B, in, H, W] to [B, width, H/4, W/4]."""

    def __init__(self, in_channels: int, width: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm(width)
        draw_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.max_pool2d(out, 3, stride=2, padding=1)


class Head(nn.Module):
    """Global average pooling and a linear classifier: [B, C, H, W] to logits [B, classes]."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        out: Tensor = self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
        return out


def _downsample(in_channels: int, channels: int, stride: int, norm: Norm) -> nn.Module | None:
    """Return the shortcut, or None where it is the identity (option B of He et al.)."""
    if stride == 1 and in_channels == channels:
        return None
    convolution = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)
    return nn.Sequential(convolution, norm(channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the shortcut: [B, in, H, W] to [B, planes, H/stride, W/stride]."""

    expansion = 1

    def __init__(
        self, layout: _Layout, in_channels: int, planes: int, stride: int, norm: Norm
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = norm(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = norm(planes)
        self.downsample = _downsample(in_channels, planes, stride, norm)
        draw_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(shortcut + F(x))."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return F.relu(out, inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 and the shortcut: [B, in, H, W] to [B, 4 planes, H/stride, W/stride]."""

    expansion = 4

    def __init__(
        self, layout: _Layout, in_channels: int, planes: int, stride: int, norm: Norm
    ) -> None:
        super().__init__()
        groups, channels = layout.groups, planes * self.expansion
        inner = max(1, planes * layout.width_per_group // 64) * groups
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.bn1 = norm(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, groups=groups, bias=False)
        self.bn2 = norm(inner)
        self.conv3 = nn.Conv2d(inner, channels, 1, bias=False)
        self.bn3 = norm(channels)
        self.downsample = _downsample(in_channels, channels, stride, norm)
        draw_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(shortcut + F(x))."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return F.relu(out, inplace=True)


def specify(
    model: ModelConfig, architecture: Architecture, in_channels: int, num_classes: int
) -> list[BlockSpec]:
    """Return stem, the residual blocks of four groups, and head."""
    layout = LAYOUTS[model.name]
    width, norm = model.width or 64, norm_layer(model.norm)
    kind = Bottleneck if layout.is_bottleneck else BasicBlock
    specs = [BlockSpec("stem", partial(Stem, in_channels, width, norm), prefix="")]
    before = width
    for group, count in enumerate(layout.layers):
        planes = width * 2**group
        for position in range(count):
            stride = 2 if position == 0 and group > 0 else 1
            make = partial(kind, layout, before, planes, stride, norm)
            specs.append(BlockSpec(f"layer{group + 1}.{position}", make))
            before = planes * kind.expansion
    return [*specs, BlockSpec("head", partial(Head, before, num_classes), prefix="")]
