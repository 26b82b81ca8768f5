"""A user's own data: any rows, indexed by number, with a class for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from laminar.config import Config
from laminar.data.batches import Batches
from laminar.data.mixup import mix_images
from laminar.errors import FactoryError
from laminar.problem import Problem

Datasets = Mapping[str, Callable[[], tuple[Any, Any]]]
_SPLITS = ("train", "test")


class OwnInputs(Batches):
    """Rows of a batch, by (epoch, batch), as they are; mixed where the configuration says so.

    Args:
        config: The run's configuration.
        train: N rows that an int64 array indexes.
        test: n of them.
    """

    def __init__(self, config: Config, train: Any, test: Any) -> None:
        super().__init__(config, len(train))
        self._train, self._test = train, test
        self.mean = self.std = torch.empty(0)
        """Nothing is normalised."""

    def train(self, epoch: int, batch: int, is_augmented: bool = True) -> Tensor:
        """Return [B, ...]; float64 becomes float32, other types stay."""
        indices = self._train_indices(epoch, batch)
        x = take(self._train, indices)
        is_mixed = is_augmented and self._config.data.mixup > 0
        return mix_images(x, self._mix_weights(epoch, indices)) if is_mixed else x

    def test(self, batch: int) -> Tensor:
        """Return [b, ...], b <= eval_batch_size, in the order of the data."""
        return take(self._test, np.arange(len(self._test))[self._test_slice(batch)])


def take(rows: Any, indices: NDArray[np.int64]) -> Tensor:
    """Return some rows as a tensor [B, ...]; float64 becomes float32."""
    found = torch.as_tensor(rows[indices])
    return found.float() if found.dtype == torch.float64 else found


def own_inputs(datasets: Datasets, split: str) -> Any:
    """Return the inputs of a split: N rows that an int64 array indexes."""
    return _open(datasets, split)[0]


def own_labels(datasets: Datasets, split: str) -> Tensor:
    """Return the classes of a split, int64 [N].

    Raises:
        FactoryError: Targets are no classes.
    """
    targets = torch.as_tensor(_open(datasets, split)[1])
    is_integer = not targets.is_floating_point() and not targets.is_complex()
    # As int64, for of unsigned integers torch finds no least one.
    is_fit = targets.dim() == 1 and is_integer and len(targets)
    if not is_fit or targets.to(torch.int64).min() < 0:
        raise FactoryError(
            f"the targets of datasets[{split!r}] must be the class of each row, integers >= 0, [N]",
            got=f"shape {tuple(targets.shape)}, {targets.dtype}",
            fix="number the classes from 0",
        )
    return targets.to(torch.int64)


def describe_own(datasets: Datasets) -> Problem:
    """Return what network and plan must know of the data; the classes are 0 to the largest one.

    Raises:
        FactoryError: A factory fails or does not return rows and classes that belong together.
    """
    labels = [own_labels(datasets, split) for split in _SPLITS]
    samples = []
    for split, y in zip(_SPLITS, labels, strict=True):
        x = own_inputs(datasets, split)
        try:
            num, sample = len(x), take(x, np.arange(2) % len(y))
        except Exception as error:
            raise _no_rows(split, f"{type(error).__name__}: {error}") from error
        if num != len(y) or len(sample) != 2:
            raise _no_rows(split, f"{num} rows and {len(y)} targets")
        samples.append(sample)
    first, second = samples
    if first.shape != second.shape or first.dtype != second.dtype:
        raise FactoryError(
            "training and test rows must have the same shape and type",
            got=f"{tuple(first.shape[1:])} {first.dtype}, {tuple(second.shape[1:])} {second.dtype}",
            fix="prepare both in the same way",
        )
    num_classes = 1 + max(int(y.max()) for y in labels)
    dtype = str(first.dtype).removeprefix("torch.")
    num_train, num_test = (len(y) for y in labels)
    return Problem(tuple(first.shape[1:]), num_classes, num_train, num_test, dtype=dtype)


def _open(datasets: Datasets, split: str) -> tuple[Any, Any]:
    try:
        inputs, targets = datasets[split]()
    except Exception as error:
        raise FactoryError(
            f"datasets[{split!r}] must return (inputs, targets)",
            got=f"{type(error).__name__}: {error}",
            fix="mend the function; it is called in the driver and in every stage that reads data",
        ) from error
    return inputs, targets


def _no_rows(split: str, got: str) -> FactoryError:
    return FactoryError(
        f"the inputs of datasets[{split!r}] must be rows [N, ...] that an int64 array indexes, one "
        "for each target",
        got=got,
        fix="return a tensor, a numpy array or an object with __len__ and __getitem__(indices)",
    )
