"""How stages compute."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from laminar.config.base import FrozenModel


class PrecisionConfig(FrozenModel):
    """How stages compute; weights, optimiser state and what no filter casts stay fp32."""

    compute: Literal["fp32", "bf16"] = Field(
        "fp32", description="bf16 runs forward and backward under torch.autocast."
    )
    memory_format: Literal["contiguous", "channels_last", "auto"] = Field(
        "contiguous",
        description="Order of images in memory; auto times both before the run and writes the "
        "faster one into config.yaml.",
    )
    tf32: bool | None = Field(
        None,
        description="On NVIDIA GPUs, round to TF32 in convolutions and matrix products; null is "
        "torch's own choice, in convolutions only.",
    )
    compile: bool = Field(
        False, description="Compile each stage with torch.compile; rounds differently."
    )
