"""What every route stands on: the service's parts, and who asks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Annotated, cast

from anyio import CapacityLimiter
from fastapi import Depends, HTTPException, Path, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from service.api.auth import LOCAL_USER, Role, Tokens, User
from service.api.guard import RateLimiter
from service.api.telemetry import Telemetry
from service.jobs.manager import JobManager
from service.jobs.models import JobSpec
from service.jobs.store import JobStore

_MOST_PLANNING = 16


@dataclass(frozen=True)
class ApiSettings:
    """How the API behaves."""

    hosts: tuple[str, ...] = ()
    """Names in the Host header; empty accepts any."""
    max_body_bytes: int = 256 * 1024
    requests_per_s: float = 50.0
    burst: float = 500.0
    max_streams: int = 200
    poll_s: float = 0.5
    """Between two looks of a stream at its files."""
    ready_within_s: float = 60.0
    """Since the dispatcher last went round; longer is not ready."""


@dataclass
class Context:
    """The parts of a running service."""

    manager: JobManager
    tokens: Tokens | None
    """None lets everybody in, who can only be on this machine then."""
    settings: ApiSettings
    telemetry: Telemetry
    limiter: RateLimiter
    planning: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(_MOST_PLANNING))
    """Threads of requests that may wait for the planner, so that they never take up all others."""
    num_streams: int = 0
    is_closing: bool = field(default=False)

    @property
    def store(self) -> JobStore:
        """The jobs."""
        return self.manager.store


async def context_of(request: Request) -> Context:
    """Return the service that a request came to."""
    return cast(Context, request.app.state.context)


Service = Annotated[Context, Depends(context_of)]

_bearer = HTTPBearer(auto_error=False, description="A token of `laminar token create`.")


async def current_user(
    request: Request,
    service: Service,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> User:
    """Return who asks, or refuse: 401 without a token that is known, 429 too often."""
    user = LOCAL_USER if service.tokens is None else None
    if service.tokens is not None and credentials is not None:
        user = service.tokens.find(credentials.credentials)
    address = request.client.host if request.client else ""
    wait_s = service.limiter.wait_s(f"address {address}" if user is None else f"user {user.name}")
    if wait_s > 0:
        retry = {"Retry-After": str(int(wait_s) + 1)}
        raise HTTPException(429, "too many requests; slow down", retry)
    if user is None:
        scheme = {"WWW-Authenticate": "Bearer"}
        raise HTTPException(401, "a token is needed: Authorization: Bearer TOKEN", scheme)
    return user


CurrentUser = Annotated[User, Depends(current_user)]


def needs(role: Role) -> Callable[[User], Awaitable[User]]:
    """Return a dependency that refuses whoever may not do what takes this role."""

    async def check(user: CurrentUser) -> User:
        if not user.may(role):
            raise HTTPException(403, f"this takes the role {role}; yours is {user.role}")
        return user

    return check


Reader = Annotated[User, Depends(needs("read"))]
Submitter = Annotated[User, Depends(needs("submit"))]

JobPath = Annotated[
    str,
    Path(alias="job_id", description="The job.", max_length=64, examples=["job-1jdq8w7k2h3x9p"]),
]


async def existing_job(user: Reader, service: Service, job_id: JobPath) -> JobSpec:
    """Return the job of a path, or refuse with 404 (NoSuchJob)."""
    return service.store.spec(job_id)


async def own_job(user: Submitter, spec: Annotated[JobSpec, Depends(existing_job)]) -> JobSpec:
    """Return the job of a path if the user may rule over it, or refuse with 403."""
    if spec.owner != user.name and not user.may("admin"):
        raise HTTPException(403, "only its owner and an admin may do this to a job")
    return spec


ExistingJob = Annotated[JobSpec, Depends(existing_job)]
OwnJob = Annotated[JobSpec, Depends(own_job)]
