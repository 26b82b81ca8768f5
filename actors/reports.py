"""What stages tell the coordinator, which needs no torch to read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from laminar.cut_probe import CutProbe
from laminar.exactness import Exactness
from laminar.tally import Tally
from laminar.timeline import Kind, Span

if TYPE_CHECKING:
    from laminar.engine import Direction


@dataclass(frozen=True)
class SentBytes:
    """Payload that was sent, without headers."""

    inline_bytes: int
    """Inside actor calls."""
    store_bytes: int
    """Through the object store."""

    def __add__(self, other: SentBytes) -> SentBytes:
        """Add up both kinds."""
        return SentBytes(
            self.inline_bytes + other.inline_bytes, self.store_bytes + other.store_bytes
        )


@dataclass(frozen=True)
class StageReport:
    """What a stage says after a phase."""

    seconds: float
    """From the start of the phase to its last message."""
    seconds_by_kind: dict[Kind, float]
    """Of these, what was spent on what; they sum to `seconds`."""
    sent: dict[Direction, SentBytes]
    tally: Tally
    spans: tuple[Span, ...]
    """What happened when, for a few batches in the middle of a measured phase."""
    cut: CutProbe | None
    """The cut behind this stage, in a measured phase."""
    has_kept: bool = False
    """Whether it has what `measure_exactness` needs: a phase may not have come to that batch."""
    exactness: Exactness | None = None
    """From `measure_exactness` only."""


@dataclass(frozen=True)
class StageProgress:
    """Where a stage is, read while it works."""

    num_batches: int
    """Batches done in the phase under way."""
    tally: Tally
