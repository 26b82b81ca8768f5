"""The typed client of the REST API, on the API's own models; the command line is built on it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx

from service.connection import Connection, Event, ServiceError
from service.jobs.models import (
    ENDED,
    AnyRequest,
    Artifact,
    Checkpoint,
    ClusterInfo,
    Estimate,
    Job,
    JobPage,
    JobSummary,
    State,
)
from service.jobs.search_models import SearchTrials

__all__ = ["Event", "LaminarClient", "ServiceError"]


class LaminarClient:
    """A connection to a service; a context manager.

    Requests that are lost on the way are sent again, submissions with the same idempotency key.

    Args:
        url: Of the service; default: `LAMINAR_SERVICE`, else this machine's.
        token: Of `laminar token create`; default: `LAMINAR_TOKEN`.
        transport: Another way to reach it, for tests.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._connection = Connection(url, token, transport)

    @property
    def url(self) -> str:
        """Of the service."""
        return self._connection.url

    def __enter__(self) -> LaminarClient:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connection."""
        self._connection.close()

    # -- jobs --------------------------------------------------------------------------------

    def submit(self, request: AnyRequest, key: str | None = None) -> Job:
        """Submit a job.

        Args:
            request: What to run.
            key: Idempotency key; None makes one for this call, which covers what is lost on the
                way. Give one to submit at most once over several calls.

        Raises:
            ServiceError: It is refused.
        """
        headers = {"Idempotency-Key": key or str(uuid.uuid4())}
        return self._connection.ask(Job, "POST", "/v1/jobs", json=_body(request), headers=headers)

    def estimate(self, request: AnyRequest) -> Estimate:
        """Check a job as submission does, and return what it would take."""
        return self._connection.ask(Estimate, "POST", "/v1/estimate", json=_body(request))

    def jobs(self, *states: State) -> Iterator[JobSummary]:
        """Yield the jobs in any of these states, or all, newest first."""
        query: dict[str, Any] = {"state": list(states), "limit": 200}
        while True:
            page = self._connection.ask(JobPage, "GET", "/v1/jobs", params=query)
            yield from page.jobs
            if page.next_cursor is None:
                return
            query["cursor"] = page.next_cursor

    def job(self, job_id: str) -> Job:
        """Return all about a job."""
        return self._connection.ask(Job, "GET", _path(job_id))

    def stop(self, job_id: str) -> Job:
        """Stop a job; it is `stopping` until its driver has let go."""
        return self._connection.ask(Job, "POST", _path(job_id, "stop"))

    def resume(self, job_id: str) -> Job:
        """Queue a stopped or failed job again, to go on from its last checkpoint.

        Of a search no trial that has ended is repeated.
        """
        return self._connection.ask(Job, "POST", _path(job_id, "resume"))

    def delete(self, job_id: str) -> None:
        """Delete a job that has ended, and its run directory."""
        self._connection.request("DELETE", _path(job_id))

    def wait(
        self, job_id: str, *, poll_s: float = 1.0, callback: Callable[[Job], None] | None = None
    ) -> Job:
        """Return the job when it has ended; wait for a service that is started again meanwhile.

        Args:
            job_id: Which one.
            poll_s: Seconds between two looks.
            callback: Called with what each look finds.
        """
        while True:
            job = self._connection.ask(Job, "GET", _path(job_id), is_patient=True)
            if callback is not None:
                callback(job)
            if job.state in ENDED:
                return job
            time.sleep(poll_s)

    def cluster(self) -> ClusterInfo:
        """Return what the cluster has."""
        return self._connection.ask(ClusterInfo, "GET", "/v1/cluster")

    # -- runs --------------------------------------------------------------------------------

    def logs(self, job_id: str, tail: int = 200) -> str:
        """Return the last lines of a job's log."""
        return self._connection.request("GET", _path(job_id, "logs"), params={"tail": tail}).text

    def follow_logs(self, job_id: str, start: int = 0) -> Iterator[str]:
        """Yield a job's log, line by line, to the job's end; goes on after a lost connection."""
        for event in self._connection.follow(_path(job_id, "logs/events"), start):
            if event.event == "log":
                yield from event.data.split("\n")

    def metrics(self, job_id: str) -> list[dict[str, Any]]:
        """Return a line for each finished epoch; of a search the lines of its ledger."""
        return self._connection.ask(list[dict[str, Any]], "GET", _path(job_id, "metrics"))

    def follow_metrics(self, job_id: str, start: int = 0) -> Iterator[Event]:
        """Yield `state`, `progress` and `epoch` events, and `end` at the job's end.

        Of a search `state`, `search` and `trial`, and `end`.
        """
        return self._connection.follow(_path(job_id, "metrics/events"), start)

    def trials(self, job_id: str) -> SearchTrials:
        """Return the trials of a search.

        Raises:
            ServiceError: It is a training.
        """
        return self._connection.ask(SearchTrials, "GET", _path(job_id, "trials"))

    def checkpoints(self, job_id: str) -> list[Checkpoint]:
        """Return the published checkpoints, oldest first."""
        return self._connection.ask(list[Checkpoint], "GET", _path(job_id, "checkpoints"))

    def artifacts(self, job_id: str) -> list[Artifact]:
        """Return the files of the run directory."""
        return self._connection.ask(list[Artifact], "GET", _path(job_id, "artifacts"))

    def download(self, job_id: str, path: str, target: Path) -> None:
        """Fetch one file of the run directory; it appears at `target` when it is whole."""
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.part")
        with part.open("wb") as file:
            self._connection.download(_path(job_id, f"artifacts/{quote(path)}"), file)
        part.replace(target)

    def download_run(self, job_id: str, target: Path, prefix: str = "") -> list[Path]:
        """Fetch the run directory, or what of it is under `prefix`, as a run directory.

        Raises:
            ServiceError: There is nothing, or the service names a file outside of it.
        """
        found = [a.path for a in self.artifacts(job_id) if _is_under(a.path, prefix)]
        if not found:
            raise ServiceError(
                f"the run directory must hold {prefix or 'a file'}",
                got="nothing of that name",
                fix=f"see `laminar artifacts list {job_id}`",
                status=404,
            )
        for path in found:
            self.download(job_id, path, target / _harmless(path))
        return [target / path for path in found]


def _path(job_id: str, rest: str = "") -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}" + (f"/{rest}" if rest else "")


def _body(request: AnyRequest) -> dict[str, Any]:
    return request.model_dump(mode="json")


def _is_under(path: str, prefix: str) -> bool:
    return not prefix or path == prefix or path.startswith(prefix.rstrip("/") + "/")


def _harmless(path: str) -> PurePosixPath:
    """Return a path that the service named, unless it leads somewhere else."""
    found = PurePosixPath(path)
    if found.is_absolute() or ".." in found.parts:
        raise ServiceError(
            "a file of a run must be inside it",
            got=f"{path!r} from the service",
            fix="do not trust this service",
        )
    return found
