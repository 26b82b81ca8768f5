"""Where a stage's seconds go: sums for every phase, and spans for a short stretch of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal[
    "data", "forward", "backward", "update", "wait_forward", "wait_adjoint", "send", "other"
]
"""What a stage does: read and augment data, compute, wait for a neighbour's message, hand its own
over. `other` is the rest: control, and in the parallel phase the delivery of the last messages."""

MAX_SPANS = 400


@dataclass(frozen=True)
class Span:
    """One thing that a stage did."""

    kind: Kind
    micro: int
    """Micro-batch within the phase; -1 where it is not about one."""
    start_s: float
    """Seconds since the epoch of the system's clock, so that stages on several machines compare
    as well as their clocks agree."""
    end_s: float


class Clock:
    """A stopwatch per kind.

    Args:
        synchronize: Called before a span ends while spans are kept, to wait for work that a GPU
            has been given; None for a CPU. Sums are taken without it: there the seconds of a kernel
            count where the stage next waits for it, mostly in `send`.
    """

    def __init__(self, synchronize: Callable[[], None] | None = None) -> None:
        self._synchronize = synchronize
        self.start()

    def start(self) -> None:
        """Begin a phase: all sums zero, no spans."""
        self.seconds: dict[Kind, float] = {}
        self.spans: list[Span] = []
        self.is_tracing = False
        self._to_system_time = time.time() - time.perf_counter()

    @contextlib.contextmanager
    def span(self, kind: Kind, micro: int = -1) -> Iterator[None]:
        """Count what happens within the block as `kind`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            if self.is_tracing and self._synchronize is not None:
                self._synchronize()
            ended = time.perf_counter()
            self.seconds[kind] = self.seconds.get(kind, 0.0) + ended - started
            if self.is_tracing and len(self.spans) < MAX_SPANS:
                offset = self._to_system_time
                self.spans.append(Span(kind, micro, started + offset, ended + offset))

    def finish(self, seconds: float) -> dict[Kind, float]:
        """Return the sums of a phase that took so many seconds, `other` included."""
        other = max(0.0, seconds - sum(self.seconds.values()))
        return {**self.seconds, "other": other}


class TimedBatches:
    """Images or labels of a stage, the making of each batch counted as `data`."""

    def __init__(self, batches: Any, clock: Clock) -> None:
        self._batches, self._clock = batches, clock

    def train(self, epoch: int, batch: int, is_augmented: bool = True) -> Any:
        """Return what the wrapped batches return."""
        with self._clock.span("data"):
            return self._batches.train(epoch, batch, is_augmented)

    def test(self, batch: int) -> Any:
        """Return what the wrapped batches return."""
        with self._clock.span("data"):
            return self._batches.test(batch)


def traced_batches(num_batches: int, num_stages: int, hop_ticks: int, per_batch: int) -> range:
    """Return which batches of a phase to trace: two in the middle of it.

    Stage k applies a batch (K-1-k)d ticks after the last stage, so each stage traces so many more
    that all have a stretch in common.

    Args:
        num_batches: Batches of the phase.
        num_stages: K.
        hop_ticks: Ticks by which neighbours are apart, d; 0 in the correction phase.
        per_batch: Micro-batches per batch, M.
    """
    num = min(num_batches, 2 - (-(num_stages - 1) * hop_ticks // per_batch))
    first = (num_batches - num) // 2
    return range(first, first + num)
