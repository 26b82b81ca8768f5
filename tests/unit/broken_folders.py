"""Folders with something wrong in them, for the mistakes of `mistakes.py`."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from laminar.checkpoint import list_checkpoints
from laminar.config_file import dump_config
from laminar.run_directory import MANIFEST, RunDirectory
from tests.own import own_plan
from tests.tiny import tiny_plan, write_run

Prepare = Callable[[Path], None]


def images(folder: Path) -> None:
    """A good image folder of two classes, two images each."""
    for split in ("train", "test"):
        for name in ("ant", "bee"):
            (folder / "data" / split / name).mkdir(parents=True)
            for i in range(2):
                image = Image.fromarray(np.full((8, 8, 3), 100 * i, np.uint8))
                image.save(folder / "data" / split / name / f"{i}.png")


def other_classes(folder: Path) -> None:
    images(folder)
    (folder / "data/train/bee").rename(folder / "data/train/wasp")


def empty_class(folder: Path) -> None:
    images(folder)
    for path in (folder / "data/test/bee").iterdir():
        path.unlink()


def broken_image(folder: Path) -> None:
    images(folder)
    path = folder / "data/train/bee/1.png"
    path.write_bytes(path.read_bytes()[:40])


def mnist(folder: Path, suffix: str = "", damage: bytes = b"") -> None:
    raw = folder / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix in ("train", "t10k"):
        pixels = struct.pack(">BBBBIII", 0, 0, 8, 3, 9, 28, 28) + bytes(9 * 784)
        (raw / f"{prefix}-images-idx3-ubyte{suffix}").write_bytes(pixels + damage)
        labels = struct.pack(">BBBBI", 0, 0, 8, 1, 9) + bytes(9)
        (raw / f"{prefix}-labels-idx1-ubyte{suffix}").write_bytes(labels)


def packed_mnist(folder: Path) -> None:
    mnist(folder, suffix=".gz")


def damaged_mnist(folder: Path) -> None:
    mnist(folder, damage=b"\0")


def damaged_cifar(folder: Path) -> None:
    """All of CIFAR-100's files, none of them with the published content."""
    (folder / "data/cifar-100-python").mkdir(parents=True)
    for name in ("train", "test", "meta"):
        (folder / "data/cifar-100-python" / name).write_bytes(b"not a pickle")


def finished(folder: Path) -> None:
    """A finished run in `run`."""
    write_run(folder / "run", tiny_plan(3))


def checkpoint(folder: Path) -> Path:
    return list_checkpoints(folder / "run" / "checkpoints")[-1]


def without_checkpoint(folder: Path) -> None:
    finished(folder)
    (checkpoint(folder) / MANIFEST).unlink()


def flipped_bit(folder: Path) -> None:
    finished(folder)
    path = checkpoint(folder) / "stage_000.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut_short(folder: Path) -> None:
    finished(folder)
    path = checkpoint(folder) / "stage_000.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def missing_part(folder: Path) -> None:
    finished(folder)
    (checkpoint(folder) / "stage_000.safetensors").unlink()


def with_manifest(change: Callable[[dict[str, Any]], None]) -> Prepare:
    def prepare(folder: Path) -> None:
        finished(folder)
        path = checkpoint(folder) / MANIFEST
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return prepare


def torn_manifest(folder: Path) -> None:
    finished(folder)
    path = checkpoint(folder) / MANIFEST
    path.write_text(path.read_text()[:200])


def list_manifest(folder: Path) -> None:
    finished(folder)
    (checkpoint(folder) / MANIFEST).write_text("[]")


def other_configuration(folder: Path) -> None:
    """The run's configuration says another network than its checkpoint."""
    finished(folder)
    path = folder / "run" / "config.yaml"
    path.write_text(dump_config(tiny_plan(3, model={"name": "resnet20", "width": 4}).config))


def beside_a_run(name: str, content: bytes) -> Prepare:
    """A finished run and a file."""

    def prepare(folder: Path) -> None:
        finished(folder)
        (folder / name).write_bytes(content)

    return prepare


def weights_of_another_network(folder: Path) -> None:
    finished(folder)
    save_file({"stem.conv1.weight": torch.zeros(8, 3, 3, 3)}, folder / "other.safetensors")


def unfinished(folder: Path) -> None:
    """A run whose first epoch never ended."""
    RunDirectory(folder / "run").create(tiny_plan(3).config)


def torn_yaml(folder: Path) -> None:
    (folder / "bad.yaml").write_text("epochs: [")


def occupied(folder: Path) -> None:
    (folder / "runs" / "mine").mkdir(parents=True)
    (folder / "runs" / "mine" / "notes.txt").write_text("keep me")


def a_file(folder: Path) -> None:
    (folder / "runs").write_text("a file")


def a_pickle(folder: Path) -> None:
    (folder / "w.pth").write_bytes(pickle.dumps({"stem.conv1.weight": Path("w")}))


def other_weights(folder: Path) -> None:
    save_file({}, folder / "w.safetensors")


def own_run(folder: Path) -> None:
    """A finished run in `run` whose network, data and loss are Python code."""
    write_run(folder / "run", own_plan())


def a_search(folder: Path) -> None:
    """A search over the tiny run."""
    tree = (folder / "tiny.yaml").read_text()
    (folder / "search.yaml").write_text(f"{tree}search: {{num_trials: 2}}\n")
