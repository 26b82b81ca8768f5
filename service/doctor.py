"""Whether this machine can train, and what to do where it cannot."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from laminar.config import Config
from laminar.errors import UserError

Verdict = Literal["ok", "note", "fails"]

_PACKAGES = ("laminar-train", "torch", "torchvision", "ray", "numpy", "pydantic", "safetensors")
_SHARED_MEMORY = Path("/dev/shm")
_CGROUP = Path("/sys/fs/cgroup")
_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    what: str
    verdict: Verdict
    """`note` is for what a run may do without."""
    text: str


def examine(config: Config, address: str | None, *, with_ray: bool) -> Iterator[Finding]:
    """Yield what is found, one check after the other.

    Args:
        config: Whose data and resources to look for.
        address: Of a running cluster to reach, instead of starting a Ray here.
        with_ray: Whether to start or reach Ray at all, which takes seconds.
    """
    yield Finding("python", "ok", f"{platform.python_version()} on {platform.platform()}")
    yield Finding("versions", "ok", ", ".join(f"{n} {_version(n)}" for n in _PACKAGES))
    yield _cores(config)
    yield _memory(config)
    yield _shared_memory(config)
    yield _ports()
    yield _gpus(config)
    data = _attempt("data", lambda: _data(config))
    yield data
    if data.verdict == "fails":
        yield Finding("plan", "note", "not made: the data must be readable first")
    else:
        yield _attempt("plan", lambda: _plan(config, address))
    if with_ray:
        yield _attempt("ray", lambda: _ray(config, address))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _cores(config: Config) -> Finding:
    usable = len(os.sched_getaffinity(0))
    needed = config.num_stages * config.resources.cpus_per_stage
    have = os.cpu_count() or 1
    text = f"{have}, {usable} usable by this process; {config.num_stages} stages want {needed:g}"
    if needed > have:
        return Finding("cores", "fails", f"{text}: lower num_stages or resources.cpus_per_stage")
    if usable < have:
        return Finding("cores", "note", f"{text}; Ray counts all {have}, so stages may share cores")
    return Finding("cores", "ok", text)


def _memory(config: Config) -> Finding:
    available = _available_bytes()
    # Measured (docs/log.md): driver, coordinator and Ray's daemons 1.1 GB, a stage 0.4 GB before
    # it has a network; a machine that has less than that need not try.
    wanted = (1.1 + 0.4 * config.num_stages) * 1e9 + config.resources.object_store_mb * 1e6
    text = f"{available / 1e9:.1f} GB available, at least {wanted / 1e9:.1f} GB wanted"
    if available < wanted:
        return Finding("memory", "fails", f"{text}: free some, or lower num_stages")
    return Finding("memory", "ok", text)


def _available_bytes() -> int:
    """Return what can be had without swapping, and within the limit of a container."""
    available: int = psutil.virtual_memory().available
    try:
        limit, used = (int((_CGROUP / f"memory.{n}").read_text()) for n in ("max", "current"))
    except (OSError, ValueError):  # no second version of control groups, or "max": no limit
        return available
    return min(available, limit - used)


def _shared_memory(config: Config) -> Finding:
    wanted = config.resources.object_store_mb * 10**6
    if not _SHARED_MEMORY.is_dir():
        text = "no /dev/shm: the object store lies on disk, slower"
        return Finding("/dev/shm", "note", text)
    free = shutil.disk_usage(_SHARED_MEMORY).free
    text = f"{free / 1e6:,.0f} MB free, the object store takes {wanted / 1e6:,.0f} MB"
    if free < wanted:
        fix = "lower resources.object_store_mb, or give a container more with --shm-size"
        return Finding("/dev/shm", "fails", f"{text}: {fix}")
    return Finding("/dev/shm", "ok", text)


def _ports() -> Finding:
    """Listen and connect on the addresses that the processes of a local Ray use."""
    for host in dict.fromkeys((_LOOPBACK, _own_address())):
        try:
            with socket.create_server((host, 0)) as server:
                port = server.getsockname()[1]
                socket.create_connection((host, port), 5).close()
        except OSError as error:
            return Finding(
                "ports",
                "fails",
                f"cannot listen and connect on {host} ({error}): mend the firewall",
            )
    return Finding("ports", "ok", f"can listen and connect on {_LOOPBACK} and {_own_address()}")


def _own_address() -> str:
    """Return the address by which other machines would know this one; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # RFC 5737: an address for documentation
        except OSError:
            return _LOOPBACK
        return str(probe.getsockname()[0])


def _gpus(config: Config) -> Finding:
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    needed = config.num_stages * config.resources.gpus_per_stage
    text = ", ".join(names) if names else f"none that torch {torch.__version__} can use"
    if needed > len(names):
        fix = "lower resources.gpus_per_stage, or mend the driver"
        return Finding("GPUs", "fails", f"{text}, {needed:g} wanted: {fix}")
    if names and not needed:
        return Finding("GPUs", "note", f"{text}; not used: resources.gpus_per_stage is 0")
    return Finding("GPUs", "ok", text)


def _data(config: Config) -> str:
    from laminar.data import describe

    problem = describe(config.data)
    shape = "x".join(str(n) for n in problem.image_shape)
    return (
        f"{config.data.name}: {problem.num_train:,} training and {problem.num_test:,} test images "
        f"{shape}, {problem.num_classes} classes"
    )


def _plan(config: Config, address: str | None) -> str:
    """Make the plan as training does; what it refuses would keep the configuration from running."""
    from actors.planning import device_type_here
    from laminar.data import describe
    from laminar.partition import check_memory
    from laminar.planning import make_plan
    from laminar.precision import check_compiler
    from laminar.store import check_scratch
    from laminar.trackers import check_trackers
    from laminar.weights import notices

    check_trackers(config.tracking)
    if address is None:  # a cluster's machines have compilers of their own
        check_compiler(config.precision, device_type_here(config))
    check_scratch(config.stored.scratch_dir)
    plan = make_plan(config, describe(config.data))
    check_memory(plan)
    text = (
        f"{config.num_stages} stages, cuts {list(plan.config.cuts or ())}, "
        f"{plan.parallel_fraction:.0%} of the passes parallel"
    )
    return "; ".join([text, *notices(plan)])


def _ray(config: Config, address: str | None) -> str:
    """Start a Ray as training would, or reach one, and run a task on it."""
    import ray

    from actors.cluster import ray_cluster

    with ray_cluster(address, config):
        node: str = ray.get(ray.remote(num_cpus=0)(platform.node).remote(), timeout=60)
        found = ray.cluster_resources()  # type: ignore[no-untyped-call]
        cpus, gpus = found.get("CPU", 0), found.get("GPU", 0)
    how = f"reached at {address}" if address else "starts on this machine"
    return f"{how}, ran a task on {node}; {cpus:g} CPUs and {gpus:g} GPUs"


def _attempt(what: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(what, "ok", check())
    except UserError as error:
        return Finding(what, "fails", str(error))
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        return Finding(what, "fails", f"{type(error).__name__}: {lines[-1] if lines else ''}")
