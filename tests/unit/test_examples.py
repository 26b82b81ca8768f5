"""Every example is a configuration that can run, and trains on small data of its format."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from laminar.config import Config
from laminar.config_file import load_config
from laminar.data import describe
from laminar.one_process import OneProcessEngine
from laminar.plan import Segment
from laminar.planning import make_plan
from laminar.problem import Problem
from tests.cifar_files import write_cifar10, write_cifar100

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
REAL = {
    "mnist": Problem((1, 28, 28), 10, 60_000, 10_000),
    "cifar10": Problem((3, 32, 32), 10, 50_000, 10_000),
    "cifar100": Problem((3, 32, 32), 100, 50_000, 10_000),
    "image_folder": Problem((3, 224, 224), 1000, 1_281_167, 50_000),
}
"""By data set; `image_folder` is ImageNet."""

examples = pytest.mark.parametrize("path", EXAMPLES, ids=[path.stem for path in EXAMPLES])


def test_the_examples_are_those_that_the_pages_name():
    assert [path.stem for path in EXAMPLES] == [
        "cifar100_wrn", "cifar10_resnet20", "imagenet_resnet50", "mnist", "paper",
    ]  # fmt: skip


@examples
def test_an_example_plans_the_real_data_set(path: Path):
    config = load_config(path)
    plan = make_plan(config, REAL[config.data.name])
    # Stored, each parallel epoch has an exact pass of its own.
    lowest = 0.4 if config.parallel.feed == "stored" else 0.7
    assert lowest < plan.parallel_fraction < 0.95
    assert sum(s.num_batches for s in plan.segments) == plan.num_batches
    assert f"laminar train examples/{path.name}" in path.read_text()


def write_mnist(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    raw = path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for prefix, num in (("train", 20), ("t10k", 6)):
        header = struct.pack(">IIII", 0x803, num, 28, 28)
        pixels = rng.integers(0, 256, num * 784, dtype=np.uint8).tobytes()
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(header + pixels)
        labels = bytes(i % 10 for i in range(num))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, num) + labels)
    return path


def write_images(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rng = np.random.default_rng(0)
    for split, num in (("train", 10), ("val", 2)):
        for name in ("n01440764", "n01443537"):
            (path / split / name).mkdir(parents=True)
            for i in range(num):
                image = Image.fromarray(rng.integers(0, 256, (260, 300, 3), dtype=np.uint8))
                image.save(path / split / name / f"{name}_{i}.JPEG")
    return path


WRITERS: dict[str, Callable[[Path, pytest.MonkeyPatch], Path]] = {
    "mnist": write_mnist,
    "cifar10": write_cifar10,
    "cifar100": write_cifar100,
    "image_folder": write_images,
}


def shrunk(config: Config, root: Path) -> Config:
    """The same run on the data of `root`, with few channels and as few samples as batches allow."""
    num_micro = max(config.parallel.micro_batches, config.correction.micro_batches)
    tree = config.model_dump(mode="json")
    tree["batch_size"] = max(4, num_micro)
    tree["eval_batch_size"] = 4
    tree["model"]["width"] = 4
    tree["data"]["root"] = str(root)
    return Config.model_validate(tree)


@examples
def test_an_example_trains_on_data_of_its_format(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = load_config(path)
    config = shrunk(config, WRITERS[config.data.name](tmp_path, monkeypatch))
    engine = OneProcessEngine(make_plan(config, describe(config.data)))
    before = engine.state()
    engine.train(Segment("parallel", epoch=0, first_batch=0, num_batches=1))
    engine.train(Segment("correction", epoch=1, first_batch=0, num_batches=1))
    after = engine.state()
    unmoved = [name for name in before if torch.equal(before[name], after[name])]
    assert unmoved == []
    assert all(torch.isfinite(tensor).all() for tensor in after.values())
    assert 0 <= engine.evaluate(1) <= 1
