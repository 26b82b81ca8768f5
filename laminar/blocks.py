"""A network as an ordered list of named blocks, and a contiguous run of them as one module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from laminar.filters import Filter, FilterBoundary


@dataclass(frozen=True)
class Block:
    """One block: a residual block, the stem or the head."""

    name: str
    """Prefix of its parameters' names; unique in the network, independent of the cuts."""
    module: nn.Module


class BlockSequence(nn.Module):
    """Blocks `first .. first+len-1` of a network, with the filters of the boundaries inside.

    A filter belongs to a boundary of the network (numbered by the block that receives), so a
    boundary that is not a cut keeps its filter here: moving a cut changes no function.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        *,
        first: int,
        filters: Mapping[int, Filter],
        adjoint_scale: float,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(block.module for block in blocks)
        self._block_names = [block.name for block in blocks]
        self._inner = {
            index: FilterBoundary(filters[first + index], adjoint_scale)
            for index in range(1, len(blocks))
            if first + index in filters
        }

    def forward(self, x: Tensor) -> Tensor:
        """Map the first block's input to the last block's output."""
        for index, block in enumerate(self.blocks):
            if index in self._inner:
                x = self._inner[index](x)
            x = block(x)
        return x

    def public_name(self, key: str) -> str:
        """Translate a key of this module (`blocks.3.conv1.weight`) into the network's own."""
        _, index, rest = key.split(".", 2)
        return f"{self._block_names[int(index)]}.{rest}"

    def public_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every parameter and buffer by its name in the network, aliasing the live one."""
        for key, tensor in self.state_dict(keep_vars=True).items():
            yield self.public_name(key), tensor


def block_seed(seed: int, index: int) -> int:
    """Return the seed of one block's initial weights, so that they do not depend on the cuts."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0]) >> 1


def infer_shapes(blocks: Sequence[Block], image_shape: Sequence[int]) -> list[tuple[int, ...]]:
    """Return the shape, without batch, of what each block receives; the last entry is the output.

    Args:
        blocks: The network, all of it.
        image_shape: (C, H, W) of one image.
    """
    x = torch.zeros(1, *image_shape)
    shapes = [tuple(image_shape)]
    for block in blocks:
        was_training = block.module.training
        with torch.no_grad():
            x = block.module.eval()(x)
        block.module.train(was_training)
        shapes.append(tuple(x.shape[1:]))
    return shapes
