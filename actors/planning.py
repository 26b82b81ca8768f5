"""The plan of a run: made here or where the data is, and timed on the first stage's machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import ray
import torch
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.cluster import Reservation, ray_cluster
from actors.mailbox import Aborted
from actors.stage_worker import pick_device
from laminar.allocator import keep_freed_memory
from laminar.config import Config
from laminar.data import describe_data
from laminar.errors import FactoryError, UserError
from laminar.factories import Factories, describe_error
from laminar.partition import check_memory
from laminar.plan import Plan
from laminar.planning import make_plan
from laminar.precision import use_tf32
from laminar.profile import measure, needs_measuring
from laminar.store import check_scratch
from laminar.weights import notices


def check_picklable(factories: Factories) -> None:
    """Find out here what cannot be shipped to the stages.

    Raises:
        FactoryError: It cannot.
    """
    try:
        ray.cloudpickle.dumps(factories)  # type: ignore[no-untyped-call]
    except Exception as error:
        raise FactoryError(
            "blocks, datasets and loss must be picklable, to be shipped to the stages",
            got=describe_error(error),
            fix="let them open files and make generators when they are called",
        ) from error


def plan_here(config: Config, factories: Factories, is_new: bool) -> tuple[Plan, list[str]]:
    """Return the plan, and what the user of a new run should know of it."""
    factories.check(config)
    check_scratch(config.stored.scratch_dir)
    plan = make_plan(config, describe_data(config, factories.datasets), factories)
    if config.cuts is not None:
        check_memory(plan)
    return plan, notices(plan) if is_new else []


def plan_from_afar(
    config: Config, factories: Factories, address: str, is_new: bool
) -> tuple[Plan, list[str]]:
    """Make the plan where data and weights are: on the cluster, before the first tick."""
    with ray_cluster(address, config), unwrapped():
        make = ray.remote(num_cpus=0)(plan_here)
        found: tuple[Plan, list[str]] = ray.get(make.remote(config, factories, is_new))
    return found


def measured(config: Config, plan: Plan, room: Reservation) -> Plan:
    """Let the first stage's machine find what a configuration leaves to timing, if anything.

    Args:
        config: What the user wants.
        plan: The plan of it as long as nothing is measured.
        room: Where the stages will be.

    Raises:
        UserError: No partition fits.
    """
    if not needs_measuring(config):
        return plan
    resources = plan.config.resources
    task = ray.remote(_measure_here).options(
        num_cpus=resources.cpus_per_stage,
        num_gpus=resources.gpus_per_stage,
        scheduling_strategy=PlacementGroupSchedulingStrategy(
            room.group, placement_group_bundle_index=room.first_bundle
        ),
    )
    with unwrapped():
        found = ray.get(task.remote(config, plan))
    plan = make_plan(found, plan.problem, plan.factories)
    check_memory(plan)  # a longer hop delay may have been found than was planned with
    return plan


def device_type_here(config: Config) -> str:
    """Return where the stages will compute if they run on this machine."""
    resources = config.resources
    wants_gpu = resources.gpus_per_stage > 0 and resources.device != "cpu"
    return "cuda" if wants_gpu and torch.cuda.is_available() else "cpu"


def _measure_here(config: Config, plan: Plan) -> Config:
    torch.set_num_threads(plan.config.resources.threads_per_stage)
    keep_freed_memory()
    use_tf32(plan.config.precision)
    return measure(config, plan, pick_device(plan.config.resources.device))


@contextlib.contextmanager
def unwrapped() -> Iterator[None]:
    """Raise what an actor raised, instead of Ray's wrapping of it."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, UserError | Aborted | RuntimeError):
            raise cause from None
        raise
