"""What each stage may use."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from laminar.config.base import FrozenModel
from laminar.errors import ConfigError


class ResourceConfig(FrozenModel):
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
