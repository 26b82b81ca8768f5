"""The counter-based generator Philox4x32-10 (Salmon et al. 2011), vectorised over counters.

Random numbers of a sample are a function of (seed, epoch, stream, sample index): no state to
carry, nothing to replay when a run resumes, and any batch can be made on its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

UInt32 = NDArray[np.uint32]
Words = Any
"""64-bit integers of numpy or torch, of which the lower 32 bits count."""

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF


def ten_rounds(counter: Sequence[Words], key: Sequence[Words]) -> list[Words]:
    """Return 128 random bits per counter as four words of 32.

    Args:
        counter: Four words of 32 bits, uint64 of numpy or int64 of torch, that broadcast.
        key: Two of them, or two integers.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # Masked after each shift: signed integers of torch shift their sign in.
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = ((product1 >> 32) & _LOW) ^ c1 ^ k0
        c2 = ((product0 >> 32) & _LOW) ^ c3 ^ k1
        c1, c3 = product1 & _LOW, product0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return [c0, c1, c2, c3]


def philox4x32(counter: UInt32, key: tuple[int, int]) -> UInt32:
    """Return 128 random bits per counter.

    Args:
        counter: uint32 [N, 4].
        key: Two 32-bit words.

    Returns:
        uint32 [N, 4].
    """
    words = ten_rounds([counter[:, i].astype(np.uint64) for i in range(4)], key)
    return np.stack(words, axis=1).astype(np.uint32)


def sample_bits(seed: int, epoch: int, stream: int, index: NDArray[np.int64]) -> UInt32:
    """Return 128 random bits for each sample.

    Args:
        seed: 64 bits.
        epoch: 32 bits.
        stream: What the numbers are for, 32 bits; different streams are independent.
        index: int64 [N], sample indices.

    Returns:
        uint32 [N, 4].
    """
    counter = np.empty((len(index), 4), np.uint32)
    counter[:, 0], counter[:, 1] = index & 0xFFFFFFFF, index >> 32
    counter[:, 2], counter[:, 3] = epoch, stream
    return philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))
