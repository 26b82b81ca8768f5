"""From a configuration and a data set to a plan, or to one line that says why it cannot run."""

from __future__ import annotations

import torch

from laminar import partition
from laminar.blocks import Block, BlockSpec, build, infer_shapes
from laminar.config import Config
from laminar.cuts import block_costs
from laminar.errors import ConfigError
from laminar.factories import NO_FACTORIES, Factories
from laminar.inspection import inspect_blocks, inspect_loss
from laminar.lateness import with_lateness
from laminar.networks import block_specs
from laminar.phases import as_phases, split_phases
from laminar.plan import Plan
from laminar.problem import Problem


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
