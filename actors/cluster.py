"""Getting a Ray cluster: a small, quiet one of our own, or one that is running."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    remove_placement_group,
)

from actors.family import Family
from laminar.config import Config, ResourceConfig
from laminar.errors import ResourceError

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # A cluster that lives as long as one local run needs no token file in the home directory.
    "RAY_AUTH_MODE": "disabled",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_HERE = ("localhost", "127.0.0.1")
_KNOCK_S = 10.0

_DAEMONS = {
    # Two cores are the target: what only a dashboard would read is not gathered.
    "enable_metrics_collection": False,
    "task_events_report_interval_ms": 0,
    "event_stats": False,
}


@dataclass(frozen=True)
class Reservation:
    """Room for a run: a bundle for each stage, side by side in a placement group."""

    group: PlacementGroup
    first_bundle: int = 0
    """Index of the bundle of stage 0."""


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
    family = Family()
    try:
        _connect(address, config, family)
        yield
    finally:
        try:
            family.remember()
            ray.shutdown()
        finally:
            family.end()


def _connect(address: str | None, config: Config, family: Family) -> None:
    try:
        with _own_sigterm(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if address is None:
                with family.marked():
                    _start(config)
            else:
                _knock(address)
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ResourceError(
            "Ray must be reachable" if address else "a local Ray must start",
            got=f"{address or 'this machine'}: {error}",
            fix="mend --address, or leave it out to run on this machine"
            if address
            else "lower resources.object_store_mb or free memory",
        ) from error


def _knock(address: str) -> None:
    """Raise ConnectionError where nobody listens: Ray takes a minute, and many lines, to say so."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return  # "auto", or a name that Ray itself looks up
    here: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    hosts = {host, here} if host in _HERE else {host}
    errors = []
    for name in sorted(hosts):
        try:
            socket.create_connection((name.strip("[]"), int(port)), _KNOCK_S).close()
        except (OSError, OverflowError) as error:
            errors.append(error)
    if len(errors) == len(hosts):
        raise ConnectionError(errors[0])


def _start(config: Config) -> None:
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


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep this process's handler of SIGTERM, if it has one: `ray.init` installs its own."""
    before = signal.getsignal(signal.SIGTERM)
    is_ours = callable(before) and threading.current_thread() is threading.main_thread()
    try:
        yield
    except SystemExit as end:
        if callable(before) and is_ours and end.code == signal.SIGTERM:
            before(signal.SIGTERM, None)
        raise
    finally:
        if is_ours:
            signal.signal(signal.SIGTERM, before)


def _check_this_machine(resources: ResourceConfig, num_stages: int) -> None:
    _check(resources, num_stages, machine_resources(), "this machine has")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if resources.object_store_mb * 10**6 > memory:
        raise ResourceError(
            "resources.object_store_mb must fit into this machine's memory",
            got=resources.object_store_mb,
            expected=f"<= {memory // 10**6}",
            fix="lower it; a message takes a few MB",
        )


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


def machine_resources() -> dict[str, float]:
    """Return the CPUs and GPUs that a cluster of our own on this machine would have."""
    import torch

    return {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}


def node_resources() -> list[dict[str, float]]:
    """Return what each living node of the cluster has, busy or not."""
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return [node["Resources"] for node in nodes if node["Alive"]]


def _totals() -> dict[str, float]:
    return ray.cluster_resources()  # type: ignore[no-untyped-call,no-any-return]


@contextlib.contextmanager
def reserve(config: Config, timeout_s: float = 60.0) -> Iterator[Reservation]:
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
        yield Reservation(group)
    finally:
        remove_placement_group(group)
