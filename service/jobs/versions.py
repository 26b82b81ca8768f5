"""Versions that client, service and cluster must have in common."""

from __future__ import annotations

import importlib.metadata
import platform

from service.jobs.models import Versions

PACKAGES = {"ray": "ray", "torch": "torch", "laminar": "laminar-train"}


def versions_here() -> Versions:
    """Return this process's; nothing is imported for it."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name, package in PACKAGES.items():
        try:
            found[name] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return Versions.model_validate(found)


def differences(ours: Versions, theirs: Versions) -> list[str]:
    """Return what differs, as `torch 2.11.0 and 2.12.0`; what one side does not have is no matter.

    Of Python major and minor count, of the others all of it, local labels such as `+cpu` apart:
    they say how a build was made, not what it computes.
    """
    odd = []
    for name in Versions.model_fields:
        one, other = getattr(ours, name), getattr(theirs, name)
        if (
            one is not None
            and other is not None
            and _significant(name, one) != _significant(name, other)
        ):
            odd.append(f"{name} {one} and {other}")
    return odd


def _significant(name: str, version: str) -> str:
    public = version.partition("+")[0]
    return ".".join(public.split(".")[:2]) if name == "python" else public
