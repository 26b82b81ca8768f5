"""Getting a Ray cluster: a small, quiet one of our own, or one that is running."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    remove_placement_group,
)

from laminar.config import Config, ResourceConfig
from laminar.errors import ResourceError

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # A cluster that lives as long as one local run needs no token file in the home directory.
    "RAY_AUTH_MODE": "disabled",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_DAEMONS = {
    # Two cores are the target: what only a dashboard would read is not gathered.
    "enable_metrics_collection": False,
    "task_events_report_interval_ms": 0,
    "event_stats": False,
}


@contextlib.contextmanager
def ray_cluster(address: str | None, config: Config) -> Iterator[None]:
    """Provide Ray within the block: attached to `address`, or started here and ended after.

    A Ray that this process has already initialised is used as it is and left running.

    Args:
        address: Of a running cluster, `host:port` or `ray://...`; None starts one.
        config: For the resources that a local one needs.

    Raises:
        ResourceError: The cluster cannot be reached, or this machine has too few CPUs or GPUs.
    """
    if ray.is_initialized():
        yield
        return
    if address is None:
        _check_this_machine(config.resources, config.num_stages)
    try:
        _connect(address, config)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ResourceError(
            "Ray must be reachable" if address else "a local Ray must start",
            got=f"{address or 'this machine'}: {error}",
            fix="mend --address, or leave it out to run on this machine"
            if address
            else "lower resources.object_store_mb or free memory",
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _connect(address: str | None, config: Config) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if address is not None:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
            return
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        ray.init(
            num_cpus=os.cpu_count(),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=config.resources.object_store_mb * 10**6,
            _system_config=_DAEMONS,
        )


def _check_this_machine(resources: ResourceConfig, num_stages: int) -> None:
    import torch

    have = {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}
    _check(resources, num_stages, have, "this machine has")


def _check(resources: ResourceConfig, num_stages: int, have: dict[str, float], where: str) -> None:
    wants = {"CPU": resources.cpus_per_stage, "GPU": resources.gpus_per_stage}
    for kind, each in wants.items():
        if each * num_stages > have.get(kind, 0.0) + 1e-9:
            field = f"resources.{kind.lower()}s_per_stage"
            raise ResourceError(
                f"every stage must get {field} of {each:g}",
                got=f"{where} {have.get(kind, 0.0):g} {kind}",
                expected=f">= {each * num_stages:g} for {num_stages} stages",
                fix=f"lower num_stages or {field} (stages may share by fractions)",
            )


def _totals() -> dict[str, float]:
    return ray.cluster_resources()  # type: ignore[no-untyped-call,no-any-return]


@contextlib.contextmanager
def reserve(config: Config, timeout_s: float = 60.0) -> Iterator[PlacementGroup]:
    """Reserve one bundle per stage within the block.

    Raises:
        ResourceError: The cluster is too small, or busy for longer than `timeout_s` seconds.
    """
    resources, num = config.resources, config.num_stages
    _check(resources, num, _totals(), "the cluster has")
    bundle = {"CPU": resources.cpus_per_stage}
    if resources.gpus_per_stage:
        bundle["GPU"] = resources.gpus_per_stage
    group = placement_group([bundle] * num, strategy="PACK")
    try:
        if not group.wait(timeout_s):
            free = ray.available_resources()  # type: ignore[no-untyped-call]
            raise ResourceError(
                "the cluster must have room for all stages at once",
                got=f"{free.get('CPU', 0):g} CPU and {free.get('GPU', 0):g} GPU free after "
                f"{timeout_s:g} s",
                expected=f"{num} times {bundle}",
                fix="wait for other jobs to end, or lower num_stages",
            )
        yield group
    finally:
        remove_placement_group(group)
