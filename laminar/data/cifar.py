"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) through torchvision's own classes, from disk only.

The archives hold pickles. torchvision compares each file's MD5 with the published one before it
reads any of them, so nothing is unpickled that Krizhevsky did not write.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from laminar.config import Cifar10Config, Cifar100Config
from laminar.data.evenly import evenly
from laminar.errors import DataError

IMAGE_SHAPE = (3, 32, 32)


@dataclass(frozen=True)
class CifarSplit:
    """One split of CIFAR-10 or CIFAR-100."""

    images: Tensor
    """uint8 [N, 3, 32, 32]."""
    labels: Tensor
    """int64 [N]."""
    class_names: tuple[str, ...]
    """In the order of the labels."""


def load_cifar(data: Cifar10Config | Cifar100Config, split: Literal["train", "test"]) -> CifarSplit:
    """Read one split; about a second, most of it to verify all files.

    Raises:
        DataError: A file is missing, or its checksum is not the published one.
    """
    dataset = _open(data, is_train=split == "train")
    chosen = evenly(len(dataset.targets), data.limit(split))
    # torchvision gives [N, H, W, C], a transposed view of what lies in the files.
    images = np.ascontiguousarray(dataset.data.transpose(0, 3, 1, 2)[chosen])
    labels = torch.tensor(dataset.targets, dtype=torch.int64)[chosen]
    return CifarSplit(torch.from_numpy(images), labels, tuple(dataset.classes))


def _open(data: Cifar10Config | Cifar100Config, is_train: bool) -> Any:
    from torchvision.datasets import CIFAR10, CIFAR100  # slow to import

    kind = CIFAR10 if isinstance(data, Cifar10Config) else CIFAR100
    try:
        return kind(data.root, train=is_train, download=False)
    except (RuntimeError, OSError) as error:
        raise _what_is_wrong(kind, data, error) from error


def _what_is_wrong(kind: Any, data: Cifar10Config | Cifar100Config, error: Exception) -> DataError:
    """Name the file that torchvision, which says only that something is wrong, did not accept."""
    from torchvision.datasets.utils import check_integrity

    folder = Path(data.root) / kind.base_folder
    fix = f"unpack {kind.filename} in data.root; nothing is downloaded"
    files = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
    for name, _ in files:
        if not (folder / name).is_file():
            rule = f"data.root must hold {kind.base_folder}/{name}"
            return DataError(rule, got=f"no file {folder / name}", fix=fix)
    for name, md5 in files:
        if not check_integrity(folder / name, md5):
            return DataError(
                f"the files of {kind.__name__} must have the published checksums",
                got=f"another MD5 of {folder / name}",
                expected=md5,
                fix=fix,
            )
    return DataError(
        f"the files of {kind.__name__} must be readable", got=f"{folder}: {error}", fix=fix
    )
