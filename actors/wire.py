"""Messages as numpy arrays: what Ray ships without pickling tensors, and reads without copying."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray

from actors.reports import SentBytes
from laminar.filters import Message

INLINE_LIMIT_BYTES = 100 * 1024
"""Ray's max_direct_call_object_size: a larger argument goes through the object store."""

_HEADER_BYTES = 512
"""Upper bound of what serialisation adds to an array; it decides only the border cases."""


def to_arrays(message: Message) -> list[NDArray[Any]]:
    """Return views of the message's tensors, which must not be written to afterwards."""
    return [part.cpu().numpy() for part in message]


def from_arrays(arrays: Sequence[NDArray[Any]]) -> Message:
    """Return tensors over arrays that may lie read-only in the object store: never write to them.

    Decoding reads them once and makes tensors of its own.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return tuple(torch.from_numpy(array) for array in arrays)


def count_bytes(arrays: Sequence[NDArray[Any]]) -> SentBytes:
    """Return how many bytes of a message travel which way."""
    sizes = [array.nbytes for array in arrays]
    stored = sum(size for size in sizes if size + _HEADER_BYTES > INLINE_LIMIT_BYTES)
    return SentBytes(sum(sizes) - stored, stored)
