"""Random resized crops: a random part of an image, of random size and shape, resized to a square.

The distribution is that of torchvision's `RandomResizedCrop` (Szegedy et al. 2015,
arXiv 1409.4842, section 6), drawn by the counter-based generator: ten tries, each a share of the
area and a ratio of the sides; the first that fits is taken, and a central crop if none does.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from laminar.data.philox import UInt32, sample_bits

NUM_TRIES = 10
_FIRST_STREAM = 16
"""Stream of the generator for the first try; each try has its own."""

Range = tuple[float, float]


def crop_bits(seed: int, epoch: int, indices: NDArray[np.int64]) -> UInt32:
    """Return the random bits of all tries, uint32 [N, 10, 4], for samples int64 [N]."""
    tries = range(_FIRST_STREAM, _FIRST_STREAM + NUM_TRIES)
    return np.stack([sample_bits(seed, epoch, stream, indices) for stream in tries], axis=1)


def crop_boxes(
    bits: UInt32,
    heights: NDArray[np.int64],
    widths: NDArray[np.int64],
    *,
    scale: Range,
    ratio: Range,
) -> NDArray[np.int64]:
    """Choose a part of each image.

    Args:
        bits: uint32 [N, 10, 4], from `crop_bits`.
        heights: int64 [N], in pixels.
        widths: int64 [N], in pixels.
        scale: Smallest and largest share of the area.
        ratio: Smallest and largest width over height; uniform in its logarithm.

    Returns:
        int64 [N, 4]: top, left, height, width.
    """
    num = len(bits)
    share, logarithm = bits[:, :, 0] * 2.0**-32, bits[:, :, 1] * 2.0**-32
    area = (heights * widths)[:, None] * (scale[0] + share * (scale[1] - scale[0]))
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = np.exp(low + logarithm * (high - low))
    height, width = np.rint(np.sqrt(area / aspect)), np.rint(np.sqrt(area * aspect))
    fits = (height > 0) & (height <= heights[:, None]) & (width > 0) & (width <= widths[:, None])
    chosen = np.arange(num), fits.argmax(1)
    h, w, offsets = height[chosen].astype(np.int64), width[chosen].astype(np.int64), bits[chosen]
    top = offsets[:, 2].astype(np.int64) * (heights - h + 1) >> 32
    left = offsets[:, 3].astype(np.int64) * (widths - w + 1) >> 32
    boxes = np.stack([top, left, h, w], axis=1)
    if fits.any(1).all():
        return boxes
    return np.where(fits.any(1)[:, None], boxes, _central(heights, widths, ratio))


def _central(
    heights: NDArray[np.int64], widths: NDArray[np.int64], ratio: Range
) -> NDArray[np.int64]:
    """Return the largest central boxes whose ratio is in range."""
    shape = widths / heights
    h = np.where(shape < ratio[0], np.rint(widths / ratio[0]), heights).astype(np.int64)
    w = np.where(shape > ratio[1], np.rint(heights * ratio[1]), widths).astype(np.int64)
    return np.stack([(heights - h) // 2, (widths - w) // 2, h, w], axis=1)


def resize_boxes(images: Tensor, boxes: NDArray[np.int64]) -> Tensor:
    """Resize a part of each image to the size of the whole, bilinearly, never reading outside it.

    A part is never larger than the image, so nothing is shrunk and no smoothing is needed.

    Args:
        images: uint8 [B, C, H, W].
        boxes: int64 [B, 4]: top, left, height, width.

    Returns:
        uint8 [B, C, H, W].
    """
    place = torch.from_numpy(boxes)
    rows = _lerp(images.to(torch.float32), 2, place[:, 0], place[:, 2])
    return _lerp(rows, 3, place[:, 1], place[:, 3]).round_().to(torch.uint8)


def _lerp(images: Tensor, dim: int, start: Tensor, length: Tensor) -> Tensor:
    """Interpolate along a dimension at `size` places spread evenly over [start, start + length).

    Args:
        images: fp32 [B, C, H, W].
        dim: 2 or 3.
        start: int64 [B].
        length: int64 [B].
    """
    size = images.shape[dim]
    middles = torch.arange(size, dtype=torch.float32) + 0.5
    places = (middles * (length[:, None] / size) - 0.5).clamp(min=0)
    low = places.long().minimum(length[:, None] - 1)
    high = (low + 1).minimum(length[:, None] - 1)
    shape = [len(images), 1, 1, 1]
    shape[dim] = size

    def at(index: Tensor) -> Tensor:
        wanted = (start[:, None] + index).reshape(shape)
        sizes = list(images.shape)
        return images.gather(dim, wanted.expand(sizes))

    first = at(low)
    return first + (at(high) - first) * (places - low).reshape(shape)
