"""Pre-activation ResNets (He et al. 2016, arXiv 1603.05027) and wide ones (arXiv 1605.07146).

Both are for CIFAR: three groups, the first at full resolution. What a block puts out is the bare
sum, without a ReLU. Where channels change, norm and ReLU come before the shortcut splits off, and
the shortcut is a 1x1 convolution, as in the authors' code for both papers.

- `preact_resnetD`: D = 6n+2, two 3x3 convolutions a block. Deviation: the paper's ResNet-110 pads
  its shortcuts with zeros instead; the convolutions here add 0.1% to its parameters.
- `preact_resnet164`, `preact_resnet1001`: D = 9n+2, bottlenecks, stride on the first convolution.
- `wrnD_K`: D = 6n+4, two 3x3 convolutions a block, K times the channels, dropout between them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from laminar.blocks import BlockSpec
from laminar.config import ModelConfig
from laminar.config.architecture import Architecture
from laminar.dropout import SampleDropout
from laminar.networks.layers import Norm, draw_weights, norm_layer


class Stem(nn.Module):
    """3x3 convolution: image [B, in, H, W] to [B, width, H, W]."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        draw_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        out: Tensor = self.conv1(x)
        return out


class BasicBlock(nn.Module):
    """Norm, ReLU, 3x3, norm, ReLU, dropout, 3x3, and the shortcut."""

    def __init__(
        self, in_channels: int, channels: int, stride: int, norm: Norm, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.bn1 = norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = norm(channels)
        self.dropout = SampleDropout(dropout) if dropout else None
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.shortcut = _projection(in_channels, channels, stride)
        draw_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return shortcut + F(x)."""
        active = F.relu(self.bn1(x), inplace=True)
        out = F.relu(self.bn2(self.conv1(active)), inplace=True)
        if self.dropout is not None:
            out = self.dropout(out)
        sum_: Tensor = self.conv2(out) + (x if self.shortcut is None else self.shortcut(active))
        return sum_


class Bottleneck(nn.Module):
    """Norm, ReLU, 1x1 to a quarter of the channels, norm, ReLU, 3x3, norm, ReLU, 1x1 back."""

    def __init__(self, in_channels: int, channels: int, stride: int, norm: Norm) -> None:
        super().__init__()
        inner = channels // 4
        self.bn1 = norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, inner, 1, stride=stride, bias=False)
        self.bn2 = norm(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1, bias=False)
        self.bn3 = norm(inner)
        self.conv3 = nn.Conv2d(inner, channels, 1, bias=False)
        self.shortcut = _projection(in_channels, channels, stride)
        draw_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return shortcut + F(x)."""
        active = F.relu(self.bn1(x), inplace=True)
        out = F.relu(self.bn2(self.conv1(active)), inplace=True)
        out = F.relu(self.bn3(self.conv2(out)), inplace=True)
        sum_: Tensor = self.conv3(out) + (x if self.shortcut is None else self.shortcut(active))
        return sum_


def _projection(in_channels: int, channels: int, stride: int) -> nn.Module | None:
    if in_channels == channels:
        return None
    return nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)


class Head(nn.Module):
    """Norm, ReLU, global average pooling and a linear classifier, to logits [B, classes]."""

    def __init__(self, channels: int, num_classes: int, norm: Norm) -> None:
        super().__init__()
        self.bn = norm(channels)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        out: Tensor = self.fc(F.relu(self.bn(x), inplace=True).mean((2, 3)))
        return out


def specify(
    model: ModelConfig, architecture: Architecture, in_channels: int, num_classes: int
) -> list[BlockSpec]:
    """Return stem, three groups of n blocks, and head."""
    width, norm = model.width or 16, norm_layer(model.norm)
    depth, widen = architecture.depth, architecture.widen
    make: Callable[..., nn.Module]
    if architecture.family == "preact_bottleneck":
        per_group, widen, make = (depth - 2) // 9, 4, Bottleneck
    elif architecture.family == "wide":
        per_group, make = (depth - 4) // 6, partial(BasicBlock, dropout=model.dropout)
    else:
        per_group, make = (depth - 2) // 6, BasicBlock
    specs = [BlockSpec("stem", partial(Stem, in_channels, width), prefix="")]
    before = width
    for group in range(3):
        for position in range(per_group):
            channels, stride = width * widen * 2**group, 2 if position == 0 and group > 0 else 1
            block = partial(make, before, channels, stride, norm)
            specs.append(BlockSpec(f"layer{group + 1}.{position}", block))
            before = channels
    return [*specs, BlockSpec("head", partial(Head, before, num_classes, norm), prefix="")]
