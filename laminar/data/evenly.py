"""Which samples stand for all where there are more than wanted."""

from __future__ import annotations


def evenly(num: int, limit: int | None) -> list[int]:
    """Return at most `limit` of the indices 0..num-1, evenly spread; None is all."""
    if limit is None or limit >= num:
        return list(range(num))
    return [i * num // limit for i in range(limit)]
