"""What is found by timing, on the machine of the first stage, before a run begins."""

from __future__ import annotations

import ray
import torch
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.cluster import Reservation
from actors.stage_actor import pick_device
from laminar.allocator import keep_freed_memory
from laminar.config import Config
from laminar.plan import Plan, make_plan
from laminar.precision import use_tf32
from laminar.profile import measure, needs_measuring


def measured(plan: Plan, room: Reservation) -> Plan:
    """Let the first stage's machine find what the configuration leaves to timing, if anything."""
    if not needs_measuring(plan.config):
        return plan
    resources = plan.config.resources
    task = ray.remote(_measure_here).options(
        num_cpus=resources.cpus_per_stage,
        num_gpus=resources.gpus_per_stage,
        scheduling_strategy=PlacementGroupSchedulingStrategy(
            room.group, placement_group_bundle_index=room.first_bundle
        ),
    )
    return make_plan(ray.get(task.remote(plan)), plan.problem, plan.factories)


def device_type_here(config: Config) -> str:
    """Return where the stages will compute if they run on this machine."""
    resources = config.resources
    wants_gpu = resources.gpus_per_stage > 0 and resources.device != "cpu"
    return "cuda" if wants_gpu and torch.cuda.is_available() else "cpu"


def _measure_here(plan: Plan) -> Config:
    torch.set_num_threads(plan.config.resources.threads_per_stage)
    keep_freed_memory()
    use_tf32(plan.config.precision)
    return measure(plan, pick_device(plan.config.resources.device))
