"""Routes to what a run leaves: logs, metrics, checkpoints, files; and live, as events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any
from urllib.parse import quote

from anyio import to_thread
from fastapi import APIRouter, Depends, Header, HTTPException, Query
from fastapi.responses import PlainTextResponse, StreamingResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent

from service.api.context import Credentials, ExistingJob, Reader, Service
from service.api.files import chunks, list_artifacts, list_checkpoints, open_artifact
from service.api.problems import responses
from service.api.streams import Follower, first_line_within, read_metrics, tail_log
from service.jobs.models import Artifact, Checkpoint

router = APIRouter(prefix="/v1/jobs/{job_id}", responses=responses(400, 401, 403, 404, 422, 429))

LastEventId = Annotated[
    int | None,
    Header(
        alias="Last-Event-ID",
        ge=0,
        le=2**62,
        description="Go on after this event, as browsers do by themselves.",
    ),
]


async def one_stream(user: Reader, service: Service) -> AsyncIterator[None]:
    """Count a stream while it lasts; refuse one too many."""
    settings, streams = service.settings, service.streams
    if streams.total() >= settings.max_streams:
        raise HTTPException(429, "too many live streams", {"Retry-After": "30"})
    if streams[user.name] >= settings.max_streams_per_user:
        detail = f"{user.name} has {streams[user.name]} live streams, the most allowed"
        raise HTTPException(429, detail, {"Retry-After": "30"})
    streams[user.name] += 1
    try:
        yield
    finally:
        streams[user.name] -= 1


async def follower(spec: ExistingJob, service: Service, credentials: Credentials) -> Follower:
    """Return what follows a job until the service ends, or its listener's token is revoked."""
    token = None if credentials is None else credentials.credentials

    def is_over() -> bool:
        return service.is_closing or service.user_of(token) is None

    return Follower(service.store, spec.id, service.settings.poll_s, is_over)


JobFollower = Annotated[Follower, Depends(follower)]


@router.get("/logs", operation_id="logs", response_class=PlainTextResponse)
def logs(
    spec: ExistingJob,
    service: Service,
    tail: Annotated[int, Query(ge=1, le=10_000, description="Lines from the end.")] = 200,
) -> str:
    """Return the end of what the job's drivers and stages printed, all attempts in one."""
    return tail_log(service.store, spec.id, tail)


@router.get(
    "/logs/events",
    operation_id="follow_logs",
    response_class=EventSourceResponse,
    dependencies=[Depends(one_stream)],
)
async def follow_logs(
    spec: ExistingJob,
    service: Service,
    following: JobFollower,
    start: Annotated[int, Query(ge=0, le=2**62, description="Byte to begin at.")] = 0,
    most: Annotated[
        int | None, Query(ge=1, le=2**62, description="Begin at most so many bytes from the end.")
    ] = None,
    last: LastEventId = None,
) -> AsyncIterator[ServerSentEvent]:
    """Follow the log: `log` events of whole lines, and `end` when the job has ended."""
    if last is None and most is not None:
        begin = await to_thread.run_sync(first_line_within, service.store, spec.id, most)
        start = max(start, begin)
    async for event in following.logs(start if last is None else last):
        yield event


@router.get("/metrics", operation_id="metrics")
def metrics(spec: ExistingJob, service: Service) -> list[dict[str, Any]]:
    """Return a line for each finished epoch, as `metrics.jsonl` has it.

    Of a search the lines of its ledger, `trials.jsonl`; `trials` has them put together.
    """
    return read_metrics(service.store, spec.id)


@router.get(
    "/metrics/events",
    operation_id="follow_metrics",
    response_class=EventSourceResponse,
    dependencies=[Depends(one_stream)],
)
async def follow_metrics(
    following: JobFollower,
    start: Annotated[int, Query(ge=0, le=2**62, description="Lines to leave out.")] = 0,
    last: LastEventId = None,
) -> AsyncIterator[ServerSentEvent]:
    """Follow a job: `state`, `progress` and `epoch` events, and `end` when it has ended.

    Of a search `state`, `search` and `trial`, a line of its ledger, and `end`.
    """
    async for event in following.metrics(start if last is None else last):
        yield event


@router.get("/checkpoints", operation_id="checkpoints")
def checkpoints(spec: ExistingJob, service: Service) -> list[Checkpoint]:
    """Return the published checkpoints, oldest first."""
    return list_checkpoints(service.store.storage, spec.id)


@router.get("/artifacts", operation_id="artifacts")
def artifacts(spec: ExistingJob, service: Service) -> list[Artifact]:
    """Return the files of the run directory."""
    return list_artifacts(service.store.storage, spec.id)


@router.get(
    "/artifacts/{path:path}",
    operation_id="artifact",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "The file",
            "content": {"application/octet-stream": {"schema": {"type": "string"}}},
        }
    },
)
def artifact(spec: ExistingJob, service: Service, path: str) -> StreamingResponse:
    """Return one file of the run directory, as an attachment that no browser will run."""
    opened = open_artifact(service.store.storage, spec.id, path)
    if opened is None:
        raise HTTPException(404, "the run directory has no such file")
    file, num_bytes = opened
    name = quote(path.rsplit("/", 1)[-1])
    headers = {
        "Content-Length": str(num_bytes),
        "Content-Disposition": f"attachment; filename*=UTF-8''{name}",
    }
    return StreamingResponse(
        chunks(file, num_bytes), media_type="application/octet-stream", headers=headers
    )
