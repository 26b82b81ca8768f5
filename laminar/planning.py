"""From a configuration and a data set to a plan, or to one line that says why it cannot run."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from laminar import partition
from laminar.blocks import Block, BlockSpec, build, dry_run, infer_shapes
from laminar.config import Config
from laminar.cuts import block_costs
from laminar.errors import ConfigError
from laminar.factories import NO_FACTORIES, Factories
from laminar.inspection import inspect_blocks, inspect_loss, zeros
from laminar.lateness import with_lateness
from laminar.networks import block_specs
from laminar.phases import as_phases, split_phases
from laminar.plan import Plan
from laminar.problem import Problem

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


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
    config = with_lateness(config)
    specs = block_specs(config, problem, factories)
    _check_stages(config, len(specs))
    _check_problem(config, problem, factories)
    blocks = _build_to_plan(config, specs, problem, factories)
    sample = problem.image_shape, getattr(torch, problem.dtype)
    shapes = infer_shapes(blocks, *sample)
    _check_mixup(config, problem, factories, shapes[-1])
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
    _check_parameters(plan, blocks)
    _check_batch_norm(plan, blocks)
    return plan


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


def _check_problem(config: Config, problem: Problem, factories: Factories) -> None:
    if config.batch_size > problem.num_train:
        raise ConfigError(
            "batch_size must be <= number of training images",
            got=f"{config.batch_size}, images {problem.num_train}",
            fix="lower batch_size",
        )
    if problem.num_classes < 2 and factories.loss is None:
        raise ConfigError(
            "the data must have at least two classes",
            got=problem.num_classes,
            fix="add images of another class, or bring a loss of your own",
        )


def _check_mixup(
    config: Config, problem: Problem, factories: Factories, outputs: tuple[int, ...]
) -> None:
    """Means are of floats; probabilities of classes need a logit for each, and no more."""
    if config.data.mixup and not getattr(torch, problem.dtype).is_floating_point:
        raise ConfigError(
            "data.mixup must come with samples of floating point numbers, of which it makes means",
            got=problem.dtype,
            fix="set data.mixup to 0",
        )
    if config.data.mixup and factories.loss is None and outputs != (problem.num_classes,):
        raise ConfigError(
            "data.mixup must come with as many logits as there are classes",
            got=f"{list(outputs)} without the batch, {problem.num_classes} classes",
            fix="make the last block's outputs as many, or set data.mixup to 0",
        )


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


def _check_parameters(plan: Plan, blocks: Sequence[Block]) -> None:
    for k, (first, last) in enumerate(itertools.pairwise(plan.bounds)):
        if not any(True for block in blocks[first:last] for _ in block.module.parameters()):
            raise ConfigError(
                "every stage must have parameters to train",
                got=f"none in stage {k}, blocks {first}..{last - 1}",
                fix="move the cuts, or lower num_stages",
            )


def _check_batch_norm(plan: Plan, blocks: Sequence[Block]) -> None:
    """In training it needs more than one value of a channel, of however many samples."""
    config = plan.config
    for phase in sorted({segment.phase for segment in plan.segments}):
        num_micro = config.num_micro_of(phase)
        if num_micro < config.batch_size:
            continue
        found, remedy = _with_one_value(plan, blocks), ", or set model.norm to group"
        if not found and phase == "parallel" and config.method == "greedy":
            found, remedy = ["the classifiers of method greedy"], ""
        if found:
            is_stored = phase == "parallel" and config.parallel.feed == "stored"
            setting = f"{'correction' if is_stored else phase}.micro_batches"
            raise ConfigError(
                "batch norm must have more than one value of each channel in a micro-batch",
                got=f"one in {found[0]}: batch_size {config.batch_size}, {setting} {num_micro}",
                fix=f"lower {setting}, raise batch_size{remedy}",
            )


def _with_one_value(plan: Plan, blocks: Sequence[Block]) -> list[str]:
    """Return the blocks where batch norm gets one value of each channel and sample."""
    found: list[str] = []
    x = zeros(plan.problem, 1)
    for block in blocks:

        def note(_: nn.Module, inputs: tuple[Tensor, ...], name: str = block.name) -> None:
            if math.prod(inputs[0].shape[2:]) == 1:
                found.append(name)

        layers = [m for m in block.module.modules() if isinstance(m, _BATCH_NORMS)]
        hooks = [layer.register_forward_pre_hook(note) for layer in layers]
        x = dry_run(block, x)
        for hook in hooks:
            hook.remove()
    return found
