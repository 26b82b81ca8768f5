"""The connection to a service: requests sent again where they were lost, streams, refusals."""

from __future__ import annotations

import json
import os
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import IO, Any, TypeVar

import httpx
from pydantic import TypeAdapter

from laminar.errors import UserError
from service.jobs.models import ENDED

DEFAULT_URL = "http://127.0.0.1:8484"
_CONNECT_S, _TIMEOUT_S = 5.0, 90.0
_NUM_TRIES = 4
_NUM_FOLLOW_TRIES = 120  # a minute: a service that is being upgraded comes again
_PAUSE_S = 0.5
_RETRIED = (429, 502, 503, 504)
_AWAY = (502, 503, 504)
"""What a proxy answers while the service behind it is started again."""
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


class Connection:
    """A connection to a service; `close` ends it.

    Args:
        url: Of the service; default: `LAMINAR_SERVICE`, else this machine's.
        token: Of `laminar token create`; default: `LAMINAR_TOKEN`.
        transport: Another way to reach it, for tests.

    Raises:
        ServiceError: The URL is none.
    """

    def __init__(
        self, url: str | None, token: str | None, transport: httpx.BaseTransport | None
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
                verify=_tls_context(),
                transport=transport,
            )
        except (httpx.InvalidURL, UnicodeEncodeError) as error:
            raise _bad_url(self.url) from error

    def close(self) -> None:
        """Let go of it."""
        self._http.close()

    def ask(self, kind: type[Model], method: str, path: str, **named: Any) -> Model:
        """Send a request and return the answer as a model."""
        answer = self.request(method, path, **named)
        try:
            return TypeAdapter(kind).validate_json(answer.content)
        except ValueError as error:
            raise ServiceError(
                "the address must be that of a Laminar service of this version",
                got=f"{self.url} answers something else",
                fix="mend --address, or install the service's version",
                status=answer.status_code,
            ) from error

    def request(
        self, method: str, path: str, *, is_patient: bool = False, **named: Any
    ) -> httpx.Response:
        """Send a request, again where it may have been lost; all of ours may be repeated.

        Args:
            method: Of HTTP.
            path: At the service.
            is_patient: Wait as long as `follow` does for a service that is started again.
            named: What httpx takes.
        """
        num_tries = _NUM_FOLLOW_TRIES if is_patient else _NUM_TRIES
        for is_last in (False,) * (num_tries - 1) + (True,):
            try:
                answer = self._http.request(method, path, **named)
            except httpx.TransportError as error:
                if is_last:
                    raise self._unreachable(error) from error
                time.sleep(_PAUSE_S)
                continue
            is_away = is_patient and answer.status_code in _AWAY
            pause_s = _PAUSE_S if is_away else _pause(answer)
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

    def download(self, path: str, file: IO[bytes]) -> None:
        """Write an answer's body into a file, as it comes."""
        try:
            with self._open(path) as answer:
                for chunk in answer.iter_bytes():
                    file.write(chunk)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def follow(self, path: str, start: int) -> Iterator[Event]:
        """Yield a stream's events to the job's end; goes on after a lost connection."""
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
            except (httpx.TransportError, ServiceError) as error:
                num_failures += 1
                is_last = num_failures >= _NUM_FOLLOW_TRIES
                if isinstance(error, ServiceError):
                    if is_last or error.status not in _AWAY:
                        raise
                elif is_last:
                    raise self._unreachable(error) from error
            time.sleep(_PAUSE_S)  # the service went; it comes again, and so do we


@cache
def _tls_context() -> ssl.SSLContext:
    """Return what httpx would make for every client anew, for plain HTTP, too: 30 ms each."""
    return httpx.create_ssl_context()


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


def _pause(answer: httpx.Response) -> float:
    after = answer.headers.get("Retry-After", "")
    return float(after) if after.isdigit() else _PAUSE_S


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
