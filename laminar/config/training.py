"""Filters, the method and phases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from laminar.config.base import FrozenModel
from laminar.errors import ConfigError


class FilterConfig(FrozenModel):
    """What happens to a tensor where it crosses a cut; part of the network's function."""

    pool: int = Field(1, ge=1, le=8, description="Average-pool by this factor, nearest back up.")
    cast: Literal["fp32", "fp16", "bf16", "int8"] = Field(
        "fp32", description="Type on the wire; int8 has one scale per sample and channel."
    )
    parallel_only: bool = Field(
        False,
        description="Filter in the parallel phase only, not in correction phase and evaluation; "
        "costs accuracy.",
    )

    def plain(self) -> FilterConfig:
        """Return the filter without the place that a subclass adds."""
        return FilterConfig(pool=self.pool, cast=self.cast, parallel_only=self.parallel_only)


def default_filter(
    num_stages: int, boundary: int, shapes: Sequence[tuple[int, ...]]
) -> FilterConfig:
    """Return the filter of a cut where `filters` is null (docs/decisions/filters-by-cut.md).

    Args:
        num_stages: K.
        boundary: First block behind the cut.
        shapes: Of the input of each block and the output of the last, without the batch.
    """
    shape, made_of_it, stems = shapes[boundary], shapes[boundary + 1], shapes[1]
    can_pool = boundary > 1 and len(shape) == 3 and min(shape[-2:]) > 1
    if num_stages == 2:
        return FilterConfig(pool=2 if can_pool else 1, cast="fp16")
    images = [s for s in (shape, made_of_it) if len(s) == 3]  # the head makes none
    is_whole = all(s[1:] == stems[1:] for s in images)
    return FilterConfig(pool=2 if can_pool and not is_whole else 1, cast="int8")


class KeptFilterConfig(FilterConfig):
    """A filter that stays at its boundary wherever the cuts are; `laminar resume` writes these."""

    boundary: int = Field(ge=1, description="The block that receives.")


Method = Literal["delayed_gradient", "penalty", "augmented_lagrangian", "greedy", "auxnet", "exact"]
"""How the parallel phase decouples the stages (docs/method.md)."""


class ParallelConfig(FrozenModel):
    """The parallel phase: all stages at once.

    All settings but `feed`, `augmentation` and `curvature` are of `streamed`.
    """

    feed: Literal["streamed", "stored"] = Field(
        "streamed",
        description="Auxiliary variables in flight between neighbours, or kept per sample.",
    )
    augmentation: bool = Field(True, description="Vary images in the parallel phase, too.")
    lateness: Literal["given", "auto"] = Field(
        "given",
        description="Whether `micro_batches` and `hop_delay` are as they say, or chosen for the "
        "stages and the batch, and with `partition.costs: measured` for the exchange; so is an "
        "`order` of null.",
    )
    micro_batches: int = Field(2, ge=1, description="Micro-batches (ticks) per update, M.")
    hop_delay: int = Field(1, ge=1, le=64, description="Ticks a message may take, d.")
    order: Literal["forward_first", "backward_first"] | None = Field(
        None,
        description="Which half of a tick comes first; null is forward_first, or what "
        "`lateness: auto` chooses.",
    )
    lookahead: bool = Field(
        True, description="Run forward and backward at the weights predicted for the update."
    )
    shrink: float = Field(
        1.0, gt=0, le=1, description="Multiply a gradient s updates late by this to the power s."
    )
    curvature: float = Field(
        0.0,
        ge=0,
        le=100,
        description="Correct late adjoints by this much of the loss's curvature, estimated, along "
        "what the output has moved since; 0 is none. `streamed` runs late forwards twice for it, "
        "and keeps less.",
    )

    @model_serializer(mode="wrap")
    def _without_what_is_chosen(self, handler: SerializerFunctionWrapHandler):  # type: ignore[no-untyped-def]
        """Leave out what `lateness: auto` chooses, for it must not be given.

        With its type named, the schema of answers would be that of any mapping.
        """
        tree: dict[str, Any] = handler(self)
        if self.lateness == "auto":
            tree.pop("micro_batches", None)
            tree.pop("hop_delay", None)
        return tree

    @property
    def first_half(self) -> Literal["forward_first", "backward_first"]:
        """Which half of a tick comes first: `order`, or forward where that is null."""
        return self.order or "forward_first"

    @property
    def runs_again(self) -> bool:
        """Whether late forwards run once more when their adjoints come, as visits do anyway."""
        return self.curvature > 0 and self.feed == "streamed"


class CorrectionConfig(FrozenModel):
    """The exact correction phase, a 1F1B pipeline over the same stages."""

    micro_batches: int = Field(4, ge=1, description="Micro-batches per update; 1 is serial.")


class PhaseSegment(FrozenModel):
    """A stretch of training in one phase."""

    phase: Literal["correction", "parallel"] = Field(description="Which phase.")
    epochs: float = Field(gt=0, description="Length in epochs; fractions are of whole batches.")


class PhaseCycles(FrozenModel):
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
