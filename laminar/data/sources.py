"""The data sets: what they hold, their images and their labels."""

from __future__ import annotations

import importlib.util
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from laminar.config import (
    Cifar10Config,
    Cifar100Config,
    Config,
    DataConfig,
    DigitsConfig,
    ImageFolderConfig,
    MnistConfig,
    OwnDataConfig,
    SyntheticConfig,
)
from laminar.data.cifar import IMAGE_SHAPE, load_cifar
from laminar.data.decode import decode_image, squash
from laminar.data.evenly import evenly
from laminar.data.image_folder import (
    Report,
    check_same_classes,
    is_streamed,
    list_split,
    load_split,
    num_workers,
    view_of,
)
from laminar.data.readers import StreamedReader
from laminar.errors import ConfigError, DataError, FactoryError
from laminar.problem import Problem

Split = Literal["train", "test"]

DIGITS_NUM_TRAIN = 898
"""The first half trains and the rest tests, unshuffled: the split of scikit-learn's own example
"Recognizing hand-written digits". The halves come from different writers."""


def describe(data: DataConfig) -> Problem:
    """Return what the network must know of a data set, without decoding an image.

    Raises:
        DataError: Files or folders are missing.
        ConfigError: The augmentation does not fit the images.
    """
    problem = _describe(data)
    channels = problem.image_shape[0]
    if data.mean is not None and not len(data.mean) == len(data.std or ()) == channels:
        raise ConfigError(
            "data.mean and data.std must have one number for each channel",
            got=f"{len(data.mean)} and {len(data.std or ())}",
            expected=f"{channels} for {data.name}",
            fix="mend them, or leave both out to measure the training images",
        )
    if data.cutout > min(problem.image_shape[1:]):
        raise ConfigError(
            "data.cutout must be <= height and width of the images",
            got=data.cutout,
            expected=f"<= {min(problem.image_shape[1:])} for {data.name}",
            fix="lower it; 0 is none",
        )
    return problem


def _describe(data: DataConfig) -> Problem:
    if isinstance(data, DigitsConfig):
        num = len(_digits()[1])
        return Problem((1, 8, 8), 10, DIGITS_NUM_TRAIN, num - DIGITS_NUM_TRAIN)
    if isinstance(data, MnistConfig):
        num_train, num_test = (len(_mnist(data, split)[1]) for split in ("train", "test"))
        return Problem((1, 28, 28), 10, num_train, num_test)
    if isinstance(data, Cifar10Config | Cifar100Config):
        cifar, cifar_test = load_cifar(data, "train"), load_cifar(data, "test")
        names, num_train, num_test = cifar.class_names, len(cifar.labels), len(cifar_test.labels)
        return Problem(IMAGE_SHAPE, len(names), num_train, num_test, names)
    if isinstance(data, ImageFolderConfig):
        train, test = list_split(data, "train"), list_split(data, "test")
        check_same_classes(train, test)
        size = data.image_size
        names, num_train, num_test = train.class_names, len(train), len(test)
        return Problem((data.channels, size, size), len(names), num_train, num_test, names)
    data = _synthetic(data)
    shape = (data.channels, data.image_size, data.image_size)
    return Problem(shape, data.num_classes, data.num_train, data.num_test)


def class_names(data: DataConfig) -> tuple[str, ...]:
    """Return the name of each class, in the order of the labels.

    Raises:
        DataError: Files or folders are missing.
    """
    if isinstance(data, Cifar10Config | Cifar100Config):
        return load_cifar(data, "test").class_names
    if isinstance(data, ImageFolderConfig):
        return list_split(data, "train").class_names
    if isinstance(data, DigitsConfig | MnistConfig):
        return tuple(str(i) for i in range(10))
    return tuple(str(i) for i in range(_synthetic(data).num_classes))


def open_images(
    config: Config, split: Split, report: Report | None = None
) -> Tensor | StreamedReader:
    """Return the images of a split, or what decodes them for each batch.

    Args:
        config: The run's configuration.
        split: Which part of the data set.
        report: Called with (done, total) while images are decoded.

    Returns:
        uint8 [N, C, H, W], not to be written to, or a reader where that would not fit
        `data.max_memory_mb`, or where training cuts random parts out of files.

    Raises:
        DataError: Missing or broken files.
    """
    data = config.data
    if isinstance(data, ImageFolderConfig):
        listing = list_split(data, split)
        if is_streamed(data, split, len(listing)):
            pool = ThreadPoolExecutor(num_workers(data), "decode")
            return StreamedReader(data, listing, pool, config.seed)
    return load_images(data, split, report)


def load_images(data: DataConfig, split: Split, report: Report | None = None) -> Tensor:
    """Return all images of a split, uint8 [N, C, H, W], not to be written to.

    Args:
        data: Which data set.
        split: Which part of it.
        report: Called with (done, total) while images are decoded.

    Raises:
        DataError: Missing or broken files.
    """
    if isinstance(data, DigitsConfig):
        pixels = _half(_digits()[0], split)
        return torch.from_numpy(np.round(pixels * (255 / 16)).astype(np.uint8)[:, None])
    if isinstance(data, MnistConfig):
        return _mnist(data, split)[0][:, None]
    if isinstance(data, Cifar10Config | Cifar100Config):
        return load_cifar(data, split).images
    if isinstance(data, ImageFolderConfig):
        return load_split(data, list_split(data, split), report)
    data = _synthetic(data)
    generator = torch.Generator().manual_seed(0 if split == "train" else 1)
    num = data.num_train if split == "train" else data.num_test
    shape = (num, data.channels, data.image_size, data.image_size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def load_labels(data: DataConfig, split: Split) -> Tensor:
    """Return all labels of a split, int64 [N], in the order of `load_images`."""
    if isinstance(data, DigitsConfig):
        return torch.from_numpy(_half(_digits()[1], split).astype(np.int64))
    if isinstance(data, MnistConfig):
        return _mnist(data, split)[1]
    if isinstance(data, Cifar10Config | Cifar100Config):
        return load_cifar(data, split).labels
    if isinstance(data, ImageFolderConfig):
        return torch.tensor(list_split(data, split).labels, dtype=torch.int64)
    data = _synthetic(data)
    num = data.num_train if split == "train" else data.num_test
    return torch.arange(num) % data.num_classes


def load_image(data: DataConfig, problem: Problem, path: Path) -> Tensor:
    """Return one image file as the data set prepares its test images, uint8 [C, H, W].

    Args:
        data: The data set.
        problem: What it holds.
        path: An image of any size and mode.

    Raises:
        DataError: The file is no image, or the data set has none that a file could hold.
    """
    channels, size = problem.image_shape[0], problem.image_shape[-1]
    if channels not in (1, 3):
        raise DataError(
            "the images of the run's data set must be grey or RGB to read others like them",
            got=f"{channels} channels in data set {data.name}",
            fix="predict with a run that was trained on images",
        )
    view = view_of(data) if isinstance(data, ImageFolderConfig) else squash
    return torch.from_numpy(decode_image(path, size, channels, view).copy())


def with_absolute_paths(config: Config) -> Config:
    """Make all paths absolute, so that actors and later runs find them."""
    data, model = config.data, config.model
    if model.weights is not None:
        model = model.model_copy(update={"weights": _absolute(model.weights)})
    if not isinstance(data, DigitsConfig | SyntheticConfig | OwnDataConfig):
        changes = {"root": _absolute(data.root)}
        if isinstance(data, ImageFolderConfig) and data.cache_dir is not None:
            changes["cache_dir"] = _absolute(data.cache_dir)
        data = data.model_copy(update=changes)
    stored = config.stored
    if stored.scratch_dir is not None:
        stored = stored.model_copy(update={"scratch_dir": _absolute(stored.scratch_dir)})
    return config.model_copy(update={"data": data, "model": model, "stored": stored})


def _synthetic(data: DataConfig) -> SyntheticConfig:
    if isinstance(data, SyntheticConfig):
        return data
    raise FactoryError(
        "the data of this configuration must be given in Python",
        got=f"data.name {data.name}, no datasets",
        fix="call LayerParallelTrainer(config, datasets=...)",
    )


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().resolve())


def _digits() -> tuple[Any, Any]:
    """Return images 0..16 [N, 8, 8] and labels [N], as `sklearn.datasets.load_digits` does.

    Read from scikit-learn's file, for to import scikit-learn takes driver and stages four seconds
    each; by scikit-learn itself where it keeps that file elsewhere.
    """
    package = importlib.util.find_spec("sklearn")
    if package is not None and package.origin is not None:
        file = Path(package.origin).with_name("datasets") / "data" / "digits.csv.gz"
        if file.is_file():
            table = np.loadtxt(file, delimiter=",")
            return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return bunch.images, bunch.target


def _half(array: Any, split: Split) -> Any:
    return array[:DIGITS_NUM_TRAIN] if split == "train" else array[DIGITS_NUM_TRAIN:]


def _mnist(data: MnistConfig, split: Split) -> tuple[Tensor, Tensor]:
    """Read one split, uint8 [N, 28, 28] and int64 [N].

    Through torchvision's readers of single files: its MNIST class would rather take, and unpickle,
    a `processed/` folder that lies beside them.
    """
    from torchvision.datasets.mnist import read_image_file, read_label_file  # slow to import

    raw = Path(data.root) / "MNIST" / "raw"
    prefix = "train" if split == "train" else "t10k"
    names = f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"
    for name in names:
        if not (raw / name).is_file():
            packed = (raw / f"{name}.gz").is_file()
            raise DataError(
                f"data.root must hold MNIST/raw/{name}",
                got=f"only the packed {raw / name}.gz" if packed else f"no file {raw / name}",
                fix="unpack it with gunzip" if packed else "put the four IDX files of MNIST there",
            )
    try:
        images, labels = read_image_file(str(raw / names[0])), read_label_file(str(raw / names[1]))
        if images.shape != (len(labels), 28, 28) or not len(labels) or labels.max() > 9:
            raise ValueError(
                f"images {list(images.shape)}, labels {list(labels.shape)} up to {labels.max()}"
                if len(labels)
                else "no labels"
            )
    except (OSError, RuntimeError, TypeError, ValueError, KeyError, AssertionError) as error:
        raise DataError(
            "MNIST's IDX files must be whole, N images of 28x28 and N labels of 0..9",
            got=f"{raw}/{prefix}-*: {str(error) or 'not an IDX file'}",
            fix="copy them anew",
        ) from error
    chosen = evenly(len(labels), data.limit(split))
    return images[chosen], labels[chosen]
