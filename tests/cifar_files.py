"""Files of the format of the CIFAR archives, whose checksums take the place of torchvision's."""

from __future__ import annotations

import hashlib
import pickle
import struct
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from torchvision.datasets import CIFAR10, CIFAR100

NAMES = tuple(f"class {letter}" for letter in "abcdefghij")


class Python2Pickler(pickle._Pickler):
    """Writes as Python 2 with an old numpy did, which made the archives."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_string(self, value: str | bytes) -> None:
        content = value.encode("latin1") if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_string

    def save_global(self, obj: Any, name: str | None = None) -> None:
        module = obj.__module__.replace("numpy._core", "numpy.core")
        self.write(pickle.GLOBAL + f"{module}\n{name or obj.__qualname__}\n".encode())
        self.memoize(obj)

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, np.dtype):
            return np.dtype, (obj.str[1:], 0, 1), (3, obj.str[0], None, None, None, -1, -1, 0)
        return NotImplemented


def write(path: Path, content: dict[str, Any]) -> str:
    """Write one pickle; return its MD5."""
    with path.open("wb") as file:
        Python2Pickler(file, 2).dump(content)
    return hashlib.md5(path.read_bytes()).hexdigest()


def pixels(file: str, num: int) -> np.ndarray:
    rng = np.random.default_rng(list(file.encode()))
    return rng.integers(0, 256, (num, 3072), dtype=np.uint8)


def write_cifar10(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five training files and a test file of 6 images each, and the names of the classes."""
    folder = path / "cifar-10-batches-py"
    folder.mkdir()
    for kind in ("train_list", "test_list"):
        files = []
        for name, _ in getattr(CIFAR10, kind):
            labels = [(len(name) + i) % 10 for i in range(6)]
            content = {"batch_label": name, "labels": labels, "data": pixels(name, 6)}
            files.append([name, write(folder / name, content)])
        monkeypatch.setattr(CIFAR10, kind, files)
    md5 = write(folder / "batches.meta", {"label_names": list(NAMES), "num_vis": 3072})
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5})
    return path


def write_cifar100(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve training images, five of the test, of the first and last of the 100 classes."""
    folder = path / "cifar-100-python"
    folder.mkdir()
    for kind, num in (("train", 12), ("test", 5)):
        fine = [99 - i for i in range(num)]
        content = {"coarse_labels": [0] * num, "fine_labels": fine, "data": pixels(kind, num)}
        md5 = write(folder / kind, content)
        monkeypatch.setattr(CIFAR100, f"{kind}_list", [[kind, md5]])
    names = {"fine_label_names": [f"fine {i}" for i in range(100)], "coarse_label_names": ["c"]}
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": write(folder / "meta", names)})
    return path
