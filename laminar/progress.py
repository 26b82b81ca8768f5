"""What a running job tells whoever watches it: small immutable records, no behaviour."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

PhaseName = Literal["starting", "correction", "parallel", "ledger", "evaluation", "checkpoint"]


@dataclass(frozen=True)
class Progress:
    """Where the run stands, a few times a second."""

    epoch: int
    """Epoch under way, from 1."""
    num_epochs: int
    phase: PhaseName
    num_batches_done: int
    """Batches finished in the whole run, all epochs counted."""
    num_batches: int
    """Batches of the whole run."""
    samples_per_s: float | None
    """Training samples per second over the last few seconds; None before the first batch."""
    eta_s: float | None
    """Seconds until the run ends, at the mean speed so far; None before the first batch."""
    loss: float | None
    """Mean training loss of this epoch so far."""
    accuracy: float | None
    """Training accuracy of this epoch so far, 0..1."""


@dataclass(frozen=True)
class DataProgress:
    """Images are being decoded, before training begins."""

    num_done: int
    num_images: int


@dataclass(frozen=True)
class EpochEnd:
    """An epoch is over: the line that went into metrics.jsonl."""

    metrics: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Notice:
    """Something the user should know: one sentence or two."""

    message: str


Event = Progress | DataProgress | EpochEnd | Notice
Callback = Callable[[Event], None]
