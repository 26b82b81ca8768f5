"""The ledger that a search leaves."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from tuning.ledger import Ledger


def epoch_of(epoch: int, accuracy: float, *, is_last: bool = False) -> dict[str, Any]:
    return {
        "epoch": epoch, "num_epochs": 2, "test_accuracy": accuracy, "seconds": 1.0,
        "epoch_cut_bytes": 10, "done": is_last,
    }  # fmt: skip


def write_ledger(run: Path) -> Ledger:
    """What a search leaves: a trial that was finished, one that failed, one under way."""
    run.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(run)
    ledger.begin()
    for name, lr in (("aa", 0.02), ("bb", 0.05), ("cc", 0.09)):
        ledger.note(name, {"optimizer.lr": lr}, "running")
    ledger.report("aa", {"optimizer.lr": 0.02}, epoch_of(1, 0.5))
    ledger.report("aa", {"optimizer.lr": 0.02}, epoch_of(2, 0.75, is_last=True))
    ledger.note("aa", {"optimizer.lr": 0.02}, "finished")
    ledger.note("bb", {"optimizer.lr": 0.05}, "failed", "a stage died")
    ledger.report("cc", {"optimizer.lr": 0.09}, epoch_of(1, math.inf))
    return ledger
