"""The configuration of a run: frozen pydantic models, one description per field."""

from laminar.config.data import (
    Cifar10Config,
    Cifar100Config,
    DataConfig,
    DigitsConfig,
    ImageFolderConfig,
    MnistConfig,
    ResizedCropConfig,
    SyntheticConfig,
)
from laminar.config.loss import LossConfig
from laminar.config.model import (
    ModelConfig,
)
from laminar.config.resources import (
    ResourceConfig,
)
from laminar.config.run import (
    Config,
)
from laminar.config.training import (
    CorrectionConfig,
    FilterConfig,
    OptimizerConfig,
    ParallelConfig,
    PhaseCycles,
    PhaseSegment,
    ScheduleConfig,
)

__all__ = [
    "Cifar10Config",
    "Cifar100Config",
    "Config",
    "CorrectionConfig",
    "DataConfig",
    "DigitsConfig",
    "FilterConfig",
    "ImageFolderConfig",
    "LossConfig",
    "MnistConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "PhaseCycles",
    "PhaseSegment",
    "ResizedCropConfig",
    "ResourceConfig",
    "ScheduleConfig",
    "SyntheticConfig",
]
