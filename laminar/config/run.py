"""A whole run: all parts, and what must hold between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from laminar.config.base import FrozenModel
from laminar.config.data import DataConfig, DigitsConfig
from laminar.config.ledger import LedgerConfig
from laminar.config.loss import LossConfig
from laminar.config.method import check_method
from laminar.config.model import ModelConfig
from laminar.config.optimization import (
    CosineConfig,
    EmaConfig,
    OptimizerConfig,
    ScheduleConfig,
    SgdConfig,
    StepConfig,
)
from laminar.config.partition import PartitionConfig
from laminar.config.precision import PrecisionConfig
from laminar.config.resources import ResourceConfig
from laminar.config.stored import (
    OTHER_DEFAULTS,
    PENALTY_DEFAULTS,
    BalancedPenalty,
    PenaltyConfig,
    StoredConfig,
    VisitDefaults,
)
from laminar.config.tracking import TrackingConfig
from laminar.config.training import (
    CorrectionConfig,
    FilterConfig,
    KeptFilterConfig,
    Method,
    ParallelConfig,
    PhaseCycles,
    PhaseSegment,
    default_filter,
)
from laminar.errors import ConfigError


class Config(FrozenModel):
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
    loss: LossConfig = Field(default_factory=LossConfig, description="Training loss.")
    optimizer: OptimizerConfig = Field(default_factory=SgdConfig, description="Optimiser.")
    schedule: ScheduleConfig = Field(default_factory=CosineConfig, description="Learning rate.")
    ema: EmaConfig | None = Field(None, description="Averaged weights; null keeps no average.")
    filters: FilterConfig | tuple[FilterConfig, ...] | None = Field(
        None,
        description="One filter for all cuts, or a list with one for each; null goes by the "
        "cut: with more than two stages int8, pooled 2x2 from the first block on that makes images "
        "smaller, with two stages 2x2 fp16, but behind the first block not pooled.",
    )
    kept_filters: tuple[KeptFilterConfig, ...] = Field(
        (), description="Filters of boundaries, whether or not there is a cut."
    )
    partition: PartitionConfig = Field(
        default_factory=PartitionConfig, description="How cuts are chosen where `cuts` is null."
    )
    method: Method = Field(
        "delayed_gradient",
        description="How the parallel phase decouples the stages: by late adjoints (with the "
        "streamed feed the first three are the same), a classifier for each stage (greedy), inputs "
        "that each stage makes itself (auxnet), or not at all, so that every pass is exact.",
    )
    parallel: ParallelConfig = Field(default_factory=ParallelConfig, description="Parallel phase.")
    penalty: PenaltyConfig = Field(
        default_factory=BalancedPenalty,
        description="How the penalty coefficient rho is found, with the stored feed.",
    )
    stored: StoredConfig = Field(
        default_factory=StoredConfig, description="Windows and sweeps of the stored feed."
    )
    correction: CorrectionConfig = Field(
        default_factory=CorrectionConfig,
        description="Correction phase.",
    )
    phases: PhaseCycles | tuple[PhaseSegment, ...] = Field(
        default_factory=PhaseCycles,
        description="Phase plan: cycles by fraction, or a list of segments that sums to `epochs`.",
    )
    ledger: LedgerConfig | None = Field(
        default_factory=LedgerConfig,
        description="Exactness of the parallel phase's gradients; null measures none.",
    )
    on_divergence: Literal["stop", "correct"] = Field(
        "stop",
        description="When an epoch's loss is no number, or far above what it was: stop, or go back "
        "to the last checkpoint and train exactly from there.",
    )
    precision: PrecisionConfig = Field(
        default_factory=PrecisionConfig, description="How stages compute."
    )
    resources: ResourceConfig = Field(default_factory=ResourceConfig, description="Resources.")
    tracking: TrackingConfig = Field(
        default_factory=TrackingConfig, description="MLflow and Weights & Biases."
    )

    @model_validator(mode="after")
    def _micro_batches_divide(self) -> Config:
        parallel = self.parallel
        is_read = (
            parallel.feed == "streamed" and parallel.lateness == "given" and self.method != "exact"
        )
        for name in ("parallel", "correction") if is_read else ("correction",):
            count = getattr(self, name).micro_batches
            if self.batch_size % count:
                raise ConfigError(
                    f"batch_size must be a multiple of {name}.micro_batches",
                    got=f"{self.batch_size} and {count}",
                    fix="change one of them",
                )
        return self

    @model_validator(mode="after")
    def _settings_of_the_method_act(self) -> Config:
        check_method(self)
        return self

    @model_validator(mode="after")
    def _mixup_has_pairs(self) -> Config:
        if self.data.mixup and self.batch_size < 2:
            raise ConfigError(
                "batch_size must be >= 2 with data.mixup, which mixes samples of a batch",
                got=self.batch_size,
                fix="raise batch_size or set data.mixup to 0",
            )
        return self

    @model_validator(mode="after")
    def _milestones_are_within_the_run(self) -> Config:
        schedule = self.schedule
        if isinstance(schedule, StepConfig) and schedule.milestones[-1] >= self.epochs:
            raise ConfigError(
                "every milestone of the schedule must be < epochs",
                got=f"{schedule.milestones[-1]:g} and {self.epochs}",
                fix="remove it, or train for more epochs",
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
    def _kept_filters_are_apart(self) -> Config:
        boundaries = [f.boundary for f in self.kept_filters]
        if len(set(boundaries)) < len(boundaries):
            raise ConfigError(
                "kept_filters must name each boundary once",
                got=boundaries,
                fix="remove the repeat",
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

    def num_micro_of(self, phase: Literal["correction", "parallel"]) -> int:
        """Return the micro-batches per update, M; with the stored feed both phases have the same.

        What is kept of a micro-batch in an exact pass is visited later, with the same statistics
        of batch norm.
        """
        is_streamed = phase == "parallel" and self.parallel.feed == "streamed"
        return (self.parallel if is_streamed else self.correction).micro_batches

    def visit_step_size(self) -> float:
        """Return by what visits of the stored feed multiply the learning rate of their batch."""
        given = self.stored.step_size
        return self._visit_defaults.step_size if given is None else given

    def visit_momentum(self) -> float | None:
        """Return SGD's momentum in visits of the stored feed; None is the optimiser's."""
        if self.stored.momentum is not None or not isinstance(self.optimizer, SgdConfig):
            return self.stored.momentum
        return self._visit_defaults.momentum

    def penalty_ratio(self, penalty: BalancedPenalty) -> float:
        """Return rho |x - lambda| over |kappa|, as rho is balanced to make it."""
        return self._visit_defaults.ratio if penalty.ratio is None else penalty.ratio

    @property
    def _visit_defaults(self) -> VisitDefaults:
        return PENALTY_DEFAULTS if self.method == "penalty" else OTHER_DEFAULTS

    def filter_list(self) -> tuple[FilterConfig, ...]:
        """Return one filter for each of the K-1 cuts, before `kept_filters`.

        None at all where planning has yet to choose them.
        """
        if isinstance(self.filters, FilterConfig):
            return (self.filters,) * (self.num_stages - 1)
        return self.filters or ()

    def filter_of_cut(
        self, stage: int, boundary: int, shapes: Sequence[tuple[int, ...]]
    ) -> FilterConfig:
        """Return the filter of the cut before a stage if it is at this boundary.

        Args:
            stage: The one that receives.
            boundary: Its first block.
            shapes: Of the input of each block and the output of the last, without the batch.
        """
        for kept in self.kept_filters:
            if kept.boundary == boundary:
                return kept.plain()
        if self.filters is None:
            return default_filter(self.num_stages, boundary, shapes)
        return self.filter_list()[stage - 1].plain()
