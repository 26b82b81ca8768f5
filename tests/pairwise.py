"""Pairwise covering: few cases in which every pair of values of two factors occurs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any


def pairs_of(case: Sequence[Any]) -> set[tuple[int, Any, int, Any]]:
    """Return the pairs (factor, value, factor, value) of a case."""
    return {
        (i, repr(case[i]), j, repr(case[j])) for i, j in itertools.combinations(range(len(case)), 2)
    }


def covering(factors: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
    """Return cases, greedily chosen, that cover all pairs of values."""
    everything = list(itertools.product(*factors))
    missing = set().union(*(pairs_of(case) for case in everything))
    chosen = []
    while missing:
        best = max(everything, key=lambda case: len(pairs_of(case) & missing))
        chosen.append(best)
        missing -= pairs_of(best)
    return chosen
