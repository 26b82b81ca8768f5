"""Whatever bytes lie in an image file, they give an image or one line."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from laminar.data.decode import decode_image
from laminar.errors import DataError


def encoded(kind: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(
            file, kind, **({} if kind in ("bmp", "gif") else {"exif": exif})
        )
        return file.getvalue()


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "bmp", "tiff", "webp"])
@given(data=st.data())
@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_damaged_image_is_decoded_or_refused(tmp_path, kind, data):
    content = bytearray(encoded(kind))
    content = (
        content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    )
    for _ in range(data.draw(st.integers(0, 4))):
        if content:
            # Headers are where a byte does most harm.
            place = data.draw(
                st.integers(0, min(len(content), 128) - 1) | st.integers(0, len(content) - 1)
            )
            content[place] = data.draw(st.integers(0, 255))
    path = tmp_path / f"image.{kind}"
    path.write_bytes(content)
    line = pixels = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of what it could mend
        try:
            pixels = decode_image(path, 8, 3)
        except DataError as error:
            line = str(error)
    if pixels is None:
        assert str(path) in line
        assert len(line.splitlines()) == 1
    else:
        assert (pixels.shape, pixels.dtype) == ((3, 8, 8), np.uint8)
