"""The typed client of the REST API, on the API's own models; the command line is built on it."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, Any, TypeVar
from urllib.parse import quote

import httpx
from pydantic import TypeAdapter

from laminar.errors import UserError
from service.jobs.models import (
    ENDED,
    Artifact,
    Checkpoint,
    ClusterInfo,
    Estimate,
    Job,
    JobPage,
    JobRequest,
    JobSummary,
    State,
)

DEFAULT_URL = "http://127.0.0.1:8484"
_CONNECT_S, _TIMEOUT_S = 5.0, 90.0
_NUM_TRIES = 4
_PAUSE_S = 0.5
_RETRIED = (429, 502, 503, 504)
_LONGEST_PAUSE_S = 10.0

Model = TypeVar("Model")


class ServiceError(UserError):
    """The service refused, or does not answer.

    Args:
        rule: As of any UserError.
        status: HTTP status; None where there was no answer.
    """

    def __init__(
        self,
        rule: str,
        *,
        got: object,
        expected: object = None,
        fix: str,
        status: int | None = None,
    ) -> None:
        super().__init__(rule, got=got, expected=expected, fix=fix)
        self.status = status


@dataclass(frozen=True)
class Event:
    """A server-sent event."""

    event: str
    """log, state, progress, epoch or end."""
    data: str
    id: str | None

    def json(self) -> Any:
        """Return the data of all but `log`."""
        return json.loads(self.data)


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
        self.url = (url or os.environ.get("LAMINAR_SERVICE") or DEFAULT_URL).rstrip("/")
        if not self.url.startswith(("http://", "https://")):
            raise _bad_url(self.url)
        token = token or os.environ.get("LAMINAR_TOKEN") or None
        try:
            self._http = httpx.Client(
                base_url=self.url,
                headers={"Authorization": f"Bearer {token}"} if token else {},
                timeout=httpx.Timeout(_TIMEOUT_S, connect=_CONNECT_S),
                transport=transport,
            )
        except (httpx.InvalidURL, UnicodeEncodeError) as error:
            raise _bad_url(self.url) from error

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
        self._http.close()

    # -- jobs --------------------------------------------------------------------------------

    def submit(self, request: JobRequest, key: str | None = None) -> Job:
        """Submit a job.

        Args:
            request: What to run.
            key: Idempotency key; None makes one for this call, which covers what is lost on the
                way. Give one to submit at most once over several calls.

        Raises:
            ServiceError: It is refused.
        """
        headers = {"Idempotency-Key": key or str(uuid.uuid4())}
        return self._ask(Job, "POST", "/v1/jobs", json=_body(request), headers=headers)

    def estimate(self, request: JobRequest) -> Estimate:
        """Check a job as submission does, and return what it would take."""
        return self._ask(Estimate, "POST", "/v1/estimate", json=_body(request))

    def jobs(self, *states: State) -> Iterator[JobSummary]:
        """Yield the jobs in any of these states, or all, newest first."""
        query: dict[str, Any] = {"state": list(states), "limit": 200}
        while True:
            page = self._ask(JobPage, "GET", "/v1/jobs", params=query)
            yield from page.jobs
            if page.next_cursor is None:
                return
            query["cursor"] = page.next_cursor

    def job(self, job_id: str) -> Job:
        """Return all about a job."""
        return self._ask(Job, "GET", _path(job_id))

    def stop(self, job_id: str) -> Job:
        """Stop a job; it is `stopping` until its driver has let go."""
        return self._ask(Job, "POST", _path(job_id, "stop"))

    def resume(self, job_id: str) -> Job:
        """Queue a stopped or failed job again, to go on from its last checkpoint."""
        return self._ask(Job, "POST", _path(job_id, "resume"))

    def delete(self, job_id: str) -> None:
        """Delete a job that has ended, and its run directory."""
        self._request("DELETE", _path(job_id))

    def wait(
        self, job_id: str, *, poll_s: float = 1.0, callback: Callable[[Job], None] | None = None
    ) -> Job:
        """Return the job when it has ended.

        Args:
            job_id: Which one.
            poll_s: Seconds between two looks.
            callback: Called with what each look finds.
        """
        while True:
            job = self.job(job_id)
            if callback is not None:
                callback(job)
            if job.state in ENDED:
                return job
            time.sleep(poll_s)

    def cluster(self) -> ClusterInfo:
        """Return what the cluster has."""
        return self._ask(ClusterInfo, "GET", "/v1/cluster")

    # -- runs --------------------------------------------------------------------------------

    def logs(self, job_id: str, tail: int = 200) -> str:
        """Return the last lines of a job's log."""
        return self._request("GET", _path(job_id, "logs"), params={"tail": tail}).text

    def follow_logs(self, job_id: str, start: int = 0) -> Iterator[str]:
        """Yield a job's log, line by line, to the job's end; goes on after a lost connection."""
        for event in self._follow(_path(job_id, "logs/events"), start):
            if event.event == "log":
                yield from event.data.split("\n")

    def metrics(self, job_id: str) -> list[dict[str, Any]]:
        """Return a line for each finished epoch."""
        return self._ask(list[dict[str, Any]], "GET", _path(job_id, "metrics"))

    def follow_metrics(self, job_id: str, start: int = 0) -> Iterator[Event]:
        """Yield `state`, `progress` and `epoch` events, and `end` at the job's end."""
        return self._follow(_path(job_id, "metrics/events"), start)

    def checkpoints(self, job_id: str) -> list[Checkpoint]:
        """Return the published checkpoints, oldest first."""
        return self._ask(list[Checkpoint], "GET", _path(job_id, "checkpoints"))

    def artifacts(self, job_id: str) -> list[Artifact]:
        """Return the files of the run directory."""
        return self._ask(list[Artifact], "GET", _path(job_id, "artifacts"))

    def download(self, job_id: str, path: str, target: Path) -> None:
        """Fetch one file of the run directory; it appears at `target` when it is whole."""
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.part")
        with part.open("wb") as file:
            self._download(_path(job_id, f"artifacts/{quote(path)}"), file)
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

    # -- below -------------------------------------------------------------------------------

    def _ask(self, kind: type[Model], method: str, path: str, **named: Any) -> Model:
        answer = self._request(method, path, **named)
        try:
            return TypeAdapter(kind).validate_json(answer.content)
        except ValueError as error:
            raise ServiceError(
                "the address must be that of a Laminar service of this version",
                got=f"{self.url} answers something else",
                fix="mend --address, or install the service's version",
                status=answer.status_code,
            ) from error

    def _request(self, method: str, path: str, **named: Any) -> httpx.Response:
        """Send a request, again where it may have been lost; all of ours may be repeated."""
        for is_last in (False,) * (_NUM_TRIES - 1) + (True,):
            try:
                answer = self._http.request(method, path, **named)
            except httpx.TransportError as error:
                if is_last:
                    raise self._unreachable(error) from error
                time.sleep(_PAUSE_S)
                continue
            pause_s = _pause(answer)
            if answer.status_code in _RETRIED and pause_s <= _LONGEST_PAUSE_S and not is_last:
                time.sleep(pause_s)
                continue
            break
        if answer.is_error:
            raise _refusal(answer)
        return answer

    def _unreachable(self, error: Exception) -> ServiceError:
        return ServiceError(
            "the service must be reachable",
            got=f"{self.url}: {str(error) or type(error).__name__}",
            fix="start `laminar serve`, or give --address or LAMINAR_SERVICE",
        )

    @contextmanager
    def _open(self, path: str, **named: Any) -> Iterator[httpx.Response]:
        with self._http.stream("GET", path, **named) as answer:
            if answer.is_error:
                answer.read()
                raise _refusal(answer)
            yield answer

    def _download(self, path: str, file: IO[bytes]) -> None:
        try:
            with self._open(path) as answer:
                for chunk in answer.iter_bytes():
                    file.write(chunk)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def _follow(self, path: str, start: int) -> Iterator[Event]:
        last: str | None = None
        num_failures = 0
        while True:
            headers = {"Last-Event-ID": last} if last is not None else {}
            try:
                with self._open(path, params={"start": start}, headers=headers) as answer:
                    for event in parse_events(answer.iter_lines()):
                        num_failures = 0
                        last = event.id or last
                        yield event
                        if event.event == "end" and _has_ended(event):
                            return
            except httpx.TransportError as error:
                num_failures += 1
                if num_failures >= _NUM_TRIES * 5:
                    raise self._unreachable(error) from error
            time.sleep(_PAUSE_S)  # the service went; it comes again, and so do we


def parse_events(lines: Iterator[str]) -> Iterator[Event]:
    """Yield the events of a stream, as the HTML standard has it; comments are left out."""
    event, identifier, data = "message", None, list[str]()
    for line in lines:
        if not line:
            if data:
                yield Event(event, "\n".join(data), identifier)
            event, identifier, data = "message", None, []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            event = value
        elif name == "id":
            identifier = value
        elif name == "data":
            data.append(value)


def _has_ended(event: Event) -> bool:
    """Whether an `end` is of the job, or gone; else the service itself went down."""
    state = event.json()["state"]
    return state is None or state in ENDED


def _path(job_id: str, rest: str = "") -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}" + (f"/{rest}" if rest else "")


def _body(request: JobRequest) -> dict[str, Any]:
    return request.model_dump(mode="json")


def _pause(answer: httpx.Response) -> float:
    after = answer.headers.get("Retry-After", "")
    return float(after) if after.isdigit() else _PAUSE_S


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


def _bad_url(url: str) -> ServiceError:
    return ServiceError(
        "--address of a service must be a URL",
        got=url,
        fix="write http://HOST:8484, or leave it out for this machine",
    )


def _refusal(answer: httpx.Response) -> ServiceError:
    """Return a problem of the service's as an error of ours, with the parts that it has."""
    try:
        found = answer.json()
        detail = str(found["detail"])
    except (KeyError, TypeError, ValueError):
        found, detail = {}, f"status {answer.status_code}"
    if {"rule", "got", "fix"} <= found.keys():
        return ServiceError(
            found["rule"],
            got=found["got"],
            expected=found.get("expected"),
            fix=found["fix"],
            status=answer.status_code,
        )
    fixes = {
        401: "set LAMINAR_TOKEN to a token of `laminar token create`",
        403: "ask for a token of another role",
        404: "see `laminar list`",
        409: "see `laminar status JOB`",
    }
    return ServiceError(
        "the service must accept the request",
        got=detail,
        fix=fixes.get(answer.status_code, "mend what it says"),
        status=answer.status_code,
    )
