"""Prometheus metrics of the service and of the jobs that run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import get_args

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.jobs.manager import JobManager
from service.jobs.models import ACTIVE, ENDED, JobSummary, State
from service.jobs.store import NoSuchJob

_METHODS = ("GET", "HEAD", "POST", "DELETE", "OPTIONS")
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class JobCollector(Collector):
    """Reads the store whenever somebody scrapes."""

    def __init__(self, manager: JobManager) -> None:
        self._manager = manager
        self._began_at = time.monotonic()

    def collect(self) -> Iterator[Metric]:
        """Yield gauges and counters."""
        yield from self._jobs()
        cluster = self._manager.cluster()
        # Before its first round the dispatcher is as old as the service.
        looked_at = max(self._manager.dispatcher.ticked_at, self._began_at)
        for name, text, value in (
            ("laminar_cluster_reachable", "Whether the Ray cluster answers.", cluster.is_reachable),
            ("laminar_cluster_cpus", "CPUs of the cluster.", cluster.cpus),
            ("laminar_cluster_gpus", "GPUs of the cluster.", cluster.gpus),
            ("laminar_cluster_cpus_used", "CPUs in use.", cluster.cpus_used),
            ("laminar_cluster_gpus_used", "GPUs in use.", cluster.gpus_used),
            (
                "laminar_dispatcher_age_seconds",
                "Seconds since the dispatcher last went round, or since the service began.",
                time.monotonic() - looked_at,
            ),
            (
                "laminar_unreadable_jobs",
                "Folders that look like jobs and could not be read when the service began.",
                len(self._manager.store.unreadable),
            ),
        ):
            yield GaugeMetricFamily(name, text, value=float(value))
        yield from self._running()

    def _jobs(self) -> Iterator[Metric]:
        store = self._manager.store
        counts, ended = store.counts(), store.ended()
        jobs = GaugeMetricFamily("laminar_jobs", "Jobs by state.", labels=["state"])
        for state in get_args(State):
            jobs.add_metric([state], counts[state])
        yield jobs
        # A gauge falls when a job is deleted or resumed, which `increase` takes for a restart.
        ends = CounterMetricFamily(
            "laminar_jobs_ended",
            "Ends of jobs by state, since the service began.",
            labels=["state"],
        )
        for state in sorted(ENDED):
            ends.add_metric([state], ended[state])
        yield ends

    def _running(self) -> Iterator[GaugeMetricFamily]:
        store = self._manager.store
        labels = ["job", "owner"]
        gauges = {
            field: GaugeMetricFamily(f"laminar_job_{field}", text, labels=labels)
            for field, text in (
                ("epoch", "Epoch under way."),
                ("batches_done", "Batches finished."),
                ("batches", "Batches of the run."),
                ("loss", "Training loss of this epoch so far."),
                ("accuracy", "Training accuracy of this epoch so far, 0..1."),
                ("samples_per_second", "Over the last seconds."),
                ("trials_done", "Trials of a search that have ended."),
                ("trials", "Trials of a search."),
            )
        }
        for job_id in store.ids(ACTIVE):
            try:
                summary = store.summary(job_id)
            except NoSuchJob:
                continue
            for field, value in _figures(summary).items():
                if value is not None:
                    gauges[field].add_metric([job_id, summary.owner], value)
        yield from gauges.values()


def _figures(summary: JobSummary) -> dict[str, float | None]:
    """Return what a running job says of itself, by the gauges' names."""
    if (search := summary.search_progress) is not None:
        return {"trials_done": search.num_done, "trials": search.num_trials}
    if (progress := summary.progress) is None:
        return {}
    return {
        "epoch": progress.epoch,
        "batches_done": progress.num_batches_done,
        "batches": progress.num_batches,
        "loss": progress.loss,
        "accuracy": progress.accuracy,
        "samples_per_second": progress.samples_per_s,
    }


class Telemetry:
    """A registry of its own, so that two services in one process do not meet."""

    def __init__(self, manager: JobManager) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(JobCollector(manager))
        self.requests = Histogram(
            "laminar_request_seconds",
            "Time to the end of an answer, live streams apart; of a download, all of it.",
            ["method", "route", "status"],
            registry=self.registry,
            buckets=_BUCKETS,
        )

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class TimedRequests:
    """Counts and times requests by route; of unknown paths only that they were unknown."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self._app, self._telemetry = app, telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and take the time."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), "500"

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, note)
        finally:
            route = getattr(scope.get("route"), "path_format", "unknown")
            if not route.endswith("/events"):
                seconds = time.perf_counter() - started
                method = scope["method"] if scope["method"] in _METHODS else "other"
                self._telemetry.requests.labels(method, route, status).observe(seconds)
