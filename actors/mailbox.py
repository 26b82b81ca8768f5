"""A bounded mailbox: neighbours put messages in while the stage computes."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

Arrays = Sequence[NDArray[Any]]


class Aborted(RuntimeError):  # noqa: N818 - not a fault: somebody asked for it
    """The run was told to stop while a stage waited."""


class MessageTimeoutError(RuntimeError):
    """A neighbour's message did not come in time."""


class Mailbox:
    """Messages by (phase number, direction, micro-batch).

    Args:
        capacity: Messages of one direction that may wait; a further one makes its sender wait,
            which is the back-pressure of the pipeline.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._messages: dict[tuple[int, str, int], Arrays] = {}
        self._phase = 0
        self._aborted = False
        self._changed = threading.Condition()

    def open_phase(self, phase: int) -> None:
        """Begin a phase: forget what older ones left behind, and any abort."""
        with self._changed:
            self._phase, self._aborted = phase, False
            for key in [key for key in self._messages if key[0] < phase]:
                del self._messages[key]
            self._changed.notify_all()

    def put(self, phase: int, direction: str, micro: int, arrays: Arrays) -> None:
        """Store a message, waiting while the mailbox is full; drop one of an older phase."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._aborted or phase < self._phase or self._count(direction) < self._capacity
                )
            )
            if not self._aborted and phase >= self._phase:
                self._messages[phase, direction, micro] = arrays
                self._changed.notify_all()

    def take(self, phase: int, direction: str, micro: int, timeout_s: float) -> Arrays:
        """Return a message and forget it, waiting for it if need be.

        Raises:
            Aborted: `abort` was called.
            MessageTimeoutError: It did not come within `timeout_s` seconds.
        """
        key = (phase, direction, micro)
        started = time.monotonic()
        with self._changed:
            if not self._changed.wait_for(
                lambda: self._aborted or key in self._messages, timeout_s
            ):
                raise MessageTimeoutError(
                    f"no {direction} message of micro-batch {micro} after "
                    f"{time.monotonic() - started:.0f} s; the neighbouring stage is dead, stalled "
                    "or slower than resources.message_timeout_s allows"
                )
            if self._aborted:
                raise Aborted("the run was stopped")
            arrays = self._messages.pop(key)
            self._changed.notify_all()
            return arrays

    def take_now(self, phase: int, direction: str, micro: int) -> Arrays | None:
        """Return a message and forget it, None if it is not here yet.

        Raises:
            Aborted: `abort` was called.
        """
        with self._changed:
            if self._aborted:
                raise Aborted("the run was stopped")
            arrays = self._messages.pop((phase, direction, micro), None)
            self._changed.notify_all()
            return arrays

    def abort(self) -> None:
        """Wake whoever waits, with `Aborted`, until the next phase opens."""
        with self._changed:
            self._aborted = True
            self._messages.clear()
            self._changed.notify_all()

    @property
    def is_aborted(self) -> bool:
        """Whether `abort` was called since the phase opened."""
        return self._aborted

    def _count(self, direction: str) -> int:
        return sum(key[1] == direction for key in self._messages)
