"""What stages read: batches of images at stage 0, batches of labels at the last stage."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from laminar.config import Config, ImageFolderConfig
from laminar.data.augment import augment, channel_stats, cutout, epoch_order, normalize
from laminar.data.mixup import mix_images, mix_labels, mix_weights
from laminar.data.read_ahead import Pending, ReadAhead
from laminar.data.readers import MemoryReader, Reader, StreamedReader
from laminar.problem import num_test_batches


class Batches:
    """Which samples are in which batch."""

    def __init__(self, config: Config, num_train: int) -> None:
        self._config, self._num_train = config, num_train
        self._order: tuple[int, NDArray[np.int64]] | None = None

    def _train_indices(self, epoch: int, batch: int) -> NDArray[np.int64]:
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, epoch_order(self._config.seed, epoch, self._num_train)
        size = self._config.batch_size
        return self._order[1][batch * size : (batch + 1) * size]

    def _mix_weights(self, epoch: int, indices: NDArray[np.int64]) -> Tensor:
        return mix_weights(self._config.seed, epoch, indices, self._config.data.mixup)

    def _test_slice(self, batch: int) -> slice:
        size = self._config.eval_batch_size
        return slice(batch * size, (batch + 1) * size)


class _Place(NamedTuple):
    """A batch, in the order in which a run asks for them."""

    epoch: int
    split: Literal["train", "plain", "test"]
    """`plain` are training images as they are."""
    batch: int


class InputBatches(Batches):
    """Augmented and normalised images of a batch, by (epoch, batch).

    Args:
        config: The run's configuration.
        train: uint8 [N, C, H, W], or what reads such images.
        test: uint8 [n, C, H, W], or what reads such images.
        stats: Mean and std to normalise with, fp32 [C] in 0..255; None takes the configured ones,
            or those of the training set.
    """

    def __init__(
        self,
        config: Config,
        train: Tensor | Reader,
        test: Tensor | Reader,
        stats: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__(config, len(train))
        readers = [
            MemoryReader(source, config.seed, config.data.resized_crop)
            if isinstance(source, Tensor)
            else source
            for source in (train, test)
        ]
        self._train, self._test = readers
        is_streamed = any(isinstance(reader, StreamedReader) for reader in readers)
        data = config.data
        depth = data.prefetch if is_streamed and isinstance(data, ImageFolderConfig) else 0
        self._images = ReadAhead[_Place, Tensor](self._start, self._following, depth)
        self._epoch = config.epochs - 1
        self.mean, self.std = (
            stats or _configured_stats(config) or channel_stats(self._train.sample())
        )

    def train(self, epoch: int, batch: int, is_augmented: bool = True) -> Tensor:
        """Return fp32 [B, C, H, W]; the ragged last batch of an epoch does not exist."""
        self._epoch = epoch
        indices = self._train_indices(epoch, batch)
        if not is_augmented:
            images = self._images.get(_Place(epoch, "plain", batch))
            return normalize(images, self.mean, self.std)
        data, seed = self._config.data, self._config.seed
        images = augment(
            self._images.get(_Place(epoch, "train", batch)),
            indices,
            seed=seed,
            epoch=epoch,
            crop_padding=data.crop_padding,
            flip=data.flip,
        )
        images = normalize(images, self.mean, self.std)
        if data.cutout:
            images = cutout(images, indices, seed=seed, epoch=epoch, side=data.cutout)
        return mix_images(images, self._mix_weights(epoch, indices)) if data.mixup else images

    def test(self, batch: int) -> Tensor:
        """Return fp32 [b, C, H, W], b <= eval_batch_size, in the order of the files."""
        return normalize(self._images.get(_Place(self._epoch, "test", batch)), self.mean, self.std)

    def _start(self, place: _Place) -> Pending[Tensor]:
        if place.split != "test":
            crops = place.epoch if place.split == "train" else None
            return self._train.start(self._train_indices(place.epoch, place.batch), crops)
        return self._test.start(np.arange(len(self._test))[self._test_slice(place.batch)], None)

    def _following(self, place: _Place) -> _Place | None:
        """Return what is asked for next: an epoch's batches, the test set, the next epoch."""
        epoch, split, batch = place
        is_train = split != "test"
        num = (
            self._num_train // self._config.batch_size
            if is_train
            else num_test_batches(self._config, len(self._test))
        )
        if batch + 1 < num:
            return _Place(epoch, split, batch + 1)
        if is_train:
            return _Place(epoch, "test", 0)
        return _Place(epoch + 1, "train", 0) if epoch + 1 < self._config.epochs else None


class LabelBatches(Batches):
    """Labels of a batch, by (epoch, batch), in the order of `InputBatches`.

    Args:
        config: The run's configuration.
        train: int64 [N].
        test: int64 [n].
        num_classes: Number of classes; needed with mixup.
    """

    def __init__(
        self, config: Config, train: Tensor, test: Tensor, num_classes: int | None = None
    ) -> None:
        super().__init__(config, len(train))
        self._train, self._test, self._num_classes = train, test, num_classes

    def train(self, epoch: int, batch: int, is_augmented: bool = True) -> Tensor:
        """Return int64 [B]; with mixup fp32 [B, num_classes], a probability for each class."""
        indices = self._train_indices(epoch, batch)
        labels = self._train[torch.from_numpy(indices)]
        if not self._config.data.mixup or not is_augmented:
            return labels
        assert self._num_classes is not None
        return mix_labels(labels, self._mix_weights(epoch, indices), self._num_classes)

    def test(self, batch: int) -> Tensor:
        """Return int64 [b]."""
        return self._test[self._test_slice(batch)]


class SampleIndices(Batches):
    """Which training samples a batch holds, in the order of `InputBatches`; opens no data."""

    def train(self, epoch: int, batch: int, is_augmented: bool = True) -> Tensor:
        """Return int64 [B]."""
        return torch.from_numpy(self._train_indices(epoch, batch))


def _configured_stats(config: Config) -> tuple[Tensor, Tensor] | None:
    data = config.data
    if data.mean is None or data.std is None:
        return None
    return torch.tensor(data.mean) * 255.0, torch.tensor(data.std) * 255.0
