"""One image file to a square of pixels: which part of it, and how it is decoded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from laminar.errors import DataError

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels of the image."""
View = Callable[[int, int], Box]
"""Which part of an image of (width, height) is resized to the square."""

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each orientation of EXIF; Pillow's angles are counterclockwise."""
_16_BIT_FORMATS = ("PNG", "PPM")
"""Formats of which only greys of 16 bits open in mode `I`; PNG does so in old Pillow alone."""


def squash(width: int, height: int) -> Box:
    """Take all of the image, whatever its shape."""
    return (0.0, 0.0, width, height)


def central(shorter_side: int, size: int) -> View:
    """Take what a resize of the shorter side and a central crop would show.

    Equal to torchvision's `Resize(shorter_side)` and `CenterCrop(size)` up to rounding, without
    resizing what the crop throws away.

    Args:
        shorter_side: Pixels of the shorter side after the resize, >= size.
        size: Height and width of the crop.
    """

    def view(width: int, height: int) -> Box:
        if width <= height:
            new_width, new_height = shorter_side, int(shorter_side * height / width)
        else:
            new_width, new_height = int(shorter_side * width / height), shorter_side
        left, top = round((new_width - size) / 2), round((new_height - size) / 2)
        x, y = width / new_width, height / new_height
        return (left * x, top * y, (left + size) * x, (top + size) * y)

    return view


def decode_image(
    path: Path, size: int, channels: int, view: View = squash, *, cuts_out: bool = False
) -> NDArray[np.uint8]:
    """Decode a file of any format and mode that Pillow reads.

    Args:
        path: The file.
        size: Height and width to resize to, bilinearly, smoothed where that shrinks.
        channels: 1 for grey, 3 for RGB.
        view: Which part of the image.
        cuts_out: Whether the part is cut out before it is resized, so that nothing beside it shows
            at its edges. A JPEG is then decoded at 1/2, 1/4 or 1/8 of its size where the part has
            pixels enough: several times faster, and slightly different.

    Returns:
        uint8 [channels, size, size].

    Raises:
        DataError: The file is not an image, or is damaged.
    """
    try:
        with Image.open(path) as file:
            image, box = _turned(file, size, view, cuts_out)
            image = _in_mode(image, "RGB" if channels == 3 else "L", file.format)
            if cuts_out:
                left, top, right, bottom = (round(place) for place in box)
                image = image.crop((left, top, right, bottom))
                box = squash(*image.size)
            if image.size != (size, size) or box != squash(size, size):
                image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
            pixels = np.asarray(image, np.uint8)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file makes Pillow raise whatever it stumbles over
        says_why = isinstance(error, OSError | SyntaxError | ValueError)
        raise DataError(
            "every image must be readable",
            got=f"{path}: {error if says_why else repr(error)}",
            fix="replace or remove the file",
        ) from error
    return pixels.transpose(2, 0, 1) if channels == 3 else pixels[None]


def _turned(file: Image.Image, size: int, view: View, cuts_out: bool) -> tuple[Image.Image, Box]:
    """Return the image as its EXIF record says it was held, and the part of it to show."""
    if file.format != "JPEG":
        # A TIFF is turned as it is loaded, and a PNG may have its EXIF behind its pixels.
        file.load()
    orientation = _orientation(file)
    if orientation != 1:
        image = file.transpose(_TURNS[orientation]) if orientation in _TURNS else file
        return image, view(*image.size)
    width, height = file.size
    box = left, top, right, bottom = view(width, height)
    if cuts_out and file.format == "JPEG":
        reduction = min(right - left, bottom - top) // size
        if reduction >= 2:
            wanted = max(1, int(width // reduction)), max(1, int(height // reduction))
            file.draft(None, wanted)
            x, y = file.width / width, file.height / height
            box = left * x, top * y, right * x, bottom * y
    return file, box


def _orientation(file: Image.Image) -> int:
    """Return how EXIF says the camera was held; 1, upright, where it cannot be read.

    ImageOps.exif_transpose would write all of EXIF anew, and fail on any tag that is damaged.
    """
    try:
        orientation: int = file.getexif().get(_ORIENTATION, 1)
    except Exception:  # whatever is wrong with EXIF, the pixels are there without it
        return 1
    return orientation


def _in_mode(image: Image.Image, mode: str, file_format: str | None) -> Image.Image:
    if image.mode.startswith("I"):
        # 16-bit and 32-bit greys clip on conversion: bring them to 8 bits first.
        levels = np.asarray(image, np.float64)
        is_16_bit = image.mode != "I" or file_format in _16_BIT_FORMATS
        top = 65535.0 if is_16_bit or levels.max(initial=0) > 255 else 255.0
        image = Image.fromarray(np.rint(levels * (255.0 / top)).clip(0, 255).astype(np.uint8))
    elif image.mode in ("P", "PA"):
        image = image.convert("RGBA")
    return image if image.mode == mode else image.convert(mode)
