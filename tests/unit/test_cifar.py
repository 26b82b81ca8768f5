"""CIFAR-10 and CIFAR-100: files of the archives' format, and nothing unpickled that is not theirs.

The checksums that torchvision knows are replaced by those of small files; all else is its own.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from laminar.config import Cifar10Config, Cifar100Config, Config
from laminar.data import class_names, describe, load_images, load_labels
from laminar.errors import DataError
from laminar.one_process import OneProcessEngine
from laminar.planning import make_plan
from laminar.problem import Problem
from tests.cifar_files import NAMES, pixels, write_cifar10, write_cifar100
from tests.tiny import differing, run_reference


@pytest.fixture
def cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return write_cifar10(tmp_path, monkeypatch)


@pytest.fixture
def cifar100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return write_cifar100(tmp_path, monkeypatch)


def test_cifar10_is_read(cifar10: Path):
    data = Cifar10Config(name="cifar10", root=str(cifar10))
    assert describe(data) == Problem((3, 32, 32), 10, 30, 6, NAMES)
    assert class_names(data) == NAMES
    train, test = load_images(data, "train"), load_images(data, "test")
    assert train.dtype == test.dtype == torch.uint8
    for i in range(5):
        expected = pixels(f"data_batch_{i + 1}", 6).reshape(6, 3, 32, 32)
        assert np.array_equal(train[6 * i : 6 * i + 6].numpy(), expected)
    assert np.array_equal(test.numpy(), pixels("test_batch", 6).reshape(6, 3, 32, 32))
    assert load_labels(data, "train").tolist() == [2, 3, 4, 5, 6, 7] * 5
    assert load_labels(data, "test").tolist() == [0, 1, 2, 3, 4, 5]


def test_a_limit_takes_images_evenly(cifar10: Path):
    data = Cifar10Config(name="cifar10", root=str(cifar10), max_train=4, max_test=2)
    assert describe(data) == Problem((3, 32, 32), 10, 4, 2, NAMES)
    whole = load_images(Cifar10Config(name="cifar10", root=str(cifar10)), "train")
    assert torch.equal(load_images(data, "train"), whole[[0, 7, 15, 22]])
    assert load_labels(data, "train").tolist() == [2, 3, 5, 6]
    assert load_labels(data, "test").tolist() == [0, 3]


def test_cifar100_is_read_with_its_fine_classes(cifar100: Path):
    data = Cifar100Config(name="cifar100", root=str(cifar100))
    names = tuple(f"fine {i}" for i in range(100))
    assert describe(data) == Problem((3, 32, 32), 100, 12, 5, names)
    assert class_names(data) == names
    expected = pixels("train", 12).reshape(12, 3, 32, 32)
    assert np.array_equal(load_images(data, "train").numpy(), expected)
    assert load_labels(data, "test").tolist() == [99, 98, 97, 96, 95]


def test_cifar_is_padded_cropped_and_mirrored_unless_told_otherwise():
    data = Cifar10Config(name="cifar10", root="x")
    assert (data.crop_padding, data.flip) == (4, True)


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
def test_an_absent_file_is_named(cifar10: Path, name: str):
    (cifar10 / "cifar-10-batches-py" / name).unlink()
    with pytest.raises(DataError, match=rf"cifar-10-batches-py/{name}.*cifar-10-python\.tar\.gz"):
        describe(Cifar10Config(name="cifar10", root=str(cifar10)))


class Trap:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["data_batch_1", "test_batch", "batches.meta"])
def test_a_file_of_another_checksum_is_named_and_never_unpickled(cifar10: Path, name: str):
    marker = cifar10 / "unpickled"
    content = pickle.dumps({"labels": [], "label_names": [], "data": Trap(marker)})
    path = cifar10 / "cifar-10-batches-py" / name
    path.write_bytes(content)
    for split in ("train", "test"):
        with pytest.raises(DataError, match=f"published checksums.*{name}"):
            load_images(Cifar10Config(name="cifar10", root=str(cifar10)), split)
    assert not marker.exists()
    pickle.loads(content)  # that the trap would have sprung
    assert marker.exists()


def test_the_engine_trains_on_cifar_with_every_augmentation(cifar10: Path):
    config = Config.model_validate(
        {
            "epochs": 2,
            "batch_size": 8,
            "num_stages": 3,
            "model": {"name": "resnet8", "width": 2},
            "data": {"name": "cifar10", "root": str(cifar10), "cutout": 16, "mixup": 0.4},
            "loss": {"label_smoothing": 0.1},
            "phases": [
                {"phase": "correction", "epochs": 1 / 3},
                {"phase": "parallel", "epochs": 5 / 3},
            ],
            "parallel": {"micro_batches": 8},
        }
    )
    plan = make_plan(config, describe(config.data))
    engine = OneProcessEngine(plan)
    engine.run()
    assert differing(run_reference(plan).state(), engine.state()) == []
