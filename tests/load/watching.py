"""What the load test watches: how long answers take, how large the service is, what streams say."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import httpx
import psutil

from service.connection import parse_events
from service.jobs.models import ENDED

Answer = TypeVar("Answer")

_SILENCE_S = 90.0
"""For a stream, which says something every few seconds."""


class Stopwatch:
    """Times requests by what they were."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = {}
        self._lock = threading.Lock()

    def time(self, name: str, call: Callable[[], Answer]) -> Answer:
        """Call, and note what it took."""
        started = time.perf_counter()
        found = call()
        with self._lock:
            self.times.setdefault(name, []).append(time.perf_counter() - started)
        return found

    def summary(self) -> dict[str, dict[str, float]]:
        """Return count, median, 95th percentile and maximum of each kind of request."""
        return {
            name: {
                "count": len(times),
                "median_ms": round(1e3 * statistics.median(times), 1),
                "p95_ms": round(1e3 * sorted(times)[int(0.95 * (len(times) - 1))], 1),
                "max_ms": round(1e3 * max(times), 1),
            }
            for name, times in self.times.items()
        }


class Memory:
    """The resident megabytes of a service and, apart, of the processes that it has started."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self.samples: dict[str, list[float]] = {"service": [], "children": []}

    def sample(self) -> None:
        """Take one of each."""
        children = self._process.children(recursive=True)
        self.samples["service"].append(_megabytes([self._process]))
        self.samples["children"].append(_megabytes(children))

    def growth(self, num_last: int) -> dict[str, float]:
        """Return the median of the last samples over that of the first tenth of the others."""
        found = {}
        for name, samples in self.samples.items():
            before, last = samples[:-num_last], samples[-num_last:]
            first = before[: max(1, len(before) // 10)]
            found[name] = statistics.median(last) / statistics.median(first)
        return found


def _megabytes(processes: Sequence[psutil.Process]) -> float:
    return float(sum(process.memory_info().rss for process in processes)) / 1e6


@dataclass
class Stream:
    """What one listener heard."""

    job_id: str
    epochs: list[int] = field(default_factory=list)
    end: str | None = None
    """The state that the job ended in, once the stream has said so."""


class Listeners:
    """Live streams side by side, one for each name in `jobs`, each over one connection to its end.

    None is opened again where it breaks, unlike by our client, so that a broken one shows.
    """

    def __init__(self, url: str, jobs: Sequence[str]) -> None:
        self.streams = [Stream(job_id) for job_id in jobs]
        self.most_open = 0
        """The most that were open at once: that had heard something, and not the end."""
        self._num_open = 0
        self._lock = threading.Lock()
        self._client = httpx.Client(
            base_url=url,
            timeout=_SILENCE_S,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        )
        self._threads = [
            threading.Thread(target=self._listen, args=(stream,), daemon=True)
            for stream in self.streams
        ]
        for thread in self._threads:
            thread.start()

    def _listen(self, stream: Stream) -> None:
        is_open = False
        try:
            with self._client.stream("GET", f"/v1/jobs/{stream.job_id}/metrics/events") as answer:
                answer.raise_for_status()
                for event in parse_events(answer.iter_lines()):
                    content = event.json()
                    if event.event == "epoch":
                        stream.epochs.append(content["epoch"])
                    elif event.event == "end" and content["state"] in ENDED:
                        stream.end = content["state"]
                        return
                    if not is_open:
                        is_open = True
                        self._count(1)
        finally:
            if is_open:
                self._count(-1)

    def _count(self, change: int) -> None:
        with self._lock:
            self._num_open += change
            self.most_open = max(self.most_open, self._num_open)

    def join(self) -> None:
        """Wait for the ends, which those of the jobs bring."""
        for thread in self._threads:
            thread.join(60)
        self._client.close()
