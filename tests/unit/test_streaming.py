"""Images decoded while training: the same pixels as from memory, early, in order, by threads."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, JpegImagePlugin
from torchvision.transforms import CenterCrop, Compose, Resize

from laminar.config import Config, ImageFolderConfig
from laminar.data import InputBatches, describe, open_images, open_inputs, readers
from laminar.data.augment import channel_stats
from laminar.data.decode import central, decode_image
from laminar.data.image_folder import is_streamed
from laminar.data.read_ahead import ReadAhead
from laminar.data.readers import StreamedReader
from laminar.data.resized_crop import crop_bits, crop_boxes
from laminar.errors import DataError
from laminar.evaluation import evaluate_run
from laminar.one_process import OneProcessEngine
from laminar.planning import make_plan
from tests.tiny import differing, run_reference, write_run

SIZE, NUM_TRAIN, NUM_TEST = 8, 10, 5


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of photographs-to-be, of many sizes, JPEG and PNG."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, num in (("train", NUM_TRAIN), ("test", NUM_TEST)):
        for name in ("ant", "bee"):
            (folder / split / name).mkdir(parents=True)
        for i in range(num):
            small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8))
            image = small.resize((9 + 5 * i, 60 - 4 * i), Image.Resampling.BICUBIC)
            image.save(folder / split / ("ant", "bee")[i % 2] / f"{i}.{('png', 'jpg')[i % 3 == 0]}")
    return folder


def config(root: Path, **data: Any) -> Config:
    """Two batches of 4 an epoch, two epochs; nothing fits in memory."""
    values = {
        "name": "image_folder",
        "root": str(root),
        "image_size": SIZE,
        "max_memory_mb": 0,
        "decode_workers": 2,
        "cache_dir": str(root / "cache"),
        **data,
    }
    tree = {"seed": 5, "epochs": 2, "batch_size": 4, "eval_batch_size": 3, "data": values}
    return Config.model_validate({**tree, "model": {"name": "resnet8", "width": 2}})


def whole_run(inputs: InputBatches) -> list[torch.Tensor]:
    """Ask for all batches in a run's order."""
    batches = []
    for epoch in range(2):
        batches += [inputs.train(epoch, batch) for batch in range(NUM_TRAIN // 4)]
        batches += [inputs.test(batch) for batch in range(2)]
    return batches


# -- the pixels ------------------------------------------------------------------------------


@pytest.mark.parametrize("fit", ["squash", "crop"])
@pytest.mark.parametrize("channels", [1, 3])
def test_streamed_batches_are_those_from_memory_to_the_bit(root: Path, fit: str, channels: int):
    same = {"fit": fit, "channels": channels, "crop_padding": 1, "flip": True}
    streamed, in_memory = config(root, **same), config(root, **same, max_memory_mb=1)
    assert isinstance(open_images(streamed, "train"), StreamedReader)
    assert isinstance(open_images(in_memory, "train"), torch.Tensor)
    one, other = open_inputs(streamed), open_inputs(in_memory)
    assert torch.equal(one.mean, other.mean)
    for a, b in zip(whole_run(one), whole_run(other), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("changes", [{"decode_workers": 1}, {"decode_workers": 5}, {"prefetch": 7}])
def test_neither_threads_nor_depth_change_a_pixel(root: Path, changes: dict[str, int]):
    crops = {"resized_crop": {}, "flip": True}
    expected = whole_run(open_inputs(config(root, **crops)))
    for a, b in zip(
        expected, whole_run(open_inputs(config(root, **crops, **changes))), strict=True
    ):
        assert torch.equal(a, b)


def test_central_crops_are_torchvisions(tmp_path: Path):
    rng = np.random.default_rng(1)
    path = tmp_path / "image.png"
    for width, height in ((500, 375), (375, 500), (40, 41), (16, 16), (17, 300), (256, 256)):
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        image.save(path)
        expected = np.asarray(Compose([Resize(37), CenterCrop(32)])(image)).transpose(2, 0, 1)
        found = decode_image(path, 32, 3, central(37, 32))
        assert np.abs(found.astype(int) - expected).max() <= 1
        assert (found == expected).mean() > 0.7  # Pillow takes places as fp32


def test_resized_crops_are_cut_out_of_the_file(root: Path):
    reader = open_images(config(root, resized_crop={}), "train")
    assert isinstance(reader, StreamedReader)
    indices = np.array([4, 8, 1])  # PNGs, which are never decoded at a fraction of their size
    found = reader.start(indices, 1).result()
    assert not torch.equal(found, reader.start(indices, 0).result())
    assert torch.equal(found.flip(0), reader.start(indices[::-1].copy(), 1).result())
    for row, index in enumerate(indices):
        image = Image.open(sorted(root.glob("train/*/*"))[index]).convert("RGB")
        sizes = np.array([image.height]), np.array([image.width])
        bits = crop_bits(5, 1, indices[row : row + 1])
        (box,) = crop_boxes(bits, *sizes, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)).tolist()
        top, left, height, width = box
        part = image.crop((left, top, left + width, top + height))
        expected = np.asarray(part.resize((SIZE, SIZE), Image.Resampling.BILINEAR))
        assert np.array_equal(found[row].permute(1, 2, 0).numpy(), expected)


def test_evaluation_sees_no_random_crop(root: Path):
    random, plain = (open_images(config(root, resized_crop=crop), "train") for crop in ({}, None))
    assert isinstance(random, StreamedReader)
    assert isinstance(plain, StreamedReader)
    indices = np.arange(4)
    assert torch.equal(random.start(indices, None).result(), plain.start(indices, None).result())


@pytest.mark.parametrize(("part", "factor"), [(1.0, 4), (0.5, 2), (0.2, 1)])
def test_a_large_photograph_is_decoded_at_a_fraction_of_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: float, factor: int
):
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (3, 4, 3), np.uint8))
    path = tmp_path / "large.jpg"
    small.resize((401, 303), Image.Resampling.BICUBIC).save(path, quality=95)
    sizes: list[tuple[int, int]] = []
    draft = JpegImagePlugin.JpegImageFile.draft

    def noted(self: Any, *args: Any) -> Any:
        found = draft(self, *args)
        sizes.append(self.size)
        return found

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "draft", noted)

    def view(width: int, height: int) -> tuple[float, float, float, float]:
        return (0.0, 0.0, width * part, height * part)

    whole = decode_image(path, 64, 3, view).astype(int)
    assert sizes == []
    reduced = decode_image(path, 64, 3, view, cuts_out=True).astype(int)
    assert sizes == ([] if factor == 1 else [(-(-401 // factor), -(-303 // factor))])
    assert np.abs(whole - reduced).max() <= 12
    assert np.abs(whole - reduced).mean() <= 2


# -- when they are decoded -------------------------------------------------------------------


def test_what_does_not_fit_the_budget_is_streamed_and_what_is_cut_at_random():
    data = ImageFolderConfig(name="image_folder", root="x", image_size=100, max_memory_mb=3)
    assert not is_streamed(data, "train", 100)
    assert is_streamed(data, "train", 101)
    random = ImageFolderConfig.model_validate({**data.model_dump(), "resized_crop": {}})
    assert is_streamed(random, "train", 1)
    assert not is_streamed(random, "test", 100)


def test_every_batch_is_started_once_and_early(root: Path, monkeypatch: pytest.MonkeyPatch):
    started: list[tuple[list[int], int | None]] = []
    start = StreamedReader.start

    def noted(self: StreamedReader, indices: Any, epoch: int | None) -> Any:
        started.append((indices.tolist(), epoch))
        return start(self, indices, epoch)

    monkeypatch.setattr(StreamedReader, "start", noted)
    stats = {"mean": [0.0] * 3, "std": [1.0] * 3}
    inputs = open_inputs(config(root, prefetch=3, resized_crop={}, **stats))
    inputs.train(0, 0)
    assert [epoch for _, epoch in started] == [0, 0, None, None]
    del started[:]
    inputs = open_inputs(config(root, prefetch=3, resized_crop={}, **stats))
    whole_run(inputs)
    assert [epoch for _, epoch in started] == [0, 0, None, None, 1, 1, None, None]
    assert [indices for indices, epoch in started if epoch is None] == [[0, 1, 2], [3, 4]] * 2


def test_two_threads_decode_at_once(root: Path, monkeypatch: pytest.MonkeyPatch):
    both = threading.Barrier(2, timeout=20)

    def meet(*args: Any, **kwargs: Any) -> Any:
        both.wait()  # breaks, and fails the test, where nobody else decodes
        return decode_image(*args, **kwargs)

    monkeypatch.setattr(readers, "decode_image", meet)
    reader = open_images(config(root), "train")
    assert isinstance(reader, StreamedReader)
    assert len(reader.start(np.arange(4), None).result()) == 4


class Work:
    """Pending work that notes what becomes of it."""

    def __init__(self, key: int, log: list[str]) -> None:
        self.key, self.log = key, log
        log.append(f"start {key}")

    def result(self) -> int:
        self.log.append(f"wait {self.key}")
        if self.key == 13:
            raise DataError("rule", got="13", fix="none")
        return self.key * 10

    def cancel(self) -> None:
        self.log.append(f"cancel {self.key}")


def read_ahead(depth: int, last: int) -> tuple[ReadAhead[int, int], list[str]]:
    log: list[str] = []
    ahead = ReadAhead[int, int](
        lambda key: Work(key, log), lambda key: key + 1 if key < last else None, depth
    )
    return ahead, log


def test_work_is_started_ahead_of_its_turn_and_once():
    ahead, log = read_ahead(depth=2, last=4)
    assert [ahead.get(key) for key in range(5)] == [0, 10, 20, 30, 40]
    assert log == [
        *("start 0", "start 1", "start 2", "wait 0", "start 3", "wait 1", "start 4", "wait 2"),
        *("wait 3", "wait 4"),
    ]


def test_a_jump_leaves_what_is_no_longer_to_come():
    ahead, log = read_ahead(depth=2, last=50)
    assert ahead.get(1) == 10
    del log[:]
    assert ahead.get(3) == 30
    assert log == ["cancel 2", "start 4", "start 5", "wait 3"]
    assert ahead.get(3) == 30  # asked for again: done again


def test_an_error_comes_at_its_turn():
    ahead, _ = read_ahead(depth=2, last=50)
    assert ahead.get(12) == 120
    with pytest.raises(DataError):
        ahead.get(13)
    assert ahead.get(14) == 140


# -- statistics, errors, the engine ----------------------------------------------------------


def test_channels_are_measured_on_a_fixed_sample(root: Path, monkeypatch: pytest.MonkeyPatch):
    reader = open_images(config(root, fit="crop"), "train")
    assert isinstance(reader, StreamedReader)
    images = reader.start(np.array([0, 3, 6]), None).result()
    monkeypatch.setattr(readers, "NUM_SAMPLED", 3)
    inputs = open_inputs(config(root, fit="crop"))
    for found, expected in zip((inputs.mean, inputs.std), channel_stats(images), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("max_memory_mb", [0, 1])
def test_configured_statistics_are_taken(root: Path, max_memory_mb: int):
    stats = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    inputs = open_inputs(config(root, max_memory_mb=max_memory_mb, **stats))
    for found, given in ((inputs.mean, stats["mean"]), (inputs.std, stats["std"])):
        assert found.tolist() == pytest.approx([255 * value for value in given])
    assert open_inputs(config(root)).mean.tolist() != pytest.approx(inputs.mean.tolist())


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_broken_image_is_named_when_its_turn_comes(root: Path, tmp_path: Path, split: str):
    for path in root.glob("*/*/*.*"):
        copy = tmp_path / path.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    broken = tmp_path / split / "bee" / "1.png"
    broken.write_bytes(broken.read_bytes()[:-40])
    stats = {"mean": [0.5] * 3, "std": [0.5] * 3}
    inputs = open_inputs(config(tmp_path, **stats))
    with pytest.raises(DataError, match="every image must be readable") as raised:
        whole_run(inputs)
    assert str(broken) in str(raised.value)


def test_the_engine_trains_on_a_stream_as_the_reference_does(root: Path, tmp_path: Path):
    tree = config(root, resized_crop={}, flip=True, fit="crop", mixup=0.3, cutout=3).model_dump()
    phases = [{"phase": "correction", "epochs": 1}, {"phase": "parallel", "epochs": 1}]
    changed = Config.model_validate({**tree, "num_stages": 2, "phases": phases})
    plan = make_plan(changed, describe(changed.data))
    engine = OneProcessEngine(plan)
    engine.run()
    assert differing(run_reference(plan).state(), engine.state()) == []
    write_run(tmp_path / "run", plan)
    found = evaluate_run(tmp_path / "run")
    assert (found["num_samples"], found["accuracy"]) == (NUM_TEST, engine.evaluate(2))
    assert evaluate_run(tmp_path / "run", split="train")["num_samples"] == NUM_TRAIN
