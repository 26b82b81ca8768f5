"""Images of ImageNet's shapes that a stage decodes in a second, and torch's loader beside it.

    python -m benchmarks.decode [--num-images 1280] [--workers 1 2] [--rounds 3]

The images are parts of the two photographs that ship with scikit-learn, 500x375, the usual shape
of ImageNet's, as JPEG of quality 95. Nothing is trained; the best round counts. Processor time can
be compared where something else runs, too.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from laminar.config import Config
from laminar.data import InputBatches, open_images

BATCH_SIZE = 64


def write_images(root: Path, num: int) -> None:
    """Write `num` training images and one test image, of one class."""
    photographs = load_sample_images().images
    rng = np.random.default_rng(0)
    for split, count in (("train", num), ("test", 1)):
        (root / split / "one").mkdir(parents=True)
        for i in range(count):
            pixels = photographs[i % 2]
            y, x = rng.integers(0, pixels.shape[0] - 375), rng.integers(0, pixels.shape[1] - 500)
            image = Image.fromarray(pixels[y : y + 375, x : x + 500])
            image.save(root / split / "one" / f"{i:05d}.jpg", quality=95)


def ours(root: Path, workers: int, *, random: bool) -> Iterator[int]:
    """Yield the size of each batch, augmented and normalised, as stage 0 gets it."""
    data = {
        "name": "image_folder",
        "root": str(root),
        "image_size": 224,
        "fit": "crop",
        "flip": random,
        "max_memory_mb": 0,
        "decode_workers": workers,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "resized_crop": {} if random else None,
    }
    config = Config.model_validate({"batch_size": BATCH_SIZE, "epochs": 1, "data": data})
    train = open_images(config, "train")
    inputs = InputBatches(config, train, open_images(config, "test"))
    for batch in range(len(train) // BATCH_SIZE):
        yield len(inputs.train(0, batch))


def torchs(root: Path, workers: int) -> Iterator[int]:
    """Do the same with torchvision's dataset and transforms and torch's loader of processes."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    transform = v2.Compose(
        [
            v2.RandomResizedCrop(224),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    loader = torch.utils.data.DataLoader(
        ImageFolder(str(root / "train"), transform),
        batch_size=BATCH_SIZE,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
    )
    for images, _ in loader:
        yield len(images)


def speed(make: Callable[[], Iterator[int]], rounds: int) -> tuple[float, float]:
    """Return images per second and seconds of processor time per image, of the best round each.

    The first batch, for which everything starts, is not in the former.
    """
    fastest, cheapest = 0.0, float("inf")
    for _ in range(rounds):
        used = _processor_s()
        batches = make()
        first = next(batches)
        started = time.perf_counter()
        num = sum(batches)
        fastest = max(fastest, num / (time.perf_counter() - started))
        cheapest = min(cheapest, (_processor_s() - used) / (first + num))
    return fastest, cheapest


def _processor_s() -> float:
    """Return what this process and its children that have ended have used, in seconds."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-images", type=int, default=1280)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_images(root, args.num_images)
        size = sum(path.stat().st_size for path in root.rglob("*.jpg")) / (args.num_images + 1)
        print(f"{args.num_images} images of {size / 1000:.0f} KB, {os.cpu_count()} CPUs")
        for workers in args.workers:
            for name, make in (
                ("random resized crop", lambda w=workers: ours(root, w, random=True)),
                ("central crop", lambda w=workers: ours(root, w, random=False)),
                ("torch's DataLoader", lambda w=workers: torchs(root, w)),
            ):
                per_s, seconds = speed(make, args.rounds)
                cost = f"{seconds * 1000:.2f} ms of a processor each"
                print(f"{workers} workers, {name}: {per_s:.0f} images/s, {cost}", flush=True)


if __name__ == "__main__":
    main()
