"""Order and augmentation, batches, and the data sets that come as arrays."""

from __future__ import annotations

import gzip
import importlib.util
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
import torch
from sklearn.datasets import load_digits

from laminar.config import Config, DigitsConfig, MnistConfig, SyntheticConfig
from laminar.data import (
    describe,
    load_images,
    load_labels,
    open_inputs,
    sources,
)
from laminar.data.augment import augment, channel_stats, epoch_order, normalize
from laminar.data.batches import InputBatches, LabelBatches
from laminar.data.philox import philox4x32, sample_bits
from laminar.errors import DataError
from laminar.problem import Problem, num_test_batches

# Known answers of Random123 (Salmon et al. 2011), kat_vectors, philox4x32 with 10 rounds.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def test_philox_gives_the_published_answers():
    for counter, key, expected in KNOWN_ANSWERS:
        k0, k1 = words(key)
        found = philox4x32(np.array([words(counter)], np.uint32), (k0, k1))
        assert found.tolist() == [words(expected)]


def test_philox_of_many_counters_is_that_of_each():
    counters = np.array([words(counter) for counter, _, _ in KNOWN_ANSWERS], np.uint32)
    together = philox4x32(counters, (1, 2))
    assert together.tolist() == [philox4x32(c[None], (1, 2))[0].tolist() for c in counters]


def test_all_of_seed_epoch_stream_and_index_count():
    large = np.array([5 + 2**32])
    index = np.array([5])
    variants = [
        sample_bits(0, 0, 0, index),
        sample_bits(1, 0, 0, index),
        sample_bits(2**32, 0, 0, index),
        sample_bits(0, 1, 0, index),
        sample_bits(0, 0, 1, index),
        sample_bits(0, 0, 0, large),
    ]
    assert len({bits.tobytes() for bits in variants}) == len(variants)


# -- augmentation, normalisation -------------------------------------------------------------


def cropped_and_flipped(image: np.ndarray, index: int, seed: int, epoch: int, padding: int):
    """One sample by hand: pad with zeros, cut out at (top, left), mirror if the coin says so."""
    channels, height, width = image.shape
    bits = [int(b) for b in sample_bits(seed, epoch, 1, np.array([index]))[0]]
    top, left = (bits[i] * (2 * padding + 1) // 2**32 for i in range(2))
    out = np.zeros_like(image)
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                from_y, from_x = y + top - padding, x + left - padding
                if 0 <= from_y < height and 0 <= from_x < width:
                    out[c, y, x] = image[c, from_y, from_x]
    return out[:, :, ::-1] if bits[2] >= 2**31 else out


@pytest.mark.parametrize("padding", [0, 1, 3])
def test_augmentation_equals_a_loop_over_samples(padding: int):
    indices = np.array([7, 0, 123, 5, 8, 2**33, 41, 6])
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(1, 256, (8, 2, 5, 4), dtype=torch.uint8, generator=generator)
    found = augment(images, indices, seed=3, epoch=2, crop_padding=padding, flip=True)
    for row, index in enumerate(indices):
        expected = cropped_and_flipped(images[row].numpy(), int(index), 3, 2, padding)
        assert np.array_equal(found[row].numpy(), expected), index


def test_augmentation_of_a_sample_does_not_depend_on_its_batch():
    images = torch.arange(6 * 36).reshape(6, 1, 6, 6)
    indices = np.array([4, 9, 1, 30, 2, 8])
    kwargs = {"seed": 1, "epoch": 5, "crop_padding": 2, "flip": True}
    whole = augment(images, indices, **kwargs)
    backwards = augment(images.flip(0), indices[::-1].copy(), **kwargs)
    assert torch.equal(whole, backwards.flip(0))
    for row in range(6):
        alone = augment(images[row : row + 1], indices[row : row + 1], **kwargs)
        assert torch.equal(alone[0], whole[row])


def test_crops_reach_every_offset_evenly_and_half_are_mirrored():
    image = torch.zeros(1, 1, 5, 5)
    image[0, 0, 2, 1] = 1  # off the middle, so that a mirrored image shows
    num = 4000
    out = augment(
        image.expand(num, 1, 5, 5), np.arange(num), seed=0, epoch=0, crop_padding=1, flip=True
    )
    places = torch.bincount(out.reshape(num, 25).argmax(1), minlength=25).reshape(5, 5)
    assert (places[1:4].sum(1) - num / 3).abs().max() < 6 * (num * 2 / 9) ** 0.5
    mirrored = int(out[..., 3:].sum()) + int(out[:, 0, :, 2].sum()) / 2
    assert abs(mirrored - num / 2) < 6 * (num / 4) ** 0.5


def test_without_augmentation_nothing_is_copied():
    images = torch.zeros(2, 1, 4, 4)
    assert augment(images, np.arange(2), seed=0, epoch=0, crop_padding=0, flip=False) is images


def test_channel_statistics_are_numpys():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (50, 3, 7, 5), dtype=torch.uint8, generator=generator)
    images[:, 1] //= 9
    mean, std = channel_stats(images)
    pixels = images.numpy().astype(np.float64)
    np.testing.assert_allclose(mean, pixels.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(std, pixels.std((0, 2, 3)), rtol=1e-6)
    assert mean.dtype == std.dtype == torch.float32


def test_a_constant_channel_is_not_divided_by_zero():
    images = torch.full((3, 1, 2, 2), 200, dtype=torch.uint8)
    mean, std = channel_stats(images)
    assert (mean.item(), std.item()) == (200.0, 1.0)
    assert torch.equal(normalize(images, mean, std), torch.zeros(3, 1, 2, 2))


# -- batches ---------------------------------------------------------------------------------


def numbered(num_train: int, num_test: int, **changes: object) -> tuple[InputBatches, LabelBatches]:
    """Batches of 4 (5 in evaluation) of images whose pixels are their own index."""
    data = {"name": "synthetic", **changes}
    config = Config.model_validate({"batch_size": 4, "eval_batch_size": 5, "data": data})
    labels = [torch.arange(n) for n in (num_train, num_test)]
    images = [i.to(torch.uint8)[:, None, None, None].expand(-1, 1, 4, 4) for i in labels]
    stats = torch.zeros(1), torch.ones(1)
    return InputBatches(config, *images, stats), LabelBatches(config, *labels)


def test_the_ragged_last_batch_is_dropped_in_training_and_kept_in_evaluation():
    inputs, labels = numbered(num_train=11, num_test=13)
    seen = torch.cat([labels.train(0, batch) for batch in range(11 // 4)])
    assert len(seen) == len(seen.unique()) == 8
    num = num_test_batches(Config(eval_batch_size=5), 13)
    tests = [labels.test(batch) for batch in range(num)]
    assert [len(y) for y in tests] == [len(inputs.test(b)) for b in range(num)] == [5, 5, 3]
    assert torch.cat(tests).tolist() == list(range(13))


def test_images_and_labels_keep_together():
    inputs, labels = numbered(num_train=30, num_test=7)
    for at in ((0, 0), (0, 6), (1, 3), (0, 2)):
        x, y = inputs.train(*at), labels.train(*at)
        assert torch.equal(x, y.float()[:, None, None, None].expand(4, 1, 4, 4))
        assert x.dtype == torch.float32
    assert torch.equal(inputs.test(1)[:, 0, 0, 0], labels.test(1).float())


def test_a_batch_is_its_samples_in_order_augmented_and_normalised():
    config = Config.model_validate(
        {
            "seed": 4,
            "batch_size": 8,
            "data": {"name": "digits", "crop_padding": 2, "flip": True},
        }
    )
    inputs = open_inputs(config)
    images = load_images(config.data, "train")
    indices = epoch_order(4, 7, len(images))[16:24]
    for row, index in enumerate(indices):
        pixels = cropped_and_flipped(images[index].numpy(), int(index), 4, 7, 2)
        expected = (pixels.astype(np.float64) - float(inputs.mean)) / float(inputs.std)
        np.testing.assert_allclose(inputs.train(7, 2)[row], expected, atol=1e-5)


# -- the data sets ---------------------------------------------------------------------------


def test_digits_are_the_published_halves_unshuffled():
    data = DigitsConfig()
    bunch = load_digits()
    assert describe(data) == Problem((1, 8, 8), 10, 898, 899)
    labels = [load_labels(data, split) for split in ("train", "test")]
    assert torch.cat(labels).tolist() == bunch.target.tolist()
    images = [load_images(data, split) for split in ("train", "test")]
    assert [tuple(i.shape) for i in images] == [(898, 1, 8, 8), (899, 1, 8, 8)]
    pixels = torch.cat(images)
    assert pixels.dtype == torch.uint8
    assert (int(pixels.min()), int(pixels.max())) == (0, 255)
    assert np.array_equal(np.round(pixels[:, 0].numpy() * (16 / 255)), bunch.images)


def test_digits_are_read_without_scikit_learn_and_by_it_where_the_file_is_not(
    monkeypatch: pytest.MonkeyPatch,
):
    with monkeypatch.context() as patch:
        patch.setattr(sklearn.datasets, "load_digits", lambda: pytest.fail("it was asked"))
        ours = sources._digits()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for array, theirs in zip(ours, sources._digits(), strict=True):
        assert array.dtype == theirs.dtype
        assert np.array_equal(array, theirs)


def test_synthetic_images_are_the_same_every_time():
    data = SyntheticConfig(
        name="synthetic", num_train=12, num_test=5, image_size=6, channels=2, num_classes=3
    )
    assert describe(data) == Problem((2, 6, 6), 3, 12, 5)
    train, test = load_images(data, "train"), load_images(data, "test")
    assert (tuple(train.shape), tuple(test.shape)) == ((12, 2, 6, 6), (5, 2, 6, 6))
    torch.manual_seed(99)
    assert torch.equal(load_images(data, "train"), train)
    assert not torch.equal(train[:5], test)
    assert load_labels(data, "test").tolist() == [0, 1, 2, 0, 1]


def write_idx(path: Path, array: np.ndarray) -> None:
    """Write an IDX file of bytes: magic 0 0 8 ndim, sizes as big-endian 32-bit, then the values."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """A folder as MNIST's, with 20 + 10 images."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, num in (("train", 20), ("t10k", 10)):
        images = np.random.default_rng(num).integers(0, 256, (num, 28, 28))
        write_idx(raw / f"{prefix}-images-idx3-ubyte", images)
        write_idx(raw / f"{prefix}-labels-idx1-ubyte", np.arange(num) % 10)
    return tmp_path


def test_mnist_files_are_read(mnist: Path):
    data = MnistConfig(name="mnist", root=str(mnist))
    assert describe(data) == Problem((1, 28, 28), 10, 20, 10)
    for split, num in (("train", 20), ("test", 10)):
        expected = np.random.default_rng(num).integers(0, 256, (num, 28, 28))
        assert np.array_equal(load_images(data, split)[:, 0].numpy(), expected)
        assert load_labels(data, split).tolist() == [i % 10 for i in range(num)]


def test_a_limit_takes_mnist_evenly(mnist: Path):
    whole = MnistConfig(name="mnist", root=str(mnist))
    data = MnistConfig(name="mnist", root=str(mnist), max_train=3, max_test=5)
    assert describe(data) == Problem((1, 28, 28), 10, 3, 5)
    for split, chosen in (("train", [0, 6, 13]), ("test", [0, 2, 4, 6, 8])):
        assert torch.equal(load_images(data, split), load_images(whole, split)[chosen])
        assert load_labels(data, split).tolist() == [i % 10 for i in chosen]


def test_a_processed_folder_beside_mnist_is_never_unpickled(mnist: Path):
    processed = mnist / "MNIST" / "processed"
    processed.mkdir()
    for name in ("training.pt", "test.pt"):
        torch.save((torch.zeros(3, 28, 28, dtype=torch.uint8), torch.zeros(3)), processed / name)
    assert len(load_labels(MnistConfig(name="mnist", root=str(mnist)), "train")) == 20


def short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def long(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def of_another_type(path: Path) -> None:
    path.write_bytes(b"\0\0\x0a" + path.read_bytes()[3:])


def fewer(path: Path) -> None:
    write_idx(path, np.zeros(7))


def large_labels(path: Path) -> None:
    write_idx(path, np.full(20, 10))


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *((name, damage) for name in (IMAGES, LABELS) for damage in (short, long, empty)),
        (IMAGES, of_another_type),
        (LABELS, fewer),
        (LABELS, large_labels),
        (IMAGES, lambda path: write_idx(path, np.zeros((20, 27, 28)))),
        (IMAGES, lambda path: write_idx(path, np.zeros((20, 784)))),
    ],
)
def test_a_damaged_mnist_file_is_one_line(mnist: Path, name: str, damage):
    damage(mnist / "MNIST" / "raw" / name)
    with pytest.raises(DataError, match="MNIST's IDX files must be whole"):
        load_images(MnistConfig(name="mnist", root=str(mnist)), "train")


@pytest.mark.parametrize("prefix", ["train", "t10k"])
def test_packed_mnist_files_are_to_be_unpacked(mnist: Path, prefix: str):
    path = mnist / "MNIST" / "raw" / f"{prefix}-labels-idx1-ubyte"
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    with pytest.raises(DataError, match=rf"only the packed .*{path.name}\.gz.*gunzip"):
        describe(MnistConfig(name="mnist", root=str(mnist)))


def test_absent_mnist_files_are_named(mnist: Path):
    (mnist / "MNIST" / "raw" / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(DataError, match="MNIST/raw/t10k-images-idx3-ubyte"):
        describe(MnistConfig(name="mnist", root=str(mnist)))


def test_the_real_mnist(shared_data: Path, tmp_path: Path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for packed in (shared_data / "mnist").glob("*.gz"):
        with gzip.open(packed) as source, (raw / packed.stem).open("wb") as target:
            shutil.copyfileobj(source, target)
    data = MnistConfig(name="mnist", root=str(tmp_path))
    assert describe(data) == Problem((1, 28, 28), 10, 60_000, 10_000)
    mean, std = channel_stats(load_images(data, "train"))
    # The figures that everybody normalises MNIST with.
    assert mean.item() / 255 == pytest.approx(0.1307, abs=5e-5)
    assert std.item() / 255 == pytest.approx(0.3081, abs=5e-5)
    assert load_labels(data, "train")[:5].tolist() == [5, 0, 4, 1, 9]
    assert load_labels(data, "test")[:5].tolist() == [7, 2, 1, 0, 4]
