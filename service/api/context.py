"""What every route stands on: the service's parts, and who asks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Annotated, cast

from anyio import CapacityLimiter
from fastapi import Depends, HTTPException, Path, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.datastructures import Headers

from service.api.auth import LOCAL_USER, Role, Tokens, User
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
    max_streams_per_user: int = 100
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
    planning: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(_MOST_PLANNING))
    """Threads of requests that may wait for the planner, so that they never take up all others."""
    streams: Counter[str] = field(default_factory=Counter)
    """Live streams of each user."""
    is_closing: bool = field(default=False)

    @property
    def store(self) -> JobStore:
        """The jobs."""
        return self.manager.store

    def user_of(self, token: str | None) -> User | None:
        """Return whose token this is, None if nobody's; by the file as it is now."""
        if self.tokens is None:
            return LOCAL_USER
        return None if token is None else self.tokens.find(token)

    def caller(self, headers: Headers) -> str | None:
        """Return who is to be counted for a request, None for a stranger."""
        scheme, _, token = headers.get("authorization", "").partition(" ")
        user = self.user_of(token.strip() if scheme.lower() == "bearer" else None)
        return None if user is None else user.name


async def context_of(request: Request) -> Context:
    """Return the service that a request came to."""
    return cast(Context, request.app.state.context)


Service = Annotated[Context, Depends(context_of)]

_bearer = HTTPBearer(auto_error=False, description="A token of `laminar token create`.")
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


async def current_user(
    service: Service,
    credentials: Credentials,
) -> User:
    """Return who asks, or refuse with 401 without a token that is known."""
    user = service.user_of(None if credentials is None else credentials.credentials)
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
