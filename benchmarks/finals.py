"""What the tables of accuracy say of one setting's finished runs."""

from __future__ import annotations

import json
import statistics
from pathlib import Path


def final_cells(results: Path, name: str) -> list[str] | None:
    """Return how many seeds, mean +- std and each test accuracy; None before the first is done.

    Args:
        results: Folder of `NAME-seedN.jsonl`, one line an epoch.
        name: Of the setting.
    """
    finals = [
        json.loads(path.read_text().splitlines()[-1])["test_accuracy"]
        for path in sorted(results.glob(f"{name}-seed*.jsonl"))
    ]
    if not finals:
        return None
    spread = f" +- {statistics.stdev(finals):.4f}" if len(finals) > 1 else ""
    each = " ".join(f"{accuracy:.4f}" for accuracy in finals)
    return [str(len(finals)), f"**{statistics.mean(finals):.4f}**{spread}", each]
