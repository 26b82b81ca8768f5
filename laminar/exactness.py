"""The exactness ledger: how far the gradients of the parallel phase are from exact ones.

For a batch b let W_k be stage k's weights just before it applies b; the stages apply b at different
times, so these weights never stand side by side. g*(b) is the exact gradient of b's loss at
(W_0, .., W_{K-1}), what ordinary backprop would have applied there. A stage keeps W_k and the g_k
that it applied; when the phase has drained, `laminar.engine.exact_gradient` computes g* at the kept
weights (docs/decisions/how-exactness-is-measured.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from laminar.config import LedgerConfig
from laminar.plan import Segment


@dataclass(frozen=True)
class Exactness:
    """Sums over parameters that compare an applied gradient g with the exact one, g*."""

    dot: float
    """<g, g*>"""
    square: float
    """|g|^2"""
    exact_square: float
    """|g*|^2"""
    error_square: float
    """|g - g*|^2"""

    @property
    def cosine(self) -> float:
        """<g, g*> / (|g| |g*|), 1 where both are the same, bit for bit; 0 where one is zero."""
        whole = (self.square * self.exact_square) ** 0.5
        return self.dot / whole if whole else 0.0

    @property
    def relative_error(self) -> float:
        """|g - g*| / |g*|; 0 where g* is zero, for a network may die."""
        return (self.error_square / self.exact_square) ** 0.5 if self.exact_square else 0.0

    def __add__(self, other: Exactness) -> Exactness:
        """Put two stages' parameters together."""
        return Exactness(
            self.dot + other.dot,
            self.square + other.square,
            self.exact_square + other.exact_square,
            self.error_square + other.error_square,
        )


def is_in_ledger(segment: Segment, ledger: LedgerConfig | None) -> bool:
    """Whether the longest segment of its phase and epoch has an entry."""
    return ledger is not None and segment.phase == "parallel" and segment.epoch % ledger.every == 0


def probed_batch(segment: Segment) -> Segment:
    """Return the batch of a parallel segment that the ledger looks at: the one in its middle."""
    first = segment.first_batch + segment.num_batches // 2
    return Segment(segment.phase, segment.epoch, first, 1)
