"""The configuration of a run: frozen pydantic models, one description per field."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from laminar.errors import ConfigError


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelConfig(_Model):
    """The network: a CIFAR ResNet of He et al. 2016, section 4.2."""

    name: Literal["resnet8", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110"] = Field(
        "resnet20", description="CIFAR ResNet by depth (6n+2 layers)."
    )
    width: int = Field(16, ge=1, le=1024, description="Channels of the stem and first group.")


class _Augmented(_Model):
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


class OptimizerConfig(_Model):
    """SGD with momentum and weight decay, as torch.optim.SGD defines it."""

    name: Literal["sgd"] = Field("sgd", description="Optimiser.")
    lr: float = Field(0.1, gt=0, description="Peak learning rate.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum coefficient mu.")
    weight_decay: float = Field(5e-4, ge=0, description="L2 coefficient, on every parameter.")


class ScheduleConfig(_Model):
    """Learning rate over the batch index: a linear warm-up, then half a cosine to zero."""

    warmup_epochs: float = Field(1.0, ge=0, description="Length of the linear warm-up, in epochs.")


class FilterConfig(_Model):
    """What happens to a tensor where it crosses a cut; part of the network's function."""

    pool: Literal[1, 2, 4] = Field(1, description="Average-pool by this factor, nearest back up.")
    cast: Literal["fp32", "fp16", "int8"] = Field(
        "fp32", description="Type on the wire; int8 has one scale per sample and channel."
    )


class ParallelConfig(_Model):
    """The streamed parallel phase: all stages at once, gradients a few ticks late."""

    micro_batches: int = Field(2, ge=1, description="Micro-batches (ticks) per update, M.")
    hop_delay: int = Field(1, ge=1, le=64, description="Ticks a message may take, d.")
    order: Literal["forward_first", "backward_first"] = Field(
        "forward_first", description="Which half of a tick comes first."
    )
    lookahead: bool = Field(
        True, description="Run forward and backward at the weights predicted for the update."
    )
    shrink: float = Field(
        1.0, gt=0, le=1, description="Multiply a gradient s updates late by this to the power s."
    )


class CorrectionConfig(_Model):
    """The exact correction phase, a 1F1B pipeline over the same stages."""

    micro_batches: int = Field(4, ge=1, description="Micro-batches per update; 1 is serial.")


class PhaseSegment(_Model):
    """A stretch of training in one phase."""

    phase: Literal["correction", "parallel"] = Field(description="Which phase.")
    epochs: float = Field(gt=0, description="Length in epochs; fractions are of whole batches.")


class PhaseCycles(_Model):
    """The default plan: an exact warm-up, then cycles of parallel and correction passes."""

    warmup: float = Field(
        0.05, ge=0, le=1, description="Fraction of all passes that are exact at the start."
    )
    correction: float = Field(
        0.05, ge=0, le=1, description="Fraction of all passes that are exact at the cycles' ends."
    )
    num_cycles: int = Field(2, ge=1, description="Number of parallel-then-correction cycles.")

    @model_validator(mode="after")
    def _fractions(self) -> PhaseCycles:
        if self.warmup + self.correction > 1:
            raise ConfigError(
                "phases.warmup + phases.correction must be <= 1",
                got=self.warmup + self.correction,
                fix="lower one of them",
            )
        return self


class ResourceConfig(_Model):
    """What each stage actor may use."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where stages compute; auto takes a GPU if the stage has one."
    )
    cpus_per_stage: float = Field(1.0, gt=0, description="CPUs that Ray reserves for a stage.")
    gpus_per_stage: float = Field(
        0.0, ge=0, description="GPUs that Ray reserves for a stage; fractions share a GPU."
    )
    threads_per_stage: int = Field(1, ge=1, le=256, description="Intra-op threads of a stage.")
    object_store_mb: int = Field(
        256, ge=80, description="Object store of local mode, in 10^6 bytes."
    )
    message_timeout_s: float = Field(
        120.0, gt=0, description="Longest wait for a neighbour before the run fails, in seconds."
    )

    @model_validator(mode="after")
    def _gpus_are_shared_or_whole(self) -> ResourceConfig:
        if self.gpus_per_stage > 1 and self.gpus_per_stage != int(self.gpus_per_stage):
            raise ConfigError(
                "resources.gpus_per_stage must be a fraction of one GPU or a whole number",
                got=self.gpus_per_stage,
                fix="round it",
            )
        return self

    @model_validator(mode="after")
    def _cuda_has_a_gpu(self) -> ResourceConfig:
        if self.device == "cuda" and not self.gpus_per_stage:
            raise ConfigError(
                "resources.device cuda must have resources.gpus_per_stage > 0",
                got=self.gpus_per_stage,
                fix="give each stage a GPU or a fraction of one, or set resources.device to auto",
            )
        return self


class Config(_Model):
    """A whole training run."""

    seed: int = Field(0, ge=0, lt=2**63, description="Seed of weights, order and augmentation.")
    epochs: int = Field(40, ge=1, description="Passes over the training set.")
    batch_size: int = Field(64, ge=1, description="Samples per update.")
    eval_batch_size: int = Field(256, ge=1, description="Samples per evaluation message.")
    num_stages: int = Field(2, ge=1, description="Number of stages, K; one actor each.")
    cuts: tuple[int, ...] | None = Field(
        None, description="First block of stages 1..K-1; null cuts by equal cost."
    )
    model: ModelConfig = Field(default_factory=ModelConfig, description="The network.")
    data: DataConfig = Field(default_factory=DigitsConfig, description="The data set.")
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig, description="Optimiser.")
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig, description="Learning rate.")
    filters: FilterConfig | tuple[FilterConfig, ...] = Field(
        default=FilterConfig(pool=2, cast="fp16"),
        description="One filter for all cuts, or a list with one for each.",
    )
    parallel: ParallelConfig = Field(default_factory=ParallelConfig, description="Parallel phase.")
    correction: CorrectionConfig = Field(
        default_factory=CorrectionConfig,
        description="Correction phase.",
    )
    phases: PhaseCycles | tuple[PhaseSegment, ...] = Field(
        default_factory=PhaseCycles,
        description="Phase plan: cycles by fraction, or a list of segments that sums to `epochs`.",
    )
    resources: ResourceConfig = Field(default_factory=ResourceConfig, description="Resources.")

    @model_validator(mode="after")
    def _micro_batches_divide(self) -> Config:
        for name in ("parallel", "correction"):
            count = getattr(self, name).micro_batches
            if self.batch_size % count:
                raise ConfigError(
                    f"batch_size must be a multiple of {name}.micro_batches",
                    got=f"{self.batch_size} and {count}",
                    fix="change one of them",
                )
        return self

    @model_validator(mode="after")
    def _one_filter_per_cut(self) -> Config:
        if isinstance(self.filters, tuple) and len(self.filters) != self.num_stages - 1:
            raise ConfigError(
                "filters must be one filter or a list with one for each cut",
                got=f"{len(self.filters)} filters",
                expected=f"{self.num_stages - 1} for num_stages {self.num_stages}",
                fix="give one entry per cut, or a single filter without a list",
            )
        return self

    @model_validator(mode="after")
    def _cuts_increase(self) -> Config:
        if self.cuts is None:
            return self
        if len(self.cuts) != self.num_stages - 1:
            raise ConfigError(
                "cuts must name the first block of every stage but the first",
                got=f"{len(self.cuts)} cuts",
                expected=f"{self.num_stages - 1} for num_stages {self.num_stages}",
                fix="give num_stages - 1 cuts, or null for cuts of equal cost",
            )
        if any(b <= a for a, b in zip((0, *self.cuts), self.cuts, strict=False)):
            raise ConfigError(
                "cuts must be positive and strictly increasing",
                got=list(self.cuts),
                fix="sort them and remove repeats; each stage needs at least one block",
            )
        return self

    def filter_list(self) -> tuple[FilterConfig, ...]:
        """Return one filter for each of the K-1 cuts."""
        if isinstance(self.filters, tuple):
            return self.filters
        return (self.filters,) * (self.num_stages - 1)
