"""The configuration of a run: frozen pydantic models, one description per field."""

from laminar.config.data import (
    Cifar10Config,
    Cifar100Config,
    DataConfig,
    DigitsConfig,
    ImageFolderConfig,
    MnistConfig,
    OwnDataConfig,
    ResizedCropConfig,
    SyntheticConfig,
)
from laminar.config.ledger import LedgerConfig
from laminar.config.loss import LossConfig
from laminar.config.model import (
    ModelConfig,
)
from laminar.config.optimization import (
    DEFAULT_NAMES,
    AdamWConfig,
    CosineConfig,
    EmaConfig,
    LinearConfig,
    OneCycleConfig,
    OptimizerConfig,
    ScheduleConfig,
    SgdConfig,
    StepConfig,
)
from laminar.config.partition import (
    PartitionConfig,
)
from laminar.config.precision import (
    PrecisionConfig,
)
from laminar.config.resources import (
    ResourceConfig,
)
from laminar.config.run import (
    Config,
)
from laminar.config.stored import (
    BalancedPenalty,
    FixedPenalty,
    PenaltyConfig,
    ScheduledPenalty,
    StoredConfig,
)
from laminar.config.tracking import (
    MlflowConfig,
    TrackingConfig,
    WandbConfig,
)
from laminar.config.training import (
    CorrectionConfig,
    FilterConfig,
    KeptFilterConfig,
    Method,
    ParallelConfig,
    PhaseCycles,
    PhaseSegment,
)

__all__ = [
    "DEFAULT_NAMES",
    "AdamWConfig",
    "BalancedPenalty",
    "Cifar10Config",
    "Cifar100Config",
    "Config",
    "CorrectionConfig",
    "CosineConfig",
    "DataConfig",
    "DigitsConfig",
    "EmaConfig",
    "FilterConfig",
    "FixedPenalty",
    "ImageFolderConfig",
    "KeptFilterConfig",
    "LedgerConfig",
    "LinearConfig",
    "LossConfig",
    "Method",
    "MlflowConfig",
    "MnistConfig",
    "ModelConfig",
    "OneCycleConfig",
    "OptimizerConfig",
    "OwnDataConfig",
    "ParallelConfig",
    "PartitionConfig",
    "PenaltyConfig",
    "PhaseCycles",
    "PhaseSegment",
    "PrecisionConfig",
    "ResizedCropConfig",
    "ResourceConfig",
    "ScheduleConfig",
    "ScheduledPenalty",
    "SgdConfig",
    "StepConfig",
    "StoredConfig",
    "SyntheticConfig",
    "TrackingConfig",
    "WandbConfig",
]
