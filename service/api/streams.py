"""What grows while a job runs, from the files it writes: logs, metrics, states."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from anyio import to_thread
from fastapi.sse import ServerSentEvent

from service.jobs.models import ENDED
from service.jobs.store import LOG, RUN, JobStore, NoSuchJob

MAX_TAIL_BYTES = 1 << 20
_CHUNK_BYTES = 64 << 10


def tail_log(store: JobStore, job_id: str, num_lines: int) -> str:
    """Return the last lines of a job's log, as far as they are within its last megabyte."""
    name = f"{job_id}/{LOG}"
    size = store.storage.size(name) or 0
    start = max(0, size - MAX_TAIL_BYTES)
    content = store.storage.read_from(name, start, size - start) or b""
    lines = content.decode(errors="replace").splitlines(keepends=True)
    if start and lines:
        del lines[0]  # which the cut went through
    return "".join(lines[-num_lines:])


def first_line_within(store: JobStore, job_id: str, num_bytes: int) -> int:
    """Return where the first whole line within the last bytes of a job's log begins."""
    name = f"{job_id}/{LOG}"
    start = (store.storage.size(name) or 0) - num_bytes
    if start <= 0:
        return 0
    content = store.storage.read_from(name, start - 1, _CHUNK_BYTES) or b""
    return start + content.find(b"\n")  # a line longer than all that is shown from `start` - 1 on


def metrics_file(store: JobStore, job_id: str) -> str:
    """Return the name of the file that grows with a job's figures."""
    is_search = store.spec(job_id).request.kind == "search"
    return f"{job_id}/{RUN}/{'trials' if is_search else 'metrics'}.jsonl"


def read_metrics(store: JobStore, job_id: str) -> list[dict[str, Any]]:
    """Return a line for each finished epoch; of a search the lines of its ledger."""
    return parse_lines(store.storage.read(metrics_file(store, job_id)) or b"")


def parse_lines(content: bytes) -> list[dict[str, Any]]:
    """Return the whole lines of a file of JSON lines; a last one may still be under way.

    What is no finite number, of a run that diverged, is null: JSON proper has no word for it.
    """
    found = []
    for line in content.splitlines():
        try:
            found.append(json.loads(line, parse_constant=lambda _: None))
        except ValueError:
            break
    return found


class Follower:
    """Follows one job for one listener.

    Args:
        store: The jobs.
        job_id: Which one.
        poll_s: Seconds between two looks at the files.
        is_over: Whether to end before the job does; asked before each look.
    """

    def __init__(
        self, store: JobStore, job_id: str, poll_s: float, is_over: Callable[[], bool]
    ) -> None:
        self._store, self._id, self._poll_s = store, job_id, poll_s
        self._is_over = is_over

    async def logs(self, offset: int) -> AsyncIterator[ServerSentEvent]:
        """Yield the log from a byte on; an event's id is where the next one begins.

        A job that goes on after its end, by a resume, is another stream.
        """
        name = f"{self._id}/{LOG}"
        async for is_last in self._looks():
            while True:
                content = await to_thread.run_sync(
                    self._store.storage.read_from, name, offset, _CHUNK_BYTES
                )
                whole = _whole_lines(content or b"", is_last=is_last)
                if not whole:
                    break
                offset += len(whole)
                text = whole.decode(errors="replace").removesuffix("\n")
                yield ServerSentEvent(raw_data=text, event="log", id=str(offset))
        yield self._end()

    async def metrics(self, num_lines: int) -> AsyncIterator[ServerSentEvent]:
        """Yield `state`, `progress` and `epoch` events; of epochs those after the first so many.

        Of a search `state`, `search` and `trial`, by the lines of its ledger.
        """
        told: dict[str, Any] = {}
        size, name = -1, metrics_file(self._store, self._id)
        is_search = self._store.spec(self._id).request.kind == "search"
        async for _ in self._looks():
            summary = self._store.summary(self._id)
            state = {"state": summary.state, "reason": summary.reason, "attempt": summary.attempt}
            progress = summary.progress and summary.progress.model_dump()
            search = summary.search_progress and summary.search_progress.model_dump()
            for kind, value in (("state", state), ("progress", progress), ("search", search)):
                if value is not None and told.get(kind) != value:
                    told[kind] = value
                    yield ServerSentEvent(data=value, event=kind)
            now = await to_thread.run_sync(self._store.storage.size, name)
            if now is None or now == size:
                continue
            size = now
            lines = await to_thread.run_sync(read_metrics, self._store, self._id)
            # Fewer than before: a later attempt does again what the checkpoint did not hold.
            num_lines = min(num_lines, len(lines))
            for line in lines[num_lines:]:
                num_lines += 1
                event = "trial" if is_search else "epoch"
                yield ServerSentEvent(data=line, event=event, id=str(num_lines))
        yield self._end()

    async def _looks(self) -> AsyncIterator[bool]:
        """Yield whenever it is time to look, a last time, saying so, after the job's end."""
        while not self._is_over():
            try:
                is_last = self._store.status(self._id).state in ENDED
            except NoSuchJob:
                return  # deleted
            yield is_last
            if is_last:
                return
            await asyncio.sleep(self._poll_s)

    def _end(self) -> ServerSentEvent:
        try:
            state: str | None = self._store.status(self._id).state
        except NoSuchJob:
            state = None
        return ServerSentEvent(data={"state": state}, event="end")


def _whole_lines(content: bytes, *, is_last: bool) -> bytes:
    """Return what ends in a line's end; all where nothing will follow, or a line never ends."""
    if is_last or len(content) >= _CHUNK_BYTES:
        end = content.rfind(b"\n") + 1
        return content[:end] if end else content
    return content[: content.rfind(b"\n") + 1]
