"""Where else the figures of a run go."""

from __future__ import annotations

from pydantic import Field

from laminar.config.base import FrozenModel


class MlflowConfig(FrozenModel):
    """A run of MLflow; where to is said by MLFLOW_TRACKING_URI, never by a configuration."""

    experiment: str = Field(
        "laminar",
        pattern=r"^[^\x00-\x1f]+$",
        max_length=250,
        description="Experiment that the run belongs to.",
    )


class WandbConfig(FrozenModel):
    """An offline run of Weights & Biases, in the run directory; `wandb sync` uploads it."""

    project: str = Field(
        "laminar",
        pattern=r"^[A-Za-z0-9_. -]+$",
        max_length=128,
        description="Project that the run belongs to.",
    )


class TrackingConfig(FrozenModel):
    """Trackers that are told each epoch's figures, beside TensorBoard."""

    name: str | None = Field(
        None,
        pattern=r"^[^\x00-\x1f]+$",
        max_length=128,
        description="Name of the run there; null takes that of its folder, or of its job.",
    )
    mlflow: MlflowConfig | None = Field(None, description="MLflow; null does not write to it.")
    wandb: WandbConfig | None = Field(
        None, description="Weights & Biases, offline; null does not write to it."
    )
