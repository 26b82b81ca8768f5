"""Errors as `application/problem+json` (RFC 9457), one shape for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from laminar.config_file import validate_config
from laminar.errors import UserError
from service.jobs.estimate import PlannerBusy
from service.jobs.manager import Conflict
from service.jobs.store import NoSuchJob, TooManyJobs

_JSON_KINDS = ("dict", "list", "str", "int", "float", "bool", "nullable")

MEDIA_TYPE = "application/problem+json"


class Problem(BaseModel):
    """What went wrong."""

    type: str = Field("about:blank", description="Nothing beyond the status.")
    title: str = Field(description="The status in words.")
    status: int = Field(description="HTTP status.")
    detail: str = Field(description="What went wrong here, and where it can be how to mend it.")
    rule: str | None = Field(None, description="Of a mistake in what was sent: what must hold.")
    got: str | None = Field(None, description="What was found instead.")
    expected: str | None = Field(None, description="What would have been accepted.")
    fix: str | None = Field(None, description="What to do about it.")


class ProblemResponse(JSONResponse):
    """An error's answer."""

    media_type = MEDIA_TYPE


def problem(
    status: int, detail: str, headers: Mapping[str, str] | None = None, **more: Any
) -> ProblemResponse:
    """Return an answer that says what went wrong."""
    content = Problem(title=HTTPStatus(status).phrase, status=status, detail=detail, **more)
    return ProblemResponse(content.model_dump(exclude_none=True), status, dict(headers or {}))


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the part of an OpenAPI document that says which errors a route may answer with."""
    content = {MEDIA_TYPE: {"schema": Problem.model_json_schema()}}
    return {s: {"description": HTTPStatus(s).phrase, "content": content} for s in statuses}


def install(app: FastAPI) -> None:
    """Let every error of an application become a problem."""

    @app.exception_handler(UserError)
    def mistake(request: Request, error: UserError) -> ProblemResponse:
        return of_user_error(error)

    @app.exception_handler(Conflict)
    def conflict(request: Request, error: Conflict) -> ProblemResponse:
        return problem(409, str(error))

    @app.exception_handler(NoSuchJob)
    def absent(request: Request, error: NoSuchJob) -> ProblemResponse:
        return problem(404, "there is no such job")

    @app.exception_handler(TooManyJobs)
    def too_many(request: Request, error: TooManyJobs) -> ProblemResponse:
        return problem(429, str(error), {"Retry-After": "60"})

    @app.exception_handler(PlannerBusy)
    def busy(request: Request, error: PlannerBusy) -> ProblemResponse:
        return problem(503, f"{error}; try again", {"Retry-After": "5"})

    @app.exception_handler(HTTPException)
    def http(request: Request, error: HTTPException) -> ProblemResponse:
        return problem(error.status_code, str(error.detail), error.headers)

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> ProblemResponse:
        return _of_validation(error)

    @app.exception_handler(Exception)
    def unexpected(request: Request, error: Exception) -> ProblemResponse:
        # What it was is in the service's log; a stranger need not know.
        return problem(500, "the service failed; its log says why")


def of_user_error(error: UserError) -> ProblemResponse:
    """Return a mistake's answer, its parts told apart."""
    expected = None if error.expected is None else str(error.expected)
    return problem(
        422,
        str(error),
        rule=error.rule,
        got=str(error.got),
        expected=expected,
        fix=error.fix,
    )


def without_kinds(location: Sequence[int | str]) -> list[int | str]:
    """Return where in plain data an error is, without pydantic's names for what it took it for."""
    return [part for part in location if part not in _JSON_KINDS]


def _public_location(error: Mapping[str, Any]) -> tuple[int | str, ...]:
    """Return where an error is, without the name that pydantic gives to a request's kind."""
    location = tuple(error["loc"])
    if location[:1] != ("body",) or location[1:2] not in (("train",), ("search",)):
        return location
    return (*location[:1], *without_kinds(location[2:]))


def _of_validation(error: RequestValidationError) -> ProblemResponse:
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return problem(400, f"the body must be JSON: {first.get('ctx', {}).get('error', '')}")
    location = _public_location(first)
    if location[:2] == ("body", "config") and isinstance(error.body, dict):
        tree = error.body.get("config")
        if isinstance(tree, dict):
            try:
                validate_config(tree)
            except UserError as mistake:
                return of_user_error(mistake)
    where = ".".join(str(part) for part in location[1:]) or str(location[0])
    if first["type"] in ("union_tag_invalid", "union_tag_not_found"):
        kinds = "a mapping whose `kind`, if it has one, is train or search"
        return problem(422, f"`{where}`: Input should be {kinds}")
    return problem(422, f"`{where}`: {first['msg']}")
