"""A device beside the CPU, in the CPU's memory: what computes there must forget no `.to(device)`.

It takes the place of a GPU where there is none. As on one, an operation on tensors of both devices
fails; unlike on one, the numbers are those of the CPU, bit for bit.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map

_NAME = "other"
_aten = torch.ops.aten
_COPIES = (_aten.copy_.default, _aten._to_copy.default)


class OtherTensor(torch.Tensor):
    """A tensor of that device; `raw` is the same one on the CPU."""

    raw: torch.Tensor

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> OtherTensor:
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            raw.size(),
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=other_device(),
        )
        tensor.raw = raw
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        own = {id(tensor.raw): tensor for tensor in tensors if isinstance(tensor, cls)}
        # As CUDA does: scalars and indices may come from the CPU.
        if func not in _COPIES and not func.name().startswith("aten::index"):
            strangers = [t for t in tensors if not isinstance(t, cls) and t.dim()]
            if strangers:
                raise RuntimeError(f"{func.name()} of tensors on two devices")
        goes_to_cpu = torch.device(kwargs.get("device") or other_device()).type == "cpu"
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        raw_args, raw_kwargs = tree_map(_raw, (args, kwargs))
        found = func(*raw_args, **raw_kwargs)
        if goes_to_cpu:
            return found

        # What is changed in place comes back as itself.
        return tree_map(lambda v: own[id(v)] if id(v) in own else _wrapped(v), found)


def _raw(value: Any) -> Any:
    return value.raw if isinstance(value, OtherTensor) else value


def _wrapped(value: Any) -> Any:
    return OtherTensor(value) if isinstance(value, torch.Tensor) else value


def other_device() -> torch.device:
    """Return the device; skip the test where torch knows none that are written in Python."""
    if not register():
        pytest.skip(f"torch {torch.__version__} knows no devices written in Python")
    return torch.device(_NAME, 0)


@functools.cache
def register() -> bool:
    """Tell torch of the device for the rest of this process, before autograd starts its threads.

    Returns:
        Whether this torch can be told; it is an experimental function.
    """
    set_up = getattr(backend_registration, "_setup_privateuseone_for_python_backend", None)
    if set_up is None:
        return False
    set_up(_NAME)
    library = torch.library.Library("aten", "IMPL")
    library.impl("empty.memory_format", _empty, "PrivateUse1")
    library.impl("empty_strided", _empty_strided, "PrivateUse1")
    _KEPT.append(library)
    return True


_KEPT: list[torch.library.Library] = []
"""What a library registers ends with it."""


def _empty(size, *, dtype=None, memory_format=None, **_):  # type: ignore[no-untyped-def]
    return OtherTensor(torch.empty(size, dtype=dtype, memory_format=memory_format))


def _empty_strided(size, stride, *, dtype=None, **_):  # type: ignore[no-untyped-def]
    return OtherTensor(torch.empty_strided(size, stride, dtype=dtype))
