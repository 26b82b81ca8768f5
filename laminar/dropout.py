"""Dropout whose masks are a function of (seed, epoch, sample, place in the network)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from laminar.data.philox import sample_bits, ten_rounds
from laminar.errors import ConfigError

_STREAM = 1 << 16
"""First stream of the generator for masks; augmentation uses those below."""

_MAX_PER_BLOCK = 256
"""Dropout layers that one block may have."""

_CACHED_COUNTERS = 1 << 14


@dataclass(frozen=True)
class Samples:
    """Which training samples the rows of a micro-batch are."""

    seed: int
    epoch: int
    indices: Tensor
    """int64 [B], on the CPU."""


class SampleDropout(nn.Module):
    """Zero each value with probability p while training and scale the rest by 1 / (1 - p).

    The mask of a sample is drawn by the counter-based generator of augmentation, so that it
    depends on neither the cuts, the micro-batches, the device nor whether the run was resumed.
    `BlockSequence` says which layer this is and which samples come next. Use it in place of
    `torch.nn.Dropout`, whose masks depend on all of these.

    Call a layer once in a forward: a second time it would give the same mask.

    Args:
        p: Probability of zeroing a value, 0 <= p < 1, rounded to a multiple of 2^-16.

    Raises:
        ConfigError: `p` is none.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ConfigError("the p of SampleDropout must be >= 0 and < 1", got=p, fix="mend it")
        self.p = p
        self.stream: int | None = None
        self.samples: Samples | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return the masked tensor; in evaluation `x` itself.

        Args:
            x: [B, ...], row b of sample `samples.indices[b]`.

        Raises:
            RuntimeError: In training, when nobody said which samples these are.
        """
        threshold = min(65535, round(self.p * 65536))
        if not self.training or threshold == 0:
            return x
        if self.samples is None or self.stream is None:
            raise RuntimeError("SampleDropout needs to know the samples: use it in a BlockSequence")
        keep = keep_mask(self.samples, self.stream, x[0].numel(), threshold, x.device)
        return x * keep.view(x.shape) * (65536 / (65536 - threshold))

    def extra_repr(self) -> str:
        """Show the probability."""
        return f"p={self.p}"


@torch.no_grad()
def keep_mask(
    samples: Samples, stream: int, num: int, threshold: int, device: torch.device
) -> Tensor:
    """Draw 16 bits for each of `num` values of each sample; keep those >= threshold.

    The generator is asked twice: with (seed, epoch, stream, sample) for a key of that sample's
    own, and with that key for eight values at a time.

    Returns:
        bool [B, num] on the device.
    """
    own = sample_bits(samples.seed, samples.epoch, stream, samples.indices.numpy())
    words = torch.from_numpy(own.astype(np.int64)).to(device)[:, :, None]
    num_counters = -(-num // 8)
    counters = torch.arange(num_counters, device=device)
    keep = torch.empty(len(words), num, dtype=torch.bool, device=device)
    # On a CPU, as many samples at a time as stay in its cache.
    rows = max(1, _CACHED_COUNTERS // num_counters) if device.type == "cpu" else len(words)
    for part, out in zip(torch.split(words, rows), torch.split(keep, rows), strict=True):
        start = [counters, part[:, 2], part[:, 3], torch.zeros_like(part[:, 3])]
        drawn = ten_rounds(start, (part[:, 0], part[:, 1]))
        halves = [half for word in drawn for half in (word & 0xFFFF, word >> 16)]
        out.copy_((torch.stack(halves, 1) >= threshold).flatten(1)[:, :num])
    return keep


def number_dropouts(module: nn.Module, block: int) -> list[SampleDropout]:
    """Give the dropout layers of a block streams of their own and return them.

    Args:
        module: The block.
        block: Its index in the whole network.
    """
    found = [layer for layer in module.modules() if isinstance(layer, SampleDropout)]
    for position, layer in enumerate(found):
        layer.stream = _STREAM + block * _MAX_PER_BLOCK + position
    return found
