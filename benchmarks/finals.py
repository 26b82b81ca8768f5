"""What the tables of accuracy say of one setting's finished runs."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path


def finals(results: Path, name: str) -> dict[int, float]:
    """Return the last test accuracy of each seed, by seed.

    Args:
        results: Folder of `NAME-seedN.jsonl`, one line an epoch.
        name: Of the setting.
    """
    found = {}
    for path in results.glob(f"{name}-seed*.jsonl"):
        last = json.loads(path.read_text().splitlines()[-1])
        found[int(path.stem.rpartition("seed")[2])] = last["test_accuracy"]
    return dict(sorted(found.items()))


def spread(values: Mapping[int, float]) -> str:
    """Return mean, standard deviation and number of seeds; a dash where there is none."""
    if not values:
        return "-"
    mean, deviation = _mean_and_deviation(values)
    return f"{mean}{deviation} ({len(values)})"


def final_cells(results: Path, name: str) -> list[str] | None:
    """Return how many seeds, mean +- std and each test accuracy; None before the first is done."""
    values = finals(results, name)
    if not values:
        return None
    mean, deviation = _mean_and_deviation(values)
    each = " ".join(f"{accuracy:.4f}" for accuracy in values.values())
    return [str(len(values)), f"**{mean}**{deviation}", each]


def _mean_and_deviation(values: Mapping[int, float]) -> tuple[str, str]:
    deviation = f" +- {statistics.stdev(values.values()):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values.values()):.4f}", deviation
