"""Order and augmentation of training images, each a function of (seed, epoch, sample index)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from laminar.data.philox import sample_bits

_ORDER, _AUGMENT, _CUTOUT = 0, 1, 2
"""Streams of the generator; mixup has 3, resized crops 16 to 25."""


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


def cutout(
    images: Tensor, indices: NDArray[np.int64], *, seed: int, epoch: int, side: int
) -> Tensor:
    """Set a square at a random place of each image to zero (DeVries & Taylor 2017).

    arXiv 1708.04552: the middle is uniform over the pixels, so part of the square may lie outside
    the image. Applied to normalised images, where zero is the mean.

    Args:
        images: fp32 [B, C, H, W], normalised; written to.
        indices: int64 [B], sample indices.
        seed: The run's seed.
        epoch: From 0.
        side: Of the square, in pixels.

    Returns:
        `images`.
    """
    bits = torch.from_numpy(sample_bits(seed, epoch, _CUTOUT, indices).astype(np.int64))
    inside = []
    for axis, size in enumerate(images.shape[2:]):
        start = (bits[:, axis, None] * size >> 32) - side // 2
        place = torch.arange(size)
        inside.append((place >= start) & (place < start + side))
    square = inside[0][:, :, None] & inside[1][:, None, :]
    return images.masked_fill_(square[:, None], 0.0)


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
