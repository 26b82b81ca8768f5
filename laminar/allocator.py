"""Keep the memory that one step frees for the next one."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
"""Parameters of glibc's mallopt."""

_MMAP_THRESHOLD_MAX = 4 * 1024 * 1024 * ctypes.sizeof(ctypes.c_long)
"""The largest that glibc accepts."""


def keep_freed_memory() -> bool:
    """Tell glibc to reuse freed memory instead of giving it back to the system.

    A step allocates and frees the same tensors again and again; handing their pages back and
    faulting them in anew costs 3 to 8% of a step on a CPU (docs/log.md). The process keeps the
    memory of its largest step, which it needs for the next one anyway.

    Returns:
        Whether the C library understood; False on systems without glibc, which do without.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    wanted = (
        (_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_MAX),
        (_M_TRIM_THRESHOLD, 2**31 - 1),
        (_M_TOP_PAD, 64 * 1024 * 1024),
    )
    return all(mallopt(parameter, value) == 1 for parameter, value in wanted)
