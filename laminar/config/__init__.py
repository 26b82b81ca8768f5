"""The configuration of a run: frozen pydantic models, one description per field."""

from laminar.config.data import (
    DataConfig,
    DigitsConfig,
    ImageFolderConfig,
    MnistConfig,
    SyntheticConfig,
)
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
    "Config",
    "CorrectionConfig",
    "DataConfig",
    "DigitsConfig",
    "FilterConfig",
    "ImageFolderConfig",
    "MnistConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "PhaseCycles",
    "PhaseSegment",
    "ResourceConfig",
    "ScheduleConfig",
    "SyntheticConfig",
]
