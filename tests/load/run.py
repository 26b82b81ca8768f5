"""`make test-load`: many tiny jobs at once on a small cluster, and many listeners.

Checks that none is lost and none runs twice, that the median answer to each kind of request comes
soon, that the memory of the service and of its planner does not grow, and that live streams, all
open at once, tell every epoch once. Takes ten seconds a job on two cores, as each is a driver and a
stage that import torch, and a coordinator; not part of `make test`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from benchmarks.speed.run import environment
from service.client import LaminarClient, ServiceError
from service.jobs.models import ENDED, Job, JobRequest, JobSummary
from tests.end_to_end.deployment import Deployment, deployment
from tests.load.report import command, table
from tests.load.watching import Listeners, Memory, Stopwatch
from tests.tiny import TINY_MODEL, tiny_config

HERE = Path(__file__).parent
NUM_EPOCHS = 2
NUM_PLANS = 10
"""Jobs differ in width, so many ways; the planner knows those that differ in their seed alone."""
_POLL_S = 1.0
_BURST_POLL_S = 0.25
_LIMIT_MS = 100.0
_NUM_SUBMISSIONS = 100
"""From so many on their median is held to the limit: of fewer, most wait for a plan to be made."""
_STOPPED = {"succeeded", "stopped"}
_GROWTH = 1.03
"""Memory at the end over that after the submissions; a service of 170 MB may keep 5."""
_NUM_LAST = 10
"""Samples of memory when all has ended."""


def request(number: int) -> JobRequest:
    config = tiny_config(
        5,
        epochs=NUM_EPOCHS,
        seed=number,
        num_stages=1,
        model={**TINY_MODEL, "width": TINY_MODEL["width"] + number % NUM_PLANS},
        resources={"cpus_per_stage": 1.0},
    )
    return JobRequest(config=config, name=f"load-{number}")


def submit_all(url: str, num_jobs: int, num_clients: int, watch: Stopwatch) -> list[Job]:
    """Submit jobs, by so many clients at a time."""

    own = threading.local()

    def begin() -> None:
        own.client = LaminarClient(url)

    def submit(number: int) -> Job:
        return watch.time("submit", lambda: own.client.submit(request(number)))

    with ThreadPoolExecutor(num_clients, initializer=begin) as pool:
        return list(pool.map(submit, range(num_jobs)))


class Onlooker:
    """Asks as people and pages do.

    Args:
        url: Of the service.
        watch: For what it takes.
        when: Behind the names of the requests.
    """

    def __init__(self, url: str, watch: Stopwatch, when: str = "") -> None:
        self.client, self._plain = LaminarClient(url), httpx.Client(base_url=url)
        self._watch, self._when = watch, when

    def look(self, number: int = 0) -> list[JobSummary]:
        """Ask for a page of the list, the cluster, the list and one job of it; return the list."""
        self._time("list", self._page)
        self._time("cluster", self.client.cluster)
        jobs: list[JobSummary] = self._time("list all", lambda: list(self.client.jobs()))
        if jobs:
            self._time("get", lambda: self.client.job(jobs[number % len(jobs)].id))
        return jobs

    def _page(self) -> None:
        # A refusal would be quick.
        self._plain.get("/v1/jobs", params={"limit": 50}).raise_for_status()

    def _time(self, name: str, call: Callable[[], Any]) -> Any:
        return self._watch.time(name + self._when, call)


@contextlib.contextmanager
def looked_at(url: str, num: int, watch: Stopwatch) -> Iterator[None]:
    """Let so many look on within the block."""
    is_over = threading.Event()

    def look_on(onlooker: Onlooker, number: int) -> None:
        while not is_over.wait(_BURST_POLL_S):
            number += 1
            onlooker.look(number)

    # Who looks on has connected before the burst comes.
    onlookers = [Onlooker(url, watch, ", in the burst") for _ in range(num)]
    with ThreadPoolExecutor(num or None) as pool:
        looking = [pool.submit(look_on, who, number) for number, who in enumerate(onlookers)]
        try:
            yield
        finally:
            is_over.set()
        for future in looking:
            future.result()


def wait_until_done(url: str, memory: Memory, watch: Stopwatch, most_s: float) -> dict[str, str]:
    """Look on until all have ended; return the states. After `most_s` stop those that are left."""
    deadline = time.monotonic() + most_s
    onlooker = Onlooker(url, watch)
    while True:
        jobs = onlooker.look(len(memory.samples["service"]))
        memory.sample()
        left = [job.id for job in jobs if job.state not in ENDED]
        if not left:
            return {job.id: job.state for job in jobs}
        if time.monotonic() > deadline:
            deadline = math.inf
            for job_id in left:
                with contextlib.suppress(ServiceError):  # it has ended meanwhile
                    watch.time("stop", lambda job_id=job_id: onlooker.client.stop(job_id))
        time.sleep(_POLL_S)


def check_each_ran_once(folder: Path, jobs: Sequence[Job], ended: dict[str, str]) -> None:
    """Look at what the drivers themselves left on storage."""
    ids = sorted(job.id for job in jobs)
    assert len(set(ids)) == len(ids), "two submissions got one job"
    assert sorted(path.name for path in folder.glob("job-*")) == ids == sorted(ended)
    for job_id in (job_id for job_id, state in ended.items() if state == "succeeded"):
        log = (folder / job_id / "log.txt").read_text()
        assert log.count("-- attempt ") == 1, f"{job_id} was run more than once:\n{log}"
        lines = (folder / job_id / "run/metrics.jsonl").read_text().splitlines()
        epochs = [json.loads(line)["epoch"] for line in lines]
        assert epochs == list(range(1, NUM_EPOCHS + 1)), (job_id, epochs)


def check_streams(listeners: Listeners, ended: dict[str, str]) -> None:
    """Each told of every epoch once, in order, and of its job's end."""
    assert listeners.most_open == len(listeners.streams), "not all were open at once"
    for stream in listeners.streams:
        assert stream.end == ended[stream.job_id], stream
        num = NUM_EPOCHS if stream.end == "succeeded" else len(stream.epochs)
        assert stream.epochs == list(range(1, num + 1)), stream


def run(
    arguments: argparse.Namespace, folder: Path, deployed: Deployment
) -> tuple[dict[str, Any], dict[str, str]]:
    """Submit, listen and look on to the end; return the report and the jobs' states."""
    watch, service = Stopwatch(), deployed.service
    assert service.process is not None
    memory = Memory(service.process.pid)
    started, at = time.monotonic(), datetime.now(UTC)
    with looked_at(service.url, arguments.onlookers, watch):
        jobs = submit_all(service.url, arguments.jobs, arguments.clients, watch)
    submitted_s = time.monotonic() - started
    # Of the jobs that wait for others, from the next one to the last.
    waiting = sorted(job.id for job in jobs)[arguments.cpus :]
    step = len(waiting) / arguments.streams
    chosen = [waiting[int(n * step)] for n in range(arguments.streams)]
    listeners = Listeners(service.url, chosen)
    ended = wait_until_done(service.url, memory, watch, 60 * arguments.minutes)
    took_s = time.monotonic() - started
    listeners.join()
    for _ in range(_NUM_LAST):
        time.sleep(_POLL_S)
        memory.sample()
    check_streams(listeners, ended)
    check_each_ran_once(folder / "jobs", jobs, ended)
    plans = {job.estimate.stage_bytes for job in jobs}
    assert len(plans) == min(NUM_PLANS, arguments.jobs), plans
    times = [t for of_kind in watch.times.values() for t in of_kind]
    return {
        "command": command(),
        "date": f"{at:%Y-%m-%d}",
        "environment": environment(),
        "cores": os.cpu_count(),
        "cluster_cpus": arguments.cpus,
        "jobs": arguments.jobs,
        "clients": arguments.clients,
        "onlookers": arguments.onlookers,
        "plans": len(plans),
        "states": dict(Counter(ended.values())),
        "submitted_s": round(submitted_s, 1),
        "took_s": round(took_s, 1),
        "api": watch.summary(),
        "api_median_ms": round(1e3 * statistics.median(times), 1),
        "memory_mb": {
            name: [round(m) for m in [*samples[:: max(1, len(samples) // 10)], samples[-1]]]
            for name, samples in memory.samples.items()
        },
        "memory_growth": {n: round(g, 3) for n, g in memory.growth(_NUM_LAST).items()},
        "streams": {
            "jobs": len(set(chosen)),
            "open_at_once": listeners.most_open,
            "epochs_told": sum(len(stream.epochs) for stream in listeners.streams),
        },
    }, ended


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=200, help="More than --cpus.")
    parser.add_argument("--clients", type=int, default=16, help="Submitting at a time.")
    parser.add_argument("--onlookers", type=int, default=4, help="While jobs are submitted.")
    parser.add_argument("--streams", type=int, default=50)
    parser.add_argument("--cpus", type=int, default=4, help="Of Ray's, half on each node.")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="Stop after them what is left."
    )
    parser.add_argument("--record", action="store_true", help="Write results.json and table.md.")
    arguments = parser.parse_args()
    if arguments.jobs <= arguments.cpus:
        parser.error("--jobs must be more than --cpus, so that some wait while streams open")
    return arguments


def main() -> None:
    arguments = parse()
    options = ("--max-active-per-user", str(arguments.jobs))
    with tempfile.TemporaryDirectory(prefix="load") as name:
        folder = Path(name)
        with deployment(folder, *options, num_cpus=arguments.cpus) as deployed:
            deployed.wait_for_nodes()
            report, ended = run(arguments, folder, deployed)
    print(json.dumps(report, indent=1))
    states = {*ended.values()}
    assert states <= ({"succeeded"} if math.isinf(arguments.minutes) else _STOPPED), states
    slow = {n: api["median_ms"] for n, api in report["api"].items() if api["median_ms"] > _LIMIT_MS}
    if arguments.jobs < _NUM_SUBMISSIONS:
        slow.pop("submit", None)
    assert not slow, f"the median answer is too slow: {slow}"
    assert max(report["memory_growth"].values()) < _GROWTH, "memory grows"
    if arguments.record:
        (HERE / "results.json").write_text(json.dumps(report, indent=1) + "\n")
        (HERE / "table.md").write_text(table(report))
    print("passed")


if __name__ == "__main__":
    main()
