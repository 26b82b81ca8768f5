"""From a configuration and a data set to what will run: cuts, filters, segments, all explicit."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Literal

import torch

from laminar.blocks import Block, BlockSequence, BlockSpec, build, infer_shapes
from laminar.config import Config, PhaseCycles, PhaseSegment
from laminar.cuts import block_costs, equal_cost_cuts
from laminar.errors import ConfigError
from laminar.factories import NO_FACTORIES, Factories
from laminar.filters import Filter, adjoint_scale
from laminar.inspection import inspect_blocks, inspect_loss
from laminar.learning_rate import learning_rate
from laminar.loss import CrossEntropy, OwnLoss
from laminar.networks import network
from laminar.problem import Problem as Problem
from laminar.schedule import min_ticks

Phase = Literal["correction", "parallel"]


@dataclass(frozen=True)
class Segment:
    """A stretch of batches of one epoch, in one phase; the unit that the engine runs."""

    phase: Phase
    epoch: int
    """From 0."""
    first_batch: int
    """Index within the epoch."""
    num_batches: int


@dataclass(frozen=True)
class Plan:
    """A resolved run."""

    config: Config
    """With cuts, filters and phases written out."""
    problem: Problem
    segments: tuple[Segment, ...]
    shapes: tuple[tuple[int, ...], ...]
    """Shape, without batch, of what each block receives; the last is the output."""
    factories: Factories = field(default=NO_FACTORIES, compare=False, repr=False)
    """What the user brought in Python."""

    @property
    def batches_per_epoch(self) -> int:
        """Full batches of an epoch; the ragged last one is dropped."""
        return self.problem.num_train // self.config.batch_size

    @property
    def num_batches(self) -> int:
        """Batches of the whole run."""
        return self.batches_per_epoch * self.config.epochs

    @property
    def bounds(self) -> tuple[int, ...]:
        """First block of each stage, and the number of blocks at the end."""
        return (0, *(self.config.cuts or ()), len(self.shapes) - 1)

    @property
    def filters(self) -> dict[int, Filter]:
        """Filter of each boundary that has one, by the block that receives."""
        pairs = zip(self.config.cuts or (), self.config.filter_list(), strict=True)
        return {boundary: Filter(f.pool, f.cast, f.parallel_only) for boundary, f in pairs}

    @property
    def loss(self) -> CrossEntropy | OwnLoss:
        """The loss phi at the last stage."""
        if self.factories.loss is not None:
            return OwnLoss(self.factories.loss)
        return CrossEntropy(self.config.loss.label_smoothing)

    @property
    def parallel_fraction(self) -> float:
        """Fraction of all batches that are in the parallel phase, 0..1."""
        parallel = sum(s.num_batches for s in self.segments if s.phase == "parallel")
        return parallel / self.num_batches

    def learning_rate(self, batch: int) -> float:
        """Return the learning rate of the update that applies this batch of the run."""
        return learning_rate(
            self.config.schedule,
            batch,
            peak=self.config.optimizer.lr,
            num_batches=self.num_batches,
            batches_per_epoch=self.batches_per_epoch,
        )

    def build_stage_module(
        self, first: int, last: int, device: torch.device | str = "cpu"
    ) -> BlockSequence:
        """Build blocks `first .. last-1`, freshly initialised, with the filters inside.

        Args:
            first: Index of the first block.
            last: Index after the last one.
            device: `meta` builds names and shapes only, where the network is one of ours.
        """
        specs = _specs(self.config, self.problem, self.factories)
        if self.factories.blocks is not None:
            device = "cpu"  # what a user's code does on `meta` nobody knows
        seed = self.config.seed
        return BlockSequence(
            build(specs, seed=seed, first=first, last=last, device=device),
            first=first,
            filters=self.filters,
            adjoint_scale=adjoint_scale(self.config.batch_size),
        )


def make_plan(config: Config, problem: Problem, factories: Factories = NO_FACTORIES) -> Plan:
    """Resolve a configuration against a data set, or say in one line why it cannot run.

    Args:
        config: The run's configuration.
        problem: What its data set holds.
        factories: What the user brought in Python.

    Raises:
        ConfigError: Cuts, filters, batch size or phases do not fit network and data.
        FactoryError: A factory is missing, or makes what cannot be trained.
    """
    factories.check(config)
    specs = _specs(config, problem, factories)
    _check_stages(config, len(specs))
    if config.batch_size > problem.num_train:
        raise ConfigError(
            "batch_size must be <= number of training images",
            got=f"{config.batch_size}, images {problem.num_train}",
            fix="lower batch_size",
        )
    blocks = _build_to_plan(config, specs, problem, factories)
    sample = problem.image_shape, getattr(torch, problem.dtype)
    shapes = infer_shapes(blocks, *sample)
    cuts = config.cuts
    if cuts is None:
        cuts = equal_cost_cuts(block_costs(blocks, *sample), config.num_stages)
    per_epoch = problem.num_train // config.batch_size
    segments = _segments(config, per_epoch)
    resolved = config.model_copy(
        update={
            "cuts": cuts,
            "filters": config.filter_list(),
            "phases": _as_phases(segments, per_epoch),
        }
    )
    plan = Plan(resolved, problem, tuple(segments), tuple(shapes), factories)
    _check_filters(plan)
    return plan


def _specs(config: Config, problem: Problem, factories: Factories) -> list[BlockSpec]:
    if factories.blocks is not None:
        return factories.specs(problem)
    if len(problem.image_shape) != 3 or problem.dtype != "float32":
        raise ConfigError(
            f"the network {config.model.name} must be given images, float32 [C, H, W]",
            got=f"samples of shape {list(problem.image_shape)}, {problem.dtype}",
            fix="convert them in datasets, or bring blocks of your own",
        )
    return network(
        config.model, in_channels=problem.image_shape[0], num_classes=problem.num_classes
    )


def _build_to_plan(
    config: Config, specs: list[BlockSpec], problem: Problem, factories: Factories
) -> list[Block]:
    """Build what shapes and costs are found with; inspect what the user brought."""
    if factories.loss is not None:
        inspect_loss(factories.loss, problem.num_classes, has_mixed_targets=config.data.mixup > 0)
    if factories.blocks is None:
        return build(specs, seed=config.seed, device="meta")
    blocks = build(specs, seed=config.seed)
    inspect_blocks(blocks, problem)
    return blocks


def _check_stages(config: Config, count: int) -> None:
    if config.num_stages > count:
        raise ConfigError(
            "num_stages must be <= number of blocks",
            got=f"{config.num_stages}, {config.model.name} has {count} blocks",
            fix="lower num_stages or choose a deeper network",
        )
    if config.cuts and config.cuts[-1] >= count:
        raise ConfigError(
            "every cut must lie inside the network",
            got=f"cut {config.cuts[-1]}",
            expected=f"1..{count - 1} for the {count} blocks of {config.model.name}",
            fix="lower the cut, or null for cuts of equal cost",
        )


def _check_filters(plan: Plan) -> None:
    for boundary, filter_ in plan.filters.items():
        shape = plan.shapes[boundary]
        if len(shape) != 3:
            if filter_.pool > 1:
                raise ConfigError(
                    f"the filter of the cut at block {boundary} must not pool what is no image",
                    got=f"pool {filter_.pool}, shape {list(shape)} without the batch",
                    fix="set filters.pool to 1; casts work on any shape",
                )
            continue
        height, width = shape[-2:]
        if filter_.pool > min(height, width):
            raise ConfigError(
                f"the filter of the cut at block {boundary} must pool by at most the map's size",
                got=f"pool {filter_.pool}, map {height}x{width}",
                fix="lower filters.pool or move the cut",
            )


def _segments(config: Config, per_epoch: int) -> list[Segment]:
    if isinstance(config.phases, PhaseCycles):
        runs = _cycle_runs(config.phases, per_epoch * config.epochs)
        return _split(config, runs, per_epoch, too_short="correct")
    return _split(config, _listed_runs(config, per_epoch), per_epoch, too_short="refuse")


def _cycle_runs(cycles: PhaseCycles, total: int) -> list[tuple[Phase, int]]:
    """Exact warm-up, then cycles of parallel and correction, in batches that sum to `total`."""
    warmup = math.ceil(cycles.warmup * total)
    exact = min(total - warmup, math.floor(cycles.correction * total))
    runs: list[tuple[Phase, int]] = [("correction", warmup)]
    for index in range(cycles.num_cycles):
        share = [part * (index + 1) // cycles.num_cycles - part * index // cycles.num_cycles
                 for part in (total - warmup - exact, exact)]  # fmt: skip
        runs += [("parallel", share[0]), ("correction", share[1])]
    return runs


def _listed_runs(config: Config, per_epoch: int) -> list[tuple[Phase, int]]:
    assert not isinstance(config.phases, PhaseCycles)
    total = sum(segment.epochs for segment in config.phases)
    if abs(total - config.epochs) * per_epoch > 0.5:
        raise ConfigError(
            "the epochs of `phases` must sum to `epochs`",
            got=f"{total:g}",
            expected=config.epochs,
            fix="change the last segment, or leave `phases` out for the default plan",
        )
    ends = [round(e * per_epoch) for e in itertools.accumulate(s.epochs for s in config.phases)]
    starts = [0, *ends[:-1]]
    return [(s.phase, b - a) for s, a, b in zip(config.phases, starts, ends, strict=True)]


def _split(
    config: Config,
    runs: list[tuple[Phase, int]],
    per_epoch: int,
    *,
    too_short: Literal["correct", "refuse"],
) -> list[Segment]:
    """Split runs at the ends of epochs, where the pipeline drains.

    A parallel piece too short to fill the pipeline is trained exactly in the default plan, and
    refused in a plan that the user wrote.
    """
    per_batch = config.parallel.micro_batches
    needed = math.ceil(min_ticks(config.num_stages, config.parallel.hop_delay) / per_batch)
    segments: list[Segment] = []
    position = 0
    for phase, length in runs:
        while length > 0:
            epoch, first = divmod(position, per_epoch)
            num = min(length, per_epoch - first)
            kind: Phase = phase
            if phase == "parallel" and num < needed:
                if too_short == "refuse":
                    raise ConfigError(
                        "a parallel segment must be long enough to fill the pipeline within its "
                        "epoch, 4(K-1)d ticks",
                        got=f"{num} batches in epoch {epoch + 1}",
                        expected=f">= {needed}",
                        fix="lengthen it, lower batch_size, num_stages or parallel.hop_delay, or "
                        "raise parallel.micro_batches",
                    )
                kind = "correction"
            _append(segments, Segment(kind, epoch, first, num))
            position, length = position + num, length - num
    return segments


def _append(segments: list[Segment], new: Segment) -> None:
    """Add a segment, joined to the one before where both are exact and of the same epoch."""
    if segments and segments[-1].epoch == new.epoch and segments[-1].phase == new.phase:
        old = segments.pop()
        new = Segment(new.phase, new.epoch, old.first_batch, old.num_batches + new.num_batches)
    segments.append(new)


def _as_phases(segments: list[Segment], per_epoch: int) -> tuple[PhaseSegment, ...]:
    """Write segments as the configuration's `phases`, so that a resumed run takes the same."""
    return tuple(
        PhaseSegment(phase=phase, epochs=sum(s.num_batches for s in group) / per_epoch)
        for phase, run in itertools.groupby(segments, key=lambda s: s.phase)
        if (group := list(run))
    )
