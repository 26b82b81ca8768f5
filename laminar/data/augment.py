"""Order and augmentation of training images, each a function of (seed, epoch, sample index)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from laminar.data.philox import sample_bits

_ORDER, _AUGMENT = 0, 1
"""Streams of the generator."""


def epoch_order(seed: int, epoch: int, num_samples: int) -> NDArray[np.int64]:
    """Return the permutation in which an epoch visits the samples: a sort by random keys."""
    bits = sample_bits(seed, epoch, _ORDER, np.arange(num_samples, dtype=np.int64))
    keys = bits[:, 0].astype(np.uint64) << np.uint64(32) | bits[:, 1]
    return np.argsort(keys, kind="stable").astype(np.int64)


def augment(
    images: Tensor,
    indices: NDArray[np.int64],
    *,
    seed: int,
    epoch: int,
    crop_padding: int,
    flip: bool,
) -> Tensor:
    """Crop images at a random place of their zero-padded selves and mirror half of them.

    Args:
        images: [B, C, H, W], any dtype; row b is sample `indices[b]`.
        indices: int64 [B].
        seed: The run's seed.
        epoch: From 0.
        crop_padding: Pixels of padding on each side; 0 does not crop.
        flip: Whether to mirror.

    Returns:
        Same shape and dtype; aliases `images` where nothing is to be done.
    """
    if not crop_padding and not flip:
        return images
    bits = torch.from_numpy(sample_bits(seed, epoch, _AUGMENT, indices).astype(np.int64))
    if crop_padding:
        height, width = images.shape[2:]
        offsets = bits[:, :2] * (2 * crop_padding + 1) >> 32
        padded = F.pad(images, (crop_padding,) * 4)
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)
        images = windows[torch.arange(len(images)), :, offsets[:, 0], offsets[:, 1]]
    if flip:
        mirrored = bits[:, 2] >= 1 << 31
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    return images


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return (images - mean) / std in fp32.

    Args:
        images: uint8 [B, C, H, W].
        mean: fp32 [C], in 0..255.
        std: fp32 [C], in 0..255, > 0.
    """
    scale = (1.0 / std)[:, None, None]
    return images.to(torch.float32).mul_(scale).sub_(mean[:, None, None] * scale)


def channel_stats(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation per channel, fp32 [C], in 0..255, std at least 1.

    Args:
        images: uint8 [N, C, H, W].
    """
    counts = torch.stack(
        [
            torch.bincount(images[:, c].reshape(-1).int(), minlength=256)
            for c in range(images.shape[1])
        ]
    ).double()
    values = torch.arange(256, dtype=torch.float64)
    total = counts.sum(1)
    mean = counts @ values / total
    variance = counts @ values.square() / total - mean.square()
    return mean.float(), variance.clamp(min=1.0).sqrt().float()
