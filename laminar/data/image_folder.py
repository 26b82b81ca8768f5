"""Images in folders, ROOT/SPLIT/CLASS/FILE: the listing, and what is decoded once and kept."""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from laminar.config import ImageFolderConfig
from laminar.data.decode import View, central, decode_image, squash
from laminar.data.evenly import evenly
from laminar.errors import DataError

Split = Literal["train", "test"]
Report = Callable[[int, int], None]

EXTENSIONS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
_CACHE_FORMAT = 2


@dataclass(frozen=True)
class Listing:
    """The files of one split, sorted by class, then by name."""

    root: Path
    names: tuple[str, ...]
    """CLASS/FILE; as text, since a split may have a million."""
    labels: tuple[int, ...]
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> Path:
        """Return where an image lies."""
        return self.root / self.names[index]


@contextmanager
def _readable(rule: str) -> Iterator[None]:
    """Say in one line what the file system refuses; its errors name the path."""
    try:
        yield
    except OSError as error:
        raise DataError(rule, got=error, fix="mend or remove it") from error


@_readable("every folder of a split must be readable")
def list_split(data: ImageFolderConfig, split: Split) -> Listing:
    """List a split without opening an image.

    Raises:
        DataError: A folder is absent or cannot be read, there are no classes, or one is empty.
    """
    name = data.train_split if split == "train" else data.test_split
    root = Path(data.root) / name
    if not root.is_dir():
        raise DataError(
            f"data.root must hold a folder `{name}`",
            got=f"no folder {root}",
            fix="mend data.root, or name the splits with data.train_split and data.test_split",
        )
    classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    if not classes:
        raise DataError(
            "a split must hold one folder per class",
            got=f"no folders in {root}",
            fix="lay the images out as ROOT/SPLIT/CLASS/FILE",
        )
    names: list[str] = []
    labels: list[int] = []
    for label, folder in enumerate(classes):
        files = (name for name in os.listdir(root / folder))
        found = sorted(n for n in files if os.path.splitext(n)[1].lower() in EXTENSIONS)
        if not found:
            raise DataError(
                "every class folder must hold at least one image",
                got=f"none in {root / folder}",
                expected=" ".join(sorted(EXTENSIONS)),
                fix="add images or remove the folder",
            )
        names += [f"{folder}/{name}" for name in found]
        labels += [label] * len(found)
    chosen = evenly(len(names), data.limit(split))
    return Listing(
        root, tuple(names[i] for i in chosen), tuple(labels[i] for i in chosen), tuple(classes)
    )


def check_same_classes(train: Listing, test: Listing) -> None:
    """Raise DataError unless both splits have the same class folders."""
    if train.class_names != test.class_names:
        odd = sorted(set(train.class_names) ^ set(test.class_names))
        raise DataError(
            "training and test split must have the same classes",
            got=f"`{odd[0]}` in only one of {train.root} and {test.root}",
            fix="add or remove that folder",
        )


def is_streamed(data: ImageFolderConfig, split: Split, num_images: int) -> bool:
    """Whether the images of a split are decoded anew for each batch, not once for all.

    They are where, decoded, they would not fit the memory budget, and where training cuts its
    random parts out of the files.
    """
    if split == "train" and data.resized_crop is not None:
        return True
    num_bytes = num_images * data.channels * data.image_size**2
    return num_bytes > data.max_memory_mb * 10**6


def view_of(data: ImageFolderConfig) -> View:
    """Return which part of an image is shown where nothing random is cut out."""
    if data.fit == "squash":
        return squash
    return central(data.shorter_side or data.image_size * 8 // 7, data.image_size)


def num_workers(data: ImageFolderConfig) -> int:
    """Return how many threads decode."""
    return data.decode_workers or os.cpu_count() or 1


def load_split(data: ImageFolderConfig, listing: Listing, report: Report | None = None) -> Tensor:
    """Decode a split, or read it from the cache of an earlier run.

    Returns:
        uint8 [N, C, S, S]; do not write to it, it may be a memory-mapped file.

    Raises:
        DataError: An image cannot be read or decoded.
    """
    cache = _cache_folder(data) / f"{_key(data, listing)}.npy"
    shape = (len(listing), data.channels, data.image_size, data.image_size)
    cached = _open_cached(cache, shape)
    if cached is not None:
        return _read_only(cached)
    images = _decode_all(data, listing, report)
    _store(cache, images)
    return torch.from_numpy(images)


def _decode_all(
    data: ImageFolderConfig, listing: Listing, report: Report | None
) -> NDArray[np.uint8]:
    size, num, view = data.image_size, len(listing), view_of(data)
    images = np.empty((num, data.channels, size, size), np.uint8)

    def decode(index: int) -> None:
        images[index] = decode_image(listing.path(index), size, data.channels, view)

    with ThreadPoolExecutor(num_workers(data)) as pool:
        for done, _ in enumerate(pool.map(decode, range(num)), 1):
            if report is not None and (done % 500 == 0 or done == num):
                report(done, num)
    return images


@_readable("every image must be readable")
def _key(data: ImageFolderConfig, listing: Listing) -> str:
    """Hash everything that the decoded pixels depend on."""
    how = f"{_CACHE_FORMAT} {data.image_size} {data.channels}"
    if data.fit != "squash":
        how += f" {data.fit} {data.shorter_side}"
    digest = hashlib.sha256(how.encode())
    for index, name in enumerate(listing.names):
        stat = listing.path(index).stat()
        line = f"\n{name}\0{stat.st_size}\0{stat.st_mtime_ns}"
        digest.update(line.encode(errors="surrogateescape"))  # a name may be no UTF-8
    return digest.hexdigest()[:32]


def _cache_folder(data: ImageFolderConfig) -> Path:
    if data.cache_dir is not None:
        return Path(data.cache_dir)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "laminar"


def _open_cached(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """Map what an earlier run kept; None where there is nothing, or nothing that can be used."""
    try:
        images: NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return images if images.shape == shape and images.dtype == np.uint8 else None


def _store(path: Path, images: NDArray[np.uint8]) -> None:
    """Keep decoded images for the next run; a cache that cannot be written is no error."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            np.save(file, images, allow_pickle=False)
        Path(file.name).replace(path)
    except OSError:
        return


def _read_only(images: NDArray[Any]) -> Tensor:
    """Make a tensor of a memory-mapped file; nobody writes to it, which is what torch warns of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(images)
