"""`laminar predict`: images of any kind, named by the network as its own test images are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from laminar.checkpoint import list_checkpoints, read_manifest
from laminar.config import Config, DigitsConfig, ImageFolderConfig
from laminar.data import describe, load_image, load_images
from laminar.inference import load_network, predict
from laminar.planning import make_plan
from laminar.run_directory import MANIFEST
from tests.tiny import tiny_plan, write_run

Laminar = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on digits, and three of its test images as files of different kinds beside it."""
    path = tmp_path_factory.mktemp("predict")
    config = Config.model_validate({"epochs": 1, "model": {"name": "resnet8", "width": 8}})
    write_run(path / "run", make_plan(config, describe(config.data)))
    pixels = load_images(DigitsConfig(), "test")[:3, 0].numpy()
    Image.fromarray(pixels[0]).save(path / "grey.png")
    Image.fromarray(np.repeat(pixels[1][..., None], 3, 2)).save(path / "rgb [1].png")
    Image.fromarray(pixels[2]).resize((31, 17)).convert("RGBA").save(path / "large.webp")
    return path


def test_an_image_is_named_as_the_network_evaluates_it(digits: Path):
    network = load_network(digits / "run")
    names = [digits / "grey.png", digits / "rgb [1].png"]
    found = list(predict(network, names, top=10))
    with torch.no_grad():
        pixels = load_images(DigitsConfig(), "test")[:2].float() / 255
        expected = network.module(pixels).softmax(1)
    for name, prediction, row in zip(names, found, expected, strict=True):
        assert prediction.image == name
        assert prediction.probabilities == tuple(row[list(prediction.labels)].tolist())
        assert sorted(prediction.probabilities, reverse=True) == list(prediction.probabilities)
        assert sum(prediction.probabilities) == pytest.approx(1, abs=1e-5)
        assert prediction.class_names == tuple(str(n) for n in prediction.labels)


def test_a_prediction_does_not_depend_on_how_many_there_are(digits: Path):
    network = load_network(digits / "run")
    files = [digits / "grey.png"] * 300  # more than one batch of 256
    found = list(predict(network, files, top=1))
    assert len(found) == 300
    assert {p.labels for p in found} == {next(iter(predict(network, files[:1], top=1))).labels}


def test_json_is_one_object_a_line(digits: Path, laminar: Laminar):
    files = [digits / name for name in ("grey.png", "rgb [1].png", "large.webp")]
    code, out, err = laminar("predict", digits / "run", *files, "--json", "--top", 2)
    assert (code, err) == (0, "")
    found = [json.loads(line) for line in out.splitlines()]
    assert [entry["image"] for entry in found] == [str(file) for file in files]
    for entry in found:
        assert [len(entry["top"]), entry["class"]] == [2, str(entry["label"])]
        assert entry["top"][0]["probability"] == entry["probability"]
        assert entry["probability"] >= entry["top"][1]["probability"] > 0


def test_the_table_has_a_row_for_each_image(digits: Path, laminar: Laminar):
    files = [digits / "grey.png", digits / "rgb [1].png"]
    code, out, _ = laminar("predict", digits / "run", *files)
    assert code == 0
    header, *rows = out.splitlines()
    assert header.split() == ["image", "class", "probability", "then"]
    for row, file in zip(rows, files, strict=True):
        assert row.startswith(str(file))
        assert row.count("%") == 3


def folder_run(path: Path) -> Path:
    for split in ("train", "test"):
        for n, name in enumerate(("[ant]", "bee")):
            (path / "data" / split / name).mkdir(parents=True)
            for i in range(4):
                image = Image.fromarray(np.full((8, 8, 3), 100 * n + i, np.uint8))
                image.save(path / "data" / split / name / f"{i}.png")
    data = {
        "name": "image_folder", "root": str(path / "data"), "image_size": 8,
        "cache_dir": str(path / "cache"),
    }  # fmt: skip
    config = Config.model_validate(
        {"epochs": 1, "batch_size": 4, "model": {"name": "resnet8", "width": 2}, "data": data}
    )
    write_run(path / "run", make_plan(config, describe(config.data)))
    return path / "run"


def test_classes_go_by_their_folders_names(tmp_path: Path, laminar: Laminar):
    run = folder_run(tmp_path)
    image = tmp_path / "data/test/bee/0.png"
    code, out, _ = laminar("predict", run, image, "--json")
    assert code == 0
    assert {entry["class"] for entry in json.loads(out)["top"]} == {"[ant]", "bee"}
    image.rename(tmp_path / "bee.png")
    (tmp_path / "data").rename(tmp_path / "gone")
    code, out, _ = laminar("predict", run, tmp_path / "bee.png")
    assert code == 0, "a network that has left its data must still predict"
    assert "[ant]" in out


@pytest.mark.parametrize("fit", ["squash", "crop"])
def test_an_image_is_prepared_as_a_test_image(fit: str, tmp_path: Path):
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("ant", "bee"):
            (tmp_path / split / name).mkdir(parents=True)
            image = Image.fromarray(rng.integers(0, 256, (20, 33, 3), dtype=np.uint8))
            image.save(tmp_path / split / name / "a.png")
    data = ImageFolderConfig.model_validate(
        {
            "name": "image_folder", "root": str(tmp_path), "image_size": 8, "fit": fit,
            "cache_dir": str(tmp_path / "cache"),
        }
    )  # fmt: skip
    expected = load_images(data, "test")
    for row, name in zip(expected, ("ant", "bee"), strict=True):
        found = load_image(data, describe(data), tmp_path / "test" / name / "a.png")
        assert torch.equal(found, row)


def test_a_checkpoint_of_before_class_names_still_loads(digits: Path):
    path = list_checkpoints(digits / "run" / "checkpoints")[-1] / MANIFEST
    content = json.loads(path.read_text())
    assert content["problem"].pop("class_names") == []
    path.write_text(json.dumps(content))
    assert read_manifest(path.parent).plan.problem == describe(DigitsConfig())


def test_a_network_of_other_channels_than_files_have_refuses(tmp_path: Path, laminar: Laminar):
    data = tiny_plan().config.data.model_copy(update={"channels": 4})
    write_run(tmp_path / "run", tiny_plan(3, data=data.model_dump()))
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    code, out, err = laminar("predict", tmp_path / "run", tmp_path / "a.png")
    assert (code, out) == (2, "")
    assert "4 channels in data set synthetic" in err
