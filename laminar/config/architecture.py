"""The names of networks, and what they say of depth and width."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Literal

from laminar.errors import ConfigError

Family = Literal["cifar", "torchvision", "preact", "preact_bottleneck", "wide", "custom"]

TORCHVISION = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "wide_resnet50_2",
    "wide_resnet101_2",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
)
EXAMPLES = (
    *(f"resnet{depth}" for depth in (8, 14, 20, 32, 44, 56, 110, 1202)),
    *TORCHVISION,
    *(f"preact_resnet{depth}" for depth in (20, 56, 110, 164, 1001)),
    *("wrn16_2", "wrn16_4", "wrn16_8", "wrn28_10", "wrn40_2", "wrn40_4"),
)


@dataclass(frozen=True)
class Architecture:
    """What a name says."""

    family: Family
    depth: int
    """Convolutions and linear layers, shortcuts apart; of no meaning for torchvision's."""
    widen: int = 1
    """Factor on the channels of all residual blocks."""


def parse_name(name: str) -> Architecture:
    """Return what a network's name says.

    `resnet50` and `resnet152` are also of the form 6n+2; they are torchvision's. `preact_resnet164`
    is also 6n+2; it is the one of He et al., with bottlenecks. `custom` is what Python code brings.

    Raises:
        ConfigError: There is no such network.
    """
    found = _parse(name)
    if found is None:
        near = difflib.get_close_matches(name, EXAMPLES, 1)
        raise ConfigError(
            "`model.name` must name a network",
            got=f"{name!r}",
            expected=f"resnetD or preact_resnetD with D = 6n+2, preact_resnet164 or 1001, wrnD_K "
            f"with D = 6n+4, or one of {', '.join(TORCHVISION)}",
            fix=f"did you mean `{near[0]}`?" if near else "see docs/networks.md",
        )
    return found


def _parse(name: str) -> Architecture | None:
    if name in TORCHVISION:
        return Architecture("torchvision", int(re.findall(r"\d+", name)[0]))
    if name in ("preact_resnet164", "preact_resnet1001"):
        return Architecture("preact_bottleneck", int(name.removeprefix("preact_resnet")))
    if name == "custom":
        return Architecture("custom", 0)
    match = re.fullmatch(r"(resnet|preact_resnet|wrn)(\d{1,4})(?:_(\d{1,2}))?", name)
    if match is None:
        return None
    kind, depth, widen = match[1], int(match[2]), match[3]
    families: dict[str, tuple[Family, int]] = {
        "resnet": ("cifar", 2),
        "preact_resnet": ("preact", 2),
        "wrn": ("wide", 4),
    }
    family, extra = families[kind]
    if depth <= extra or (depth - extra) % 6 or (widen is not None) != (family == "wide"):
        return None
    if widen == "0" * len(widen or ""):
        return None
    return Architecture(family, depth, int(widen or 1))
