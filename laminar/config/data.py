"""The data sets."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from laminar.config.base import FrozenModel


class _Augmented(FrozenModel):
    crop_padding: int = Field(
        0, ge=0, le=16, description="Zero padding, in pixels, before the random crop; 0 is no crop."
    )
    flip: bool = Field(False, description="Mirror each training image with probability 1/2.")


class DigitsConfig(_Augmented):
    """The 1,797 scans of handwritten digits that ship with scikit-learn; nothing is downloaded."""

    name: Literal["digits"] = "digits"
    crop_padding: int = Field(
        1, ge=0, le=16, description="Zero padding, in pixels, before the random crop; 0 is no crop."
    )


class MnistConfig(_Augmented):
    """MNIST through torchvision, from files already on disk."""

    name: Literal["mnist"]
    root: str = Field(description="Folder that holds MNIST/raw/*-ubyte[.gz], as torchvision wants.")


class ImageFolderConfig(_Augmented):
    """Images laid out as ROOT/train/CLASS/FILE and ROOT/test/CLASS/FILE, any size and mode."""

    name: Literal["image_folder"]
    root: str = Field(description="Folder with one sub-folder per split, then one per class.")
    image_size: int = Field(32, ge=4, le=1024, description="Height and width after resizing.")
    channels: Literal[1, 3] = Field(3, description="1 reads images as grey, 3 as RGB.")
    train_split: str = Field("train", description="Name of the training sub-folder.")
    test_split: str = Field("test", description="Name of the test sub-folder.")
    max_train: int | None = Field(
        None, ge=1, description="Use only so many training images, evenly spread over the listing."
    )
    max_test: int | None = Field(
        None, ge=1, description="Use only so many test images, evenly spread over the listing."
    )
    cache_dir: str | None = Field(
        None, description="Where decoded images are kept between runs; null is the user's cache."
    )


class SyntheticConfig(_Augmented):
    """Random images for throughput measurements; there is nothing to learn in them."""

    name: Literal["synthetic"]
    num_train: int = Field(2048, ge=1, description="Training images.")
    num_test: int = Field(256, ge=1, description="Test images.")
    image_size: int = Field(32, ge=4, le=1024, description="Height and width.")
    channels: int = Field(3, ge=1, le=16, description="Channels.")
    num_classes: int = Field(10, ge=2, description="Classes.")


DataConfig = Annotated[
    DigitsConfig | MnistConfig | ImageFolderConfig | SyntheticConfig, Field(discriminator="name")
]
