"""Routes that submit, list, show, stop, resume and delete."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Body, Header, HTTPException, Query, Response

from laminar.config_file import config_schema
from service.api.auth import User
from service.api.context import CurrentUser, ExistingJob, OwnJob, Reader, Service, Submitter
from service.api.problems import responses
from service.jobs.models import (
    JOB_ID,
    AnyRequest,
    ClusterInfo,
    Estimate,
    Job,
    JobPage,
    State,
)
from service.jobs.store import NoSuchJob

router = APIRouter(prefix="/v1", responses=responses(400, 401, 403, 422, 429))

_EXAMPLES = {
    "defaults": {
        "summary": "ResNet-20 on handwritten digits, two stages",
        "value": {"name": "digits", "config": {"epochs": 10}},
    },
    "cifar10": {
        "summary": "CIFAR-10 from a folder that the service allows, ahead of others",
        "value": {
            "name": "cifar10",
            "priority": 10,
            "max_retries": 3,
            "config": {
                "epochs": 40,
                "data": {"name": "cifar10", "root": "cifar"},
                "num_stages": 3,
            },
        },
    },
    "search": {
        "summary": "A search for the step size on handwritten digits: eight trials, two at a time",
        "value": {
            "kind": "search",
            "name": "step-size",
            "search_file": {
                "epochs": 12,
                "model": {"name": "resnet8"},
                "optimizer": {"lr": {"loguniform": [0.01, 0.5]}},
                "search": {"num_trials": 8, "scheduler": "asha", "max_concurrent": 2},
            },
        },
    },
}

Request = Annotated[AnyRequest, Body(openapi_examples=_EXAMPLES)]
Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=r"^[\x21-\x7e]{1,128}$",
        description="The same key again is the same job, however often it is sent.",
        examples=["5f1c9a2e-0f6b-4a55-9d1b-1d6f8f0f5b7a"],
    ),
]


@router.post(
    "/jobs",
    status_code=201,
    operation_id="submit",
    responses=responses(409, 413, 503) | {200: {"model": Job, "description": "Submitted before"}},
)
async def submit(
    request: Request, user: Submitter, service: Service, response: Response, key: Key = None
) -> Job:
    """Submit a job: 201 with the job, its estimate included; 200 where the key was seen before."""
    job, is_new = await to_thread.run_sync(
        service.manager.submit, request, user.name, key, limiter=service.planning
    )
    response.status_code = 201 if is_new else 200
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return job


@router.post("/estimate", operation_id="estimate", responses=responses(413, 503))
async def estimate(request: Request, user: Submitter, service: Service) -> Estimate:
    """Check a job as submission does, and say what it would take; nothing is kept."""
    return await to_thread.run_sync(service.manager.estimate, request, limiter=service.planning)


@router.get("/jobs", operation_id="list_jobs")
def list_jobs(
    user: Reader,
    service: Service,
    state: Annotated[
        list[State] | None, Query(description="Only jobs in one of these states.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=500, description="Jobs a page.")] = 50,
    cursor: Annotated[
        str | None, Query(max_length=200, description="`next_cursor` of the page before.")
    ] = None,
) -> JobPage:
    """Return jobs, newest first."""
    found = service.store.ids(set(state) if state else None)
    found.reverse()
    if cursor is not None:
        last = _decode(cursor)
        found = [job_id for job_id in found if job_id < last]
    page = []
    for job_id in found[:limit]:
        try:
            page.append(service.store.summary(job_id))
        except NoSuchJob:
            continue  # deleted a moment ago
    has_more = len(found) > limit
    return JobPage(jobs=tuple(page), next_cursor=_encode(found[limit - 1]) if has_more else None)


@router.get("/jobs/{job_id}", operation_id="get_job", responses=responses(404))
def get_job(spec: ExistingJob, service: Service) -> Job:
    """Return all about a job."""
    return service.store.job(spec.id)


@router.post(
    "/jobs/{job_id}/stop", status_code=202, operation_id="stop", responses=responses(404, 409)
)
def stop(spec: OwnJob, service: Service) -> Job:
    """Stop a job; its last checkpoint is kept. The answer comes before the job has let go."""
    return service.manager.stop(spec.id)


@router.post(
    "/jobs/{job_id}/resume", status_code=202, operation_id="resume", responses=responses(404, 409)
)
def resume(spec: OwnJob, service: Service) -> Job:
    """Queue a stopped or failed job again, to go on from its last checkpoint."""
    return service.manager.resume(spec.id)


@router.delete(
    "/jobs/{job_id}", status_code=204, operation_id="delete", responses=responses(404, 409)
)
def delete(spec: OwnJob, service: Service) -> Response:
    """Delete a job that has ended, and its run directory."""
    service.manager.delete(spec.id)
    return Response(status_code=204)


@router.get("/cluster", operation_id="cluster")
def cluster(user: Reader, service: Service) -> ClusterInfo:
    """Return what the cluster has, and what of it is in use."""
    return service.manager.cluster()


@router.get("/schema", operation_id="schema")
def schema(user: Reader) -> dict[str, object]:
    """Return the JSON schema of `config`, every key with its description."""
    return config_schema()


@router.get("/me", operation_id="me")
def me(user: CurrentUser) -> User:
    """Return who asks, as the service sees it."""
    return user


def _encode(job_id: str) -> str:
    return base64.urlsafe_b64encode(job_id.encode()).decode().rstrip("=")


def _decode(cursor: str) -> str:
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        if re.fullmatch(r"[\w-]+={0,3}", padded, re.ASCII):
            found = base64.urlsafe_b64decode(padded).decode()
            if JOB_ID.fullmatch(found):
                return found
    except (binascii.Error, UnicodeDecodeError, ValueError):
        pass
    raise HTTPException(400, "`cursor` must be the next_cursor of a page")
