"""Whether a run has diverged, from the losses of its epochs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_FORGOTTEN = ((0.75, 0.95), (0.9, 0.99))
"""Of the loss of guessing: below how much it has been, from how much on what was learned is lost.
Wide apart, for the loss of a small or noisy run goes up and down."""
_EXPLODED = 3.0
"""Times the loss of guessing."""
_MIN_SAMPLES = 256
"""The loss of fewer says neither that something was learned nor that it was lost."""


@dataclass(frozen=True)
class Divergence:
    """What was seen in an epoch."""

    loss: float
    """The loss that is too high or no number."""
    limit: float
    """What it had to stay below; infinite where it only had to be a number."""

    def record(self) -> dict[str, float | None]:
        """Return both for a line of metrics.jsonl, where what is no number is null."""
        values = {"loss": self.loss, "limit": self.limit}
        return {name: v if math.isfinite(v) else None for name, v in values.items()}

    def describe(self, epoch: int) -> str:
        """Say in one line what happened and what to do.

        Args:
            epoch: From 1.
        """
        wanted = "a number" if math.isinf(self.limit) else f"< {self.limit:.3g}"
        return (
            f"the run diverged: loss {self.loss:.3g} in epoch {epoch}, expected {wanted}; lower "
            "optimizer.lr, with the stored feed stored.step_size, or raise phases.warmup; with "
            "on_divergence correct such a run goes on in the correction phase"
        )


def find_divergence(
    line: Mapping[str, Any],
    before: Sequence[Mapping[str, Any]],
    num_classes: int | None,
    batch_size: int,
) -> Divergence | None:
    """Compare an epoch's losses with the lowest that any phase had before.

    With E that loss and log C the loss of guessing among C classes: where E was below three
    quarters of log C, a parallel phase that ends at 95% of it has forgotten everything, and where E
    was below nine tenths, one at 99%; where the network had hardly learned, one above three times
    the larger of both has exploded. Phases of less than 256 samples say nothing of the former.
    Losses of other phases, and of test images, must be numbers.

    Args:
        line: Of metrics.jsonl, with `train_loss` and perhaps `visit_loss` of each phase.
        before: The lines of the epochs before.
        num_classes: C; None where the loss is the user's own and says nothing by its size.
        batch_size: Samples of a batch.
    """

    def is_short(phase: Mapping[str, Any]) -> bool:
        return bool(phase["num_batches"] * batch_size < _MIN_SAMPLES)

    lowest = math.inf
    for phase in (phase for earlier in before for phase in earlier["phases"]):
        if not is_short(phase):
            lowest = min(lowest, phase.get("train_loss", math.inf))
    for phase in line["phases"]:
        limit = math.inf
        if phase["phase"] == "parallel" and num_classes is not None:
            limit = _limit(lowest, math.log(num_classes), is_short=is_short(phase))
        for name in ("train_loss", "visit_loss"):
            loss = phase.get(name, 0.0)
            if not loss < limit:
                return Divergence(loss, limit)
        if not is_short(phase):
            lowest = min(lowest, phase["train_loss"])
    for name in ("train_loss", "test_loss"):
        if not math.isfinite(line[name]):
            return Divergence(line[name], math.inf)
    return None


def _limit(lowest: float, guessing: float, *, is_short: bool) -> float:
    for learned, forgotten in () if is_short else _FORGOTTEN:
        if lowest < learned * guessing:
            return forgotten * guessing
    return _EXPLODED * max(guessing, lowest if math.isfinite(lowest) else 0.0)
