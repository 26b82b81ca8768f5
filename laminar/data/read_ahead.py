"""Start coming work early, in the order in which it will be asked for."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

Value = TypeVar("Value", covariant=True)
Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")


class Pending(Protocol[Value]):
    """Work under way."""

    def result(self) -> Value:
        """Wait for the work and return what it made, or raise what went wrong."""

    def cancel(self) -> None:
        """Leave what has not begun."""


class ReadAhead(Generic[Key, Result]):
    """Whenever a key is asked for, the work of the `depth` keys after it is under way.

    Args:
        start: Begins the work of a key, without waiting for it.
        following: The key that will be asked for next; None after the last.
        depth: How many keys to be ahead.
    """

    def __init__(
        self,
        start: Callable[[Key], Pending[Result]],
        following: Callable[[Key], Key | None],
        depth: int,
    ) -> None:
        self._start, self._following, self._depth = start, following, depth
        self._pending: dict[Key, Pending[Result]] = {}

    def get(self, key: Key) -> Result:
        """Return the result of a key; what was started for keys no longer to come is left."""
        wanted = [key]
        while len(wanted) <= self._depth and (after := self._following(wanted[-1])) is not None:
            wanted.append(after)
        kept = {k: self._pending.pop(k) for k in wanted if k in self._pending}
        self.cancel()
        self._pending = {k: kept[k] if k in kept else self._start(k) for k in wanted}
        return self._pending.pop(key).result()

    def cancel(self) -> None:
        """Leave all that is under way."""
        for pending in self._pending.values():
            pending.cancel()
        self._pending = {}
