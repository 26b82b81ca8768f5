"""`make test-load`: many tiny jobs at once on a small cluster, and many listeners.

Checks that none is lost and none runs twice, and prints what the API's answers took, what the
service's memory did, and how the live streams fared. Takes ten seconds a job on two cores, as each
is a driver and a stage that import torch, and a coordinator; not part of `make test`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.speed.run import environment
from service.client import LaminarClient, ServiceError
from service.jobs.models import ENDED, JobRequest
from tests.end_to_end.deployment import deployment
from tests.tiny import tiny_config

HERE = Path(__file__).parent
NUM_EPOCHS = 2
_POLL_S = 1.0
_LIMIT_MS = 100.0
_STOPPED = {"succeeded", "stopped"}
_GROWTH = 1.2
"""Memory at the end over that after the submissions: the allocator keeps some, a leak keeps all."""


class Stopwatch:
    """Times requests by what they were."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = {}
        self._lock = threading.Lock()

    def time(self, name: str, call: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        found = call()
        with self._lock:
            self.times.setdefault(name, []).append(time.perf_counter() - started)
        return found

    def summary(self) -> dict[str, dict[str, float]]:
        return {
            name: {
                "count": len(times),
                "median_ms": round(1e3 * statistics.median(times), 1),
                "p95_ms": round(1e3 * sorted(times)[int(0.95 * (len(times) - 1))], 1),
                "max_ms": round(1e3 * max(times), 1),
            }
            for name, times in self.times.items()
        }


def submit_all(url: str, num_jobs: int, num_clients: int, watch: Stopwatch) -> list[str]:
    """Submit jobs that differ in their seed, by so many clients at a time."""

    own = threading.local()

    def begin() -> None:
        own.client = LaminarClient(url)

    def submit(seed: int) -> str:
        config = tiny_config(
            5, epochs=NUM_EPOCHS, seed=seed, num_stages=1, resources={"cpus_per_stage": 1.0}
        )
        request = JobRequest(config=config, name=f"load-{seed}")
        job_id: str = watch.time("submit", lambda: own.client.submit(request).id)
        return job_id

    with ThreadPoolExecutor(num_clients, initializer=begin) as pool:
        return list(pool.map(submit, range(num_jobs)))


class Listeners:
    """So many live streams at once, each on one of the first jobs, to that job's end."""

    def __init__(self, url: str, jobs: list[str], num: int) -> None:
        self.ended: list[bool] = []
        self._threads = [
            threading.Thread(target=self._listen, args=(url, jobs[n % len(jobs)]), daemon=True)
            for n in range(num)
        ]
        for thread in self._threads:
            thread.start()

    def _listen(self, url: str, job_id: str) -> None:
        with LaminarClient(url) as client:
            last = None
            for event in client.follow_metrics(job_id):
                last = event
            self.ended.append(last is not None and last.event == "end")

    def join(self) -> None:
        for thread in self._threads:
            thread.join(60)


def poll_until_done(
    url: str, jobs: list[str], process: psutil.Process, watch: Stopwatch, most_s: float
) -> list[float]:
    """Ask as people and pages do until all have ended; return the service's memory on the way.

    After `most_s` seconds those that are left are stopped.
    """
    memory = []
    deadline = time.monotonic() + most_s
    with LaminarClient(url) as client, httpx.Client(base_url=url) as plain:
        while True:
            watch.time("list", lambda: plain.get("/v1/jobs", params={"limit": 50}))
            watch.time("get", lambda: client.job(jobs[len(memory) % len(jobs)]))
            watch.time("cluster", client.cluster)
            memory.append(process.memory_info().rss / 1e6)
            found = watch.time("list all", lambda: list(client.jobs()))
            left = [job.id for job in found if job.state not in ENDED]
            if not left:
                return memory
            if time.monotonic() > deadline:
                deadline = math.inf
                for job_id in left:
                    with contextlib.suppress(ServiceError):  # it has ended meanwhile
                        watch.time("stop", lambda job_id=job_id: client.stop(job_id))
            time.sleep(_POLL_S)


def check_each_ran_once(folder: Path, jobs: list[str], done: set[str]) -> None:
    """Look at what the drivers themselves left on storage."""
    assert len(set(jobs)) == len(jobs), "two submissions got one job"
    assert sorted(path.name for path in folder.glob("job-*")) == sorted(jobs)
    for job_id in done:
        log = (folder / job_id / "log.txt").read_text()
        assert log.count("-- attempt ") == 1, f"{job_id} was run more than once:\n{log}"
        lines = (folder / job_id / "run/metrics.jsonl").read_text().splitlines()
        epochs = [json.loads(line)["epoch"] for line in lines]
        assert epochs == list(range(1, NUM_EPOCHS + 1)), (job_id, epochs)


def table(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    jobs, streams = report["jobs"], report["streams"]
    rows = [
        "| request | times | median ms | 95th percentile | longest |",
        "|---|---|---|---|---|",
    ]
    for name, api in report["api"].items():
        rows.append(
            f"| {name} | {api['count']} | {api['median_ms']} | {api['p95_ms']} | {api['max_ms']} |"
        )
    facts = ", ".join(f"{key} {value}" for key, value in report["environment"].items())
    return "\n".join(
        [
            f"{jobs} jobs submitted in {report['submitted_s']:g} s. After {report['took_s']:g} s: "
            f"{', '.join(f'{count} {state}' for state, count in report['states'].items())}; none "
            f"lost, none run twice. {streams['opened']} live streams at once, "
            f"{streams['to_the_end']} of them to the end. Median of all requests "
            f"{report['api_median_ms']:g} ms.",
            "",
            *rows,
            "",
            "Memory of the service on the way, MB: "
            + " ".join(map(str, report["memory_mb"]))
            + ".",
            "",
            f"{facts}.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--clients", type=int, default=16, help="Submitting at a time.")
    parser.add_argument("--streams", type=int, default=50)
    parser.add_argument("--cpus", type=int, default=2, help="Half on each node.")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="Stop after them what is left."
    )
    parser.add_argument("--record", action="store_true", help="Write results.json and table.md.")
    arguments = parser.parse_args()
    watch = Stopwatch()
    with tempfile.TemporaryDirectory(prefix="load") as name:
        folder = Path(name)
        options = ("--max-active-per-user", str(arguments.jobs))
        with deployment(folder, *options, num_cpus=arguments.cpus) as deployed:
            deployed.wait_for_nodes()
            service = deployed.service
            assert service.process is not None
            process = psutil.Process(service.process.pid)
            started = time.monotonic()
            jobs = submit_all(service.url, arguments.jobs, arguments.clients, watch)
            submitted_s = time.monotonic() - started
            listeners = Listeners(service.url, jobs[: arguments.cpus * 2], arguments.streams)
            memory = poll_until_done(service.url, jobs, process, watch, 60 * arguments.minutes)
            took_s = time.monotonic() - started
            listeners.join()
            with LaminarClient(service.url) as client:
                ended = {job.id: job.state for job in client.jobs()}
        done = {job_id for job_id, state in ended.items() if state == "succeeded"}
        check_each_ran_once(folder / "jobs", jobs, done)
    states = Counter(ended.values())
    everything = [t for times in watch.times.values() for t in times]
    median_ms = 1e3 * statistics.median(everything)
    report = {
        "environment": environment(),
        "jobs": arguments.jobs,
        "states": dict(states),
        "submitted_s": round(submitted_s, 1),
        "took_s": round(took_s, 1),
        "api": watch.summary(),
        "api_median_ms": round(median_ms, 1),
        "memory_mb": [round(m) for m in memory[:: max(1, len(memory) // 10)]],
        "streams": {"opened": arguments.streams, "to_the_end": sum(listeners.ended)},
    }
    print(json.dumps(report, indent=1))
    assert sum(states.values()) == arguments.jobs
    assert states.keys() <= ({"succeeded"} if math.isinf(arguments.minutes) else _STOPPED), states
    assert sum(listeners.ended) == arguments.streams
    assert median_ms < _LIMIT_MS, "the API's median answer is too slow"
    assert memory[-1] < _GROWTH * max(memory[: max(1, len(memory) // 10)]), "memory grows"
    if arguments.record:
        (HERE / "results.json").write_text(json.dumps(report, indent=1) + "\n")
        (HERE / "table.md").write_text(table(report))
    print("passed")


if __name__ == "__main__":
    main()
