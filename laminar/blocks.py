"""A network as an ordered list of named blocks, and a contiguous run of them as one module."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from laminar.dropout import Samples, number_dropouts
from laminar.filters import Filter, FilterBoundary


@dataclass(frozen=True)
class Block:
    """One block: a residual block, the stem or the head."""

    name: str
    """Unique in the network, independent of the cuts."""
    module: nn.Module
    prefix: str | None = None
    """What its parameters' names begin with; None is the block's name and a dot."""

    def public_name(self, key: str) -> str:
        """Return a parameter's name in the network from its name in the block."""
        return (f"{self.name}." if self.prefix is None else self.prefix) + key


@dataclass(frozen=True)
class BlockSpec:
    """How to make a block; its place in the network is its place in the list."""

    name: str
    make: Callable[[], nn.Module]
    """Draws its weights from torch's global generator."""
    prefix: str | None = None


def build(
    specs: Sequence[BlockSpec],
    *,
    seed: int,
    first: int = 0,
    last: int | None = None,
    device: torch.device | str = "cpu",
) -> list[Block]:
    """Build blocks `first .. last-1` with freshly initialised weights.

    Each draws from a generator of its own, so that a block's weights depend on neither the cuts
    nor the other blocks; torch's global generator stays as it was.

    Args:
        specs: The network, all of it.
        seed: Seed of the weights.
        first: Index of the first block to build.
        last: Index after the last one; None builds up to the head.
        device: `meta` builds shapes only, in no time and memory.
    """
    blocks = []
    with torch.random.fork_rng(devices=[]), torch.device(device):
        for index, spec in list(enumerate(specs))[first:last]:
            torch.manual_seed(block_seed(seed, index))
            blocks.append(Block(spec.name, spec.make(), spec.prefix))
    return blocks


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
        self.block_names = [block.name for block in blocks]
        self.samples: Samples | None = None
        self._public_names = [block.public_name for block in blocks]
        self._dropouts = [
            layer
            for index, block in enumerate(blocks, first)
            for layer in number_dropouts(block.module, index)
        ]
        self._inner = {
            index: FilterBoundary(filters[first + index], adjoint_scale)
            for index in range(1, len(blocks))
            if first + index in filters
        }

    @property
    def has_dropout(self) -> bool:
        """Whether training needs to know the samples."""
        return bool(self._dropouts)

    def set_samples(self, samples: Samples) -> None:
        """Say which training samples the next forward is of, for dropout."""
        self.samples = samples
        for layer in self._dropouts:
            layer.samples = samples

    def forward(self, x: Tensor) -> Tensor:
        """Map the first block's input to the last block's output."""
        for index, block in enumerate(self.blocks):
            if index in self._inner:
                x = self._inner[index](x)
            x = block(x)
        return x

    def enter(self, phase: str) -> None:
        """Let the filters inside act as in this phase: parallel, correction or evaluation."""
        for boundary in self._inner.values():
            boundary.enter(phase)

    def public_name(self, key: str) -> str:
        """Translate a key of this module (`blocks.3.conv1.weight`) into the network's own."""
        _, index, rest = key.split(".", 2)
        return self._public_names[int(index)](rest)

    def public_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every parameter and buffer by its name in the network, aliasing the live one."""
        for key, tensor in self.state_dict(keep_vars=True).items():
            yield self.public_name(key), tensor


def block_seed(seed: int, index: int) -> int:
    """Return the seed of one block's initial weights, so that they do not depend on the cuts."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0]) >> 1


@torch.no_grad()
def dry_run(block: Block, x: Tensor) -> Tensor:
    """Run one block in evaluation mode, for shapes and counts; where it has no values, on zeros.

    Not on the meta device itself: its kernels import sympy, which takes longer than a forward of
    one image through any of our networks.

    Args:
        block: Built on the CPU or on `meta`, as it stays.
        x: [B, ...] on the CPU.
    """
    module, was_training = block.module, block.module.training
    state = module.state_dict(keep_vars=True).items()
    zeros = {n: torch.zeros(t.shape, dtype=t.dtype) for n, t in state if t.is_meta}
    out: Tensor = functional_call(module.eval(), zeros, (x,))
    module.train(was_training)
    return out


def infer_shapes(
    blocks: Sequence[Block], image_shape: Sequence[int], dtype: torch.dtype = torch.float32
) -> list[tuple[int, ...]]:
    """Return the shape, without batch, of what each block receives; the last entry is the output.

    Args:
        blocks: The network, all of it.
        image_shape: (C, H, W) of one image.
        dtype: Of an image.
    """
    x = torch.zeros(1, *image_shape, dtype=dtype)
    shapes = [tuple(image_shape)]
    for block in blocks:
        x = dry_run(block, x)
        shapes.append(tuple(x.shape[1:]))
    return shapes
