"""From a configuration and a data set to what will run: cuts, filters, segments, all explicit."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import torch

from laminar import partition
from laminar.blocks import Block, BlockSequence, BlockSpec, build, infer_shapes
from laminar.config import Config
from laminar.cuts import block_costs
from laminar.errors import ConfigError
from laminar.factories import NO_FACTORIES, Factories
from laminar.filters import Filter, adjoint_scale
from laminar.inspection import inspect_blocks, inspect_loss
from laminar.learning_rate import learning_rate
from laminar.loss import CrossEntropy, OwnLoss
from laminar.networks import network
from laminar.phases import Phase as Phase
from laminar.phases import Segment as Segment
from laminar.phases import as_phases, correct_from, split_phases
from laminar.problem import Problem as Problem


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
        """Filter of each boundary that has one, by the block that receives, at a cut or not."""
        found = {f.boundary: f.plain() for f in self.config.kept_filters}
        for stage, boundary in enumerate(self.config.cuts or (), 1):
            found[boundary] = self.config.filter_of_cut(stage, boundary)
        return {b: Filter(f.pool, f.cast, f.parallel_only) for b, f in found.items()}

    @property
    def loss(self) -> CrossEntropy | OwnLoss:
        """The loss phi at the last stage."""
        if self.factories.loss is not None:
            return OwnLoss(self.factories.loss)
        return CrossEntropy(self.config.loss.label_smoothing)

    @property
    def parallel_fraction(self) -> float:
        """Fraction of all passes that are parallel, 0..1; see `Plan.num_visits`."""
        in_phase = sum(s.num_batches for s in self.segments if s.phase == "parallel")
        visits = self.num_visits * in_phase
        return visits / (self.num_batches + visits) if visits else in_phase / self.num_batches

    @property
    def num_visits(self) -> int:
        """Parallel passes over a batch of the parallel phase after its exact one; 0 if streamed.

        The stored feed begins with an exact pass (docs/decisions/passes-of-the-stored-feed.md).
        """
        config = self.config
        return config.stored.sweeps if config.parallel.feed == "stored" else 0

    def learning_rate(self, batch: int) -> float:
        """Return the learning rate of the update that applies this batch of the run."""
        return learning_rate(
            self.config.schedule,
            batch,
            peak=self.config.optimizer.lr,
            num_batches=self.num_batches,
            batches_per_epoch=self.batches_per_epoch,
        )

    def with_cuts(self, cuts: tuple[int, ...]) -> Plan:
        """Return the plan with these cuts, and with the filter of each cut written out."""
        config = self.config
        filters = tuple(config.filter_of_cut(k, boundary) for k, boundary in enumerate(cuts, 1))
        kept = tuple(f for f in config.kept_filters if f.boundary not in cuts)
        update = {"cuts": cuts, "filters": filters, "kept_filters": kept}
        return dataclasses.replace(self, config=config.model_copy(update=update))

    def corrected_from(self, epoch: int) -> Plan:
        """Return the plan with all batches from this epoch on in the correction phase."""
        segments = correct_from(self.segments, epoch)
        phases = as_phases(segments, self.batches_per_epoch)
        config = self.config.model_copy(update={"phases": phases})
        return dataclasses.replace(self, config=config, segments=tuple(segments))

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


def make_plan(
    config: Config,
    problem: Problem,
    factories: Factories = NO_FACTORIES,
    *,
    correct_short_phases: bool = False,
) -> Plan:
    """Resolve a configuration against a data set, or say in one line why it cannot run.

    Args:
        config: What the user wants; a resolved one resolves to itself.
        problem: What the data set holds.
        factories: What the user brought in Python.
        correct_short_phases: Train parallel segments that are too short for this number of stages
            exactly, even if they are written out.

    Raises:
        ConfigError: Cuts, filters, batch size, memory or phases do not fit network and data.
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
    per_epoch = problem.num_train // config.batch_size
    segments = split_phases(config, per_epoch, correct_short=correct_short_phases)
    config = config.model_copy(update={"phases": as_phases(segments, per_epoch)})
    plan = Plan(config, problem, tuple(segments), tuple(shapes), factories)
    cuts = config.cuts
    if cuts is None:
        cuts = partition.choose_cuts(plan, block_costs(blocks, *sample))
    plan = plan.with_cuts(cuts)
    _check_filters(plan)
    _check_auxiliary_networks(plan)
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
        if boundary >= plan.bounds[-1]:
            raise ConfigError(
                "every kept filter must be at a boundary of the network",
                got=f"boundary {boundary}",
                expected=f"1..{plan.bounds[-1] - 1}",
                fix="mend kept_filters",
            )
        shape = plan.shapes[boundary]
        if len(shape) != 3:
            if filter_.pool > 1:
                raise ConfigError(
                    f"the filter at block {boundary} must not pool what is no image",
                    got=f"pool {filter_.pool}, shape {list(shape)} without the batch",
                    fix="set filters.pool to 1; casts work on any shape",
                )
            continue
        height, width = shape[-2:]
        if filter_.pool > min(height, width):
            raise ConfigError(
                f"the filter at block {boundary} must pool by at most the map's size",
                got=f"pool {filter_.pool}, map {height}x{width}",
                fix="lower filters.pool or move the cut",
            )


def _check_auxiliary_networks(plan: Plan) -> None:
    """Find out whether the small networks beside the stages can be given what crosses the cuts."""
    wanted = {"greedy": ("[C, H, W] or [F]", (1, 3)), "auxnet": ("[C, H, W]", (3,))}
    if plan.config.method not in wanted:
        return
    words, dims = wanted[plan.config.method]
    for boundary in plan.bounds[1:-1]:
        shapes = {"before block " + str(boundary): plan.shapes[boundary]}
        if plan.config.method == "auxnet":
            shapes["of a sample"] = plan.problem.image_shape
        for place, shape in shapes.items():
            if len(shape) not in dims:
                raise ConfigError(
                    f"method {plan.config.method} must have {words} on both sides of its networks",
                    got=f"shape {list(shape)} {place}",
                    fix="move the cut, or choose another method",
                )
