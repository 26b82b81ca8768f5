"""Images in folders: any size and mode, decoded once, and one line for what cannot be used."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from laminar.config import ImageFolderConfig
from laminar.data import describe, load_images, load_labels
from laminar.data.decode import decode_image
from laminar.data.image_folder import list_split
from laminar.errors import DataError
from laminar.plan import Problem

SIZE = 8
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes, three training images and one test image in each, of all sizes."""
    rng = np.random.default_rng(0)
    for split, num in (("train", 3), ("test", 1)):
        for name in ("ant", "bee"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(num):
                pixels = rng.integers(0, 256, (5 + 3 * i, 12, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "images"


def config(root: Path, **changes: Any) -> ImageFolderConfig:
    values = {"image_size": SIZE, "cache_dir": str(root.parent / "cache"), **changes}
    return ImageFolderConfig(name="image_folder", root=str(root), **values)


def test_classes_are_the_folders_and_files_are_sorted(root: Path):
    (root / "train" / "ant" / "notes.txt").write_text("not an image")
    data = config(root)
    assert describe(data) == Problem((3, SIZE, SIZE), 2, 6, 2, ("ant", "bee"))
    assert load_labels(data, "train").tolist() == [0, 0, 0, 1, 1, 1]
    listing = list_split(data, "train")
    assert listing.class_names == ("ant", "bee")
    assert listing.names == tuple(f"{name}/{i}.png" for name in ("ant", "bee") for i in range(3))
    assert listing.path(4) == root / "train" / "bee" / "1.png"


def test_a_limit_takes_images_evenly(root: Path):
    data = config(root, max_train=3)
    assert describe(data).num_train == 3
    whole = load_images(config(root), "train")
    assert torch.equal(load_images(data, "train"), whole[[0, 2, 4]])
    assert load_labels(data, "train").tolist() == [0, 0, 1]


def test_images_are_resized_with_pillows_bilinear_filter(root: Path):
    images = load_images(config(root), "train")
    assert (tuple(images.shape), images.dtype) == ((6, 3, SIZE, SIZE), torch.uint8)
    file = Image.open(root / "train" / "bee" / "2.png")
    expected = np.asarray(file.resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    assert np.array_equal(images[5].permute(1, 2, 0).numpy(), expected)


def painted(mode: str) -> Image.Image:
    """Return an image of one colour in a mode, and of the size that needs no resizing."""
    size = (SIZE, SIZE)
    if mode == "I;16":
        return Image.fromarray(np.full(size, 300 * 257 // 3, np.uint16))
    if mode == "P":
        image = Image.new("P", size, 7)
        image.putpalette([0] * 21 + [200, 100, 50])
        return image
    color = {
        "1": 1,
        "L": 90,
        "LA": (90, 128),
        "RGB": (200, 100, 50),
        "RGBA": (200, 100, 50, 0),
        "CMYK": (0, 255, 255, 0),
        "I": 90,
    }[mode]
    return Image.new(mode, size, color)


# What a pixel must be as RGB, and as grey (ITU-R 601: .299 R + .587 G + .114 B).
MODES = [
    ("1", "png", (255, 255, 255), 255),
    ("L", "png", (90, 90, 90), 90),
    ("LA", "png", (90, 90, 90), 90),
    ("RGB", "bmp", (200, 100, 50), 124),
    ("RGBA", "png", (200, 100, 50), 124),
    ("P", "gif", (200, 100, 50), 124),
    ("P", "png", (200, 100, 50), 124),
    ("I", "tif", (90, 90, 90), 90),
    ("I;16", "png", (100, 100, 100), 100),
    ("CMYK", "tif", (255, 0, 0), 76),
]


@pytest.mark.parametrize(("mode", "suffix", "rgb", "grey"), MODES)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_becomes_rgb_or_grey(root: Path, mode: str, suffix: str, rgb, grey, channels):
    image = painted(mode)
    image.save(root / "test" / "ant" / f"0.{suffix.upper()}")
    (root / "test" / "ant" / "0.png").unlink()
    found = load_images(config(root, channels=channels), "test")[0]
    expected = torch.tensor(rgb if channels == 3 else (grey,), dtype=torch.uint8)
    assert torch.equal(found, expected[:, None, None].expand(-1, SIZE, SIZE))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_a_photograph_is_turned_as_its_exif_says(root: Path, suffix: str):
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    pixels[:, : SIZE // 2], pixels[:, SIZE // 2 :] = RED, BLUE
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 90 degrees clockwise
    (root / "test" / "ant" / "0.png").unlink()
    extra = {"quality": 100, "subsampling": 0} if suffix == "jpg" else {}
    Image.fromarray(pixels).save(root / "test" / "ant" / f"0.{suffix}", exif=exif, **extra)
    found = load_images(config(root), "test")[0].permute(1, 2, 0).int()
    for half, color in ((found[: SIZE // 2 - 1], RED), (found[SIZE // 2 + 1 :], BLUE)):
        assert (half - torch.tensor(color)).abs().max() < 40


@pytest.mark.parametrize("orientation", range(11))
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_every_orientation_is_undone_as_pillow_does(tmp_path: Path, suffix: str, orientation: int):
    path, exif = tmp_path / f"image.{suffix}", Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    Image.fromarray(pixels).save(path, exif=exif)
    turned = ImageOps.exif_transpose(Image.open(path))
    expected = np.asarray(turned.resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    assert np.array_equal(decode_image(path, SIZE, 3).transpose(1, 2, 0), expected)


def exif_record(*tags: tuple[int, int, int, int]) -> bytes:
    """Return the EXIF record of (tag, type, count, value or its place), right or not."""
    content = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + content + bytes(64)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of some of these tags
@pytest.mark.parametrize("kind", range(14))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_an_odd_tag_of_exif_spoils_no_photograph(tmp_path: Path, suffix: str, kind: int):
    path = tmp_path / f"image.{suffix}"

    def decoded(*tags: tuple[int, int, int, int]) -> np.ndarray:
        Image.linear_gradient("L").convert("RGB").save(path, exif=exif_record(*tags))
        return decode_image(path, SIZE, 1)

    upright = (0x0112, 3, 1, 6)
    for tag in (0x010F, 0x8769):  # a text, and where further tags lie
        assert np.array_equal(decoded((tag, kind, 1, 65), upright), decoded(upright))
    turned, as_it_is = decoded(upright), decoded()
    for count in (1, 2):
        found = decoded((0x0112, kind, count, 6))
        assert np.array_equal(found, turned) or np.array_equal(found, as_it_is)


@pytest.mark.parametrize(("top", "expected"), [(200, 1), (255, 1), (400, 2), (65535, 255)])
@pytest.mark.parametrize(
    ("mode", "suffix"), [("<u2", "png"), ("<u2", "tif"), (">u2", "tif"), (">u2", "pgm")]
)
def test_greys_of_16_bits_share_one_scale(
    tmp_path: Path, mode: str, suffix: str, top: int, expected: int
):
    """However dark a scan is: its greys mean what those of its neighbours do."""
    path, levels = tmp_path / f"image.{suffix}", np.full((SIZE, SIZE), top, mode)
    if suffix == "pgm":  # opens in mode I, as a PNG did in Pillow 10.0
        path.write_bytes(b"P5 %d %d 65535\n" % levels.shape + levels.tobytes())
    else:
        raw = "I;16B" if mode == ">u2" else "I;16"
        Image.frombytes(raw, levels.shape, levels.tobytes()).save(path)
    assert (decode_image(path, SIZE, 1) == expected).all()


def test_decoding_is_reported(root: Path):
    seen = []
    load_images(config(root), "train", lambda done, total: seen.append((done, total)))
    assert seen[-1] == (6, 6)


# -- the cache -------------------------------------------------------------------------------


def cache_files(root: Path) -> list[Path]:
    return sorted((root.parent / "cache").glob("*"))


def test_the_cache_gives_what_was_decoded(root: Path):
    decoded = load_images(config(root), "train")
    (cached,) = cache_files(root)
    assert np.array_equal(np.load(cached), decoded.numpy())
    assert torch.equal(load_images(config(root), "train"), decoded)
    # That the file was read, and no image: what lies in it comes back, whatever it is.
    np.save(cached, np.zeros_like(decoded.numpy()))
    assert not load_images(config(root), "train").any()


def test_a_name_that_is_no_utf_8_is_as_good_as_any(root: Path):
    path = root / "test" / "ant" / "0.png"
    expected = load_images(config(root), "test")
    path.rename(path.with_name(os.fsdecode(b"caf\xe9.png")))
    for _ in range(2):
        assert torch.equal(load_images(config(root), "test"), expected)
    assert len(cache_files(root)) == 2


def repaint(path: Path) -> None:
    """Replace an image by another of the same size in bytes, at another time."""
    Image.new("RGB", (SIZE, SIZE), GREEN).save(path, format="bmp")
    os.utime(path, ns=(1, 1))
    size = path.stat().st_size
    Image.new("RGB", (SIZE, SIZE), RED).save(path, format="bmp")
    assert path.stat().st_size == size


@pytest.mark.parametrize(
    "change", ["content", "size", "name", "image_size", "channels", "fit", "new"]
)
def test_whatever_changes_the_pixels_is_decoded_again(root: Path, change: str):
    path, data = root / "train" / "ant" / "0.png", config(root)
    Image.new("RGB", (SIZE, SIZE), GREEN).save(path, format="bmp")
    os.utime(path, ns=(1, 1))
    before = load_images(data, "train")
    if change == "content":
        repaint(path)
    elif change == "size":
        Image.new("RGB", (SIZE, SIZE + 1), RED).save(path, format="bmp")
        os.utime(path, ns=(1, 1))
    elif change == "name":
        path.rename(path.with_name("9.png"))
    elif change == "new":
        Image.new("RGB", (2, 2)).save(path.with_name("00.png"))
    else:
        values = {"image_size": 4, "channels": 1, "fit": "crop"}
        data = config(root, **{change: values[change]})
    after = load_images(data, "train")
    assert len(cache_files(root)) == 2
    assert after.shape != before.shape or not torch.equal(after, before)


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", b"not an array", "cut", "pickle"])
def test_a_damaged_cache_is_decoded_again_and_never_unpickled(root: Path, damage: Any):
    decoded = load_images(config(root), "train").clone()
    (cached,) = cache_files(root)
    if damage == "cut":
        damage = cached.read_bytes()[:-100]
    if damage == "pickle":
        np.save(cached, np.array([object]), allow_pickle=True)
    else:
        cached.write_bytes(damage)
    assert torch.equal(load_images(config(root), "train"), decoded)
    assert np.array_equal(np.load(cached), decoded.numpy())


def test_a_cache_that_cannot_be_written_is_no_error(root: Path):
    (root.parent / "cache").write_text("a file where the folder should be")
    assert len(load_images(config(root), "train")) == 6
    assert (root.parent / "cache").read_text().startswith("a file")


# -- what cannot be used ---------------------------------------------------------------------


@pytest.mark.parametrize("how", ["text", "empty", "cut", "absent header"])
def test_a_broken_image_is_named(root: Path, how: str):
    path = root / "train" / "bee" / "1.png"
    whole = path.read_bytes()
    broken = {"text": b"hello", "empty": b"", "cut": whole[:-40], "absent header": whole[16:]}
    path.write_bytes(broken[how])
    with pytest.raises(DataError, match="every image must be readable") as raised:
        load_images(config(root), "train")
    assert str(path) in str(raised.value)
    assert not cache_files(root)


def test_a_missing_split_is_named(root: Path):
    with pytest.raises(DataError, match=r"must hold a folder `val`.*data\.test_split"):
        describe(config(root, test_split="val"))


def test_a_split_without_classes_is_refused(root: Path):
    (root / "flat").mkdir()
    (root / "flat" / "0.png").write_bytes((root / "test" / "ant" / "0.png").read_bytes())
    with pytest.raises(DataError, match=r"one folder per class.*ROOT/SPLIT/CLASS/FILE"):
        describe(config(root, test_split="flat"))


def test_an_empty_class_is_refused(root: Path):
    (root / "test" / "ant" / "0.png").unlink()
    with pytest.raises(DataError, match=r"at least one image.*ant"):
        describe(config(root))


def test_classes_must_agree_between_the_splits(root: Path):
    (root / "train" / "bee").rename(root / "train" / "cat")
    with pytest.raises(DataError, match=r"the same classes.*`bee` in only one of"):
        describe(config(root))


def test_a_link_to_nowhere_is_named(root: Path):
    path = root / "train" / "bee" / "1.png"
    path.unlink()
    path.symlink_to(root / "nowhere.png")
    with pytest.raises(DataError, match=r"every image must be readable.*bee/1\.png"):
        load_images(config(root), "train")


def test_a_folder_that_cannot_be_read_is_named(root: Path, monkeypatch: pytest.MonkeyPatch):
    listdir = os.listdir

    def refused(path: Any) -> list[str]:  # root reads every folder, whatever its permissions
        if Path(path).name == "bee":
            raise PermissionError(13, "Permission denied", str(path))
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refused)
    with pytest.raises(DataError, match=r"every folder of a split must be readable.*train/bee"):
        list_split(config(root), "train")
