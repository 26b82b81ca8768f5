"""The data sets."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from laminar.config.base import FrozenModel
from laminar.errors import ConfigError


class ResizedCropConfig(FrozenModel):
    """A random part of each training image, resized to the whole; as torchvision defines it."""

    scale: tuple[float, float] = Field(
        (0.08, 1.0), description="Smallest and largest share of the image's area, in 0..1."
    )
    ratio: tuple[float, float] = Field(
        (3 / 4, 4 / 3), description="Smallest and largest width over height of the part."
    )

    @model_validator(mode="after")
    def _ranges(self) -> ResizedCropConfig:
        for name, (low, high), top in (("scale", self.scale, 1.0), ("ratio", self.ratio, 100.0)):
            if not 0 < low <= high <= top:
                raise ConfigError(
                    f"data.resized_crop.{name} must be two numbers, 0 < smallest <= largest <= "
                    f"{top:g}",
                    got=[low, high],
                    fix="mend them, or leave them out for torchvision's",
                )
        return self


class _Augmented(FrozenModel):
    crop_padding: int = Field(
        0, ge=0, le=16, description="Zero padding, in pixels, before the random crop; 0 is no crop."
    )
    resized_crop: ResizedCropConfig | None = Field(
        None, description="Cut out a random part and resize it; null is none, {} torchvision's."
    )
    flip: bool = Field(False, description="Mirror each training image with probability 1/2.")
    cutout: int = Field(
        0, ge=0, le=1024, description="Side, in pixels, of a square set to the mean; 0 is none."
    )
    mixup: float = Field(
        0.0,
        ge=0,
        le=100,
        description="Mix pairs of training images and labels by Beta(mixup, mixup); 0 is none.",
    )

    mean: tuple[float, ...] | None = Field(
        None, description="Mean of each channel, 0..1, to normalise with; null measures it."
    )
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        None, description="Standard deviation of each channel, 0..1; null measures it."
    )

    @model_validator(mode="after")
    def _both_or_neither(self) -> _Augmented:
        if (self.mean is None) != (self.std is None):
            raise ConfigError(
                "data.mean and data.std must be given both or neither",
                got=f"{self.mean} and {self.std}",
                fix="give the other one too, or neither to measure the training images",
            )
        return self

    @model_validator(mode="after")
    def _one_crop(self) -> _Augmented:
        if self.crop_padding and self.resized_crop is not None:
            raise ConfigError(
                "data.crop_padding must be 0 with data.resized_crop",
                got=self.crop_padding,
                fix="choose one of both crops",
            )
        return self


class DigitsConfig(_Augmented):
    """The 1,797 scans of handwritten digits that ship with scikit-learn; nothing is downloaded."""

    name: Literal["digits"] = "digits"
    crop_padding: int = Field(
        1, ge=0, le=16, description="Zero padding, in pixels, before the random crop; 0 is no crop."
    )


class _Limited(_Augmented):
    max_train: int | None = Field(
        None, ge=1, description="Use only so many training images, evenly spread over all; or all."
    )
    max_test: int | None = Field(
        None, ge=1, description="Use only so many test images, evenly spread over all; or all."
    )

    def limit(self, split: Literal["train", "test"]) -> int | None:
        """Return how many images of a split to use; None is all."""
        return self.max_train if split == "train" else self.max_test


class MnistConfig(_Limited):
    """MNIST through torchvision, from files already on disk."""

    name: Literal["mnist"]
    root: str = Field(description="Folder that holds MNIST/raw/*-ubyte, as torchvision unpacks it.")


class _Cifar(_Limited):
    crop_padding: int = Field(
        4, ge=0, le=16, description="Zero padding, in pixels, before the random crop; 0 is no crop."
    )
    flip: bool = Field(True, description="Mirror each training image with probability 1/2.")


class Cifar10Config(_Cifar):
    """CIFAR-10 through torchvision, from the unpacked archive, its checksums verified."""

    name: Literal["cifar10"]
    root: str = Field(description="Folder that holds cifar-10-batches-py/, as torchvision wants.")


class Cifar100Config(_Cifar):
    """CIFAR-100, its 100 fine classes, from the unpacked archive, its checksums verified."""

    name: Literal["cifar100"]
    root: str = Field(description="Folder that holds cifar-100-python/, as torchvision wants.")


class ImageFolderConfig(_Limited):
    """Images laid out as ROOT/train/CLASS/FILE and ROOT/test/CLASS/FILE, any size and mode."""

    name: Literal["image_folder"]
    root: str = Field(description="Folder with one sub-folder per split, then one per class.")
    image_size: int = Field(32, ge=4, le=1024, description="Height and width after resizing.")
    fit: Literal["squash", "crop"] = Field(
        "squash",
        description="How images of other shapes become square: squash resizes both sides, crop "
        "resizes the shorter one to `shorter_side` and keeps the middle.",
    )
    shorter_side: int | None = Field(
        None,
        ge=4,
        le=2048,
        description="Shorter side before the central crop; null is 8/7 of image_size, 256 for 224.",
    )
    channels: Literal[1, 3] = Field(3, description="1 reads images as grey, 3 as RGB.")
    train_split: str = Field("train", description="Name of the training sub-folder.")
    test_split: str = Field("test", description="Name of the test sub-folder.")
    cache_dir: str | None = Field(
        None, description="Where decoded images are kept between runs; null is the user's cache."
    )
    max_memory_mb: int = Field(
        2000,
        ge=0,
        description="A split that takes more than this when decoded, in 10^6 bytes, is decoded "
        "anew for each batch; so are training images with `resized_crop`.",
    )
    decode_workers: int | None = Field(
        None, ge=1, le=256, description="Threads that decode images; null is one for each CPU."
    )
    prefetch: int = Field(
        2, ge=1, le=64, description="Batches decoded ahead of the one in use, where they are."
    )

    @model_validator(mode="after")
    def _crop_is_inside(self) -> ImageFolderConfig:
        if self.shorter_side is None:
            return self
        if self.fit != "crop":
            raise ConfigError(
                "data.shorter_side must come with data.fit crop",
                got=f"data.fit {self.fit}",
                fix="set data.fit to crop, or leave data.shorter_side out",
            )
        if self.shorter_side < self.image_size:
            raise ConfigError(
                "data.shorter_side must be >= data.image_size",
                got=f"{self.shorter_side}, image_size {self.image_size}",
                fix="raise it, or leave it out for 8/7 of image_size",
            )
        return self


class SyntheticConfig(_Augmented):
    """Random images for throughput measurements; there is nothing to learn in them."""

    name: Literal["synthetic"]
    num_train: int = Field(2048, ge=1, description="Training images.")
    num_test: int = Field(256, ge=1, description="Test images.")
    image_size: int = Field(32, ge=4, le=1024, description="Height and width.")
    channels: int = Field(3, ge=1, le=16, description="Channels.")
    num_classes: int = Field(10, ge=2, description="Classes.")


class OwnDataConfig(_Augmented):
    """Data that Python code brings: LayerParallelTrainer(config, datasets=...)."""

    name: Literal["custom"] = "custom"

    @model_validator(mode="after")
    def _only_mixup(self) -> OwnDataConfig:
        odd = sorted(self.model_fields_set - {"name", "mixup"} - self._defaults())
        if odd:
            raise ConfigError(
                f"data.{odd[0]} must be left out for data of your own",
                got=getattr(self, odd[0]),
                fix="do it where you make the data; only data.mixup works on any",
            )
        return self

    def _defaults(self) -> set[str]:
        fields = type(self).model_fields
        return {name for name in fields if getattr(self, name) == fields[name].default}


DataConfig = Annotated[
    DigitsConfig
    | MnistConfig
    | Cifar10Config
    | Cifar100Config
    | ImageFolderConfig
    | SyntheticConfig
    | OwnDataConfig,
    Field(discriminator="name"),
]
