"""Images of a split by index: from memory, or decoded by threads when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from laminar.config import ImageFolderConfig, ResizedCropConfig
from laminar.data.decode import Box, View, decode_image
from laminar.data.evenly import evenly
from laminar.data.image_folder import Listing, num_workers, view_of
from laminar.data.read_ahead import Pending
from laminar.data.resized_crop import crop_bits, crop_boxes, resize_boxes

NUM_SAMPLED = 1024
"""Images, evenly spread, whose channels are measured where a split is not decoded as a whole."""

_TASKS_PER_WORKER = 4


class Reader(Protocol):
    """Images of one split."""

    def __len__(self) -> int: ...

    def start(self, indices: NDArray[np.int64], epoch: int | None) -> Pending[Tensor]:
        """Begin to read a batch, uint8 [B, C, H, W].

        Args:
            indices: int64 [B].
            epoch: With this epoch's random resized crops, if there are any; None without.
        """

    def sample(self) -> Tensor:
        """Return the images whose channels are measured, uint8 [n, C, H, W]."""


@dataclass(frozen=True)
class _Ready:
    """What needed no waiting for."""

    images: Tensor

    def result(self) -> Tensor:
        return self.images

    def cancel(self) -> None: ...


class MemoryReader:
    """Images that are in memory, or mapped from a file.

    Args:
        images: uint8 [N, C, H, W].
        seed: The run's seed.
        resized_crop: What to cut out in training.
    """

    def __init__(
        self, images: Tensor, seed: int = 0, resized_crop: ResizedCropConfig | None = None
    ) -> None:
        self._images, self._seed, self._crop = images, seed, resized_crop

    def __len__(self) -> int:
        return len(self._images)

    def start(self, indices: NDArray[np.int64], epoch: int | None) -> Pending[Tensor]:
        """Return a batch."""
        images = self._images[torch.from_numpy(indices)]
        if self._crop is not None and epoch is not None:
            heights, widths = (np.full(len(indices), side) for side in images.shape[2:])
            bits = crop_bits(self._seed, epoch, indices)
            boxes = crop_boxes(
                bits, heights, widths, scale=self._crop.scale, ratio=self._crop.ratio
            )
            images = resize_boxes(images, boxes)
        return _Ready(images)

    def sample(self) -> Tensor:
        """Return all images."""
        return self._images


@dataclass(frozen=True)
class _Decoding:
    """A batch that threads are writing."""

    images: NDArray[np.uint8]
    tasks: Sequence[Future[None]]

    def result(self) -> Tensor:
        try:
            for task in self.tasks:
                task.result()
        except BaseException:
            self.cancel()
            raise
        return torch.from_numpy(self.images)

    def cancel(self) -> None:
        for task in self.tasks:
            task.cancel()


class StreamedReader:
    """Images decoded from their files for each batch, by threads; Pillow decodes without the GIL.

    Args:
        data: How to decode.
        listing: The files.
        pool: The threads.
        seed: The run's seed.
    """

    def __init__(
        self, data: ImageFolderConfig, listing: Listing, pool: ThreadPoolExecutor, seed: int = 0
    ) -> None:
        self._data, self._listing, self._pool, self._seed = data, listing, pool, seed
        self._num_tasks = _TASKS_PER_WORKER * num_workers(data)

    def __len__(self) -> int:
        return len(self._listing)

    def start(self, indices: NDArray[np.int64], epoch: int | None) -> Pending[Tensor]:
        """Begin to decode a batch."""
        crop, size = self._data.resized_crop, self._data.image_size
        is_random = crop is not None and epoch is not None
        views: list[View] = [view_of(self._data)] * len(indices)
        if crop is not None and epoch is not None:
            views = [_random(bits, crop) for bits in crop_bits(self._seed, epoch, indices)]
        images = np.empty((len(indices), self._data.channels, size, size), np.uint8)

        def decode(rows: range) -> None:
            for row in rows:
                images[row] = decode_image(
                    self._listing.path(int(indices[row])),
                    size,
                    self._data.channels,
                    views[row],
                    cuts_out=is_random,
                )

        step = -(-len(indices) // self._num_tasks)
        parts = [
            range(first, min(first + step, len(indices))) for first in range(0, len(indices), step)
        ]
        return _Decoding(images, [self._pool.submit(decode, part) for part in parts])

    def sample(self) -> Tensor:
        """Decode a fixed, evenly spread sample."""
        chosen = np.array(evenly(len(self), NUM_SAMPLED), np.int64)
        return self.start(chosen, None).result()


def _random(bits: NDArray[np.uint32], crop: ResizedCropConfig) -> View:
    """Return the view of one sample's random resized crop; `bits` is uint32 [10, 4]."""

    def view(width: int, height: int) -> Box:
        sizes = np.array([height]), np.array([width])
        (box,) = crop_boxes(bits[None], *sizes, scale=crop.scale, ratio=crop.ratio).tolist()
        top, left, box_height, box_width = box
        return (left, top, left + box_width, top + box_height)

    return view
