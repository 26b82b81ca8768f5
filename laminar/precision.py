"""How a stage computes: autocast, memory format, TF32, compilation."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from laminar.config import PrecisionConfig
from laminar.errors import ResourceError

M = TypeVar("M", bound=nn.Module)


def autocast(
    config: PrecisionConfig, device: torch.device
) -> contextlib.AbstractContextManager[Any]:
    """Return the context that forwards run in."""
    if config.compute == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def place(module: M, config: PrecisionConfig, device: torch.device) -> M:
    """Move a module to its device and its weights to the memory format."""
    module = module.to(device)
    if config.memory_format == "channels_last":
        module = module.to(memory_format=torch.channels_last)
    return module


def place_input(x: Tensor, config: PrecisionConfig, device: torch.device) -> Tensor:
    """Return x on the device and, if it is an image [B, C, H, W], in the memory format."""
    x = x.to(device, non_blocking=True)
    if config.memory_format == "channels_last" and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    return x


def use_tf32(config: PrecisionConfig) -> None:
    """Set TF32 for this process; null leaves torch's own choice."""
    if config.tf32 is not None:
        torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = config.tf32


def check_compiler(config: PrecisionConfig, device_type: str) -> None:
    """Find out whether torch.compile has what it needs, before anything is trained.

    Raises:
        ResourceError: `compile` is wanted and there is no C++ compiler (on CPU) or no Triton.
    """
    if not config.compile:
        return
    if device_type == "cuda":
        found = importlib.util.find_spec("triton") is not None
        needed = "Triton"
    else:
        names = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++"]
        found = any(shutil.which(name) for name in names)
        needed = f"a C++ compiler ({' or '.join(names)})"
    if not found:
        raise ResourceError(
            "precision.compile must find what torch.compile builds with",
            got="none",
            expected=needed,
            fix="install it, or set precision.compile to false",
        )
