"""What stands before every route: hosts, origins, rates, and headers that browsers heed."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.problems import problem

_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_MOST_KNOWN = 10_000
_PROBES = ("/healthz", "/readyz")
"""Asked by address: a kubelet, or a balancer, knows no name. They tell nothing of any job."""
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'",
}


class RateLimiter:
    """A bucket of tokens for each caller: so many at once, and so many a second after that.

    Args:
        per_s: Refill.
        burst: Size of a bucket.
    """

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s, self._burst = per_s, burst
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, caller: str, at: float | None = None) -> float:
        """Take a token and return 0, or return the seconds until there is one."""
        at = time.monotonic() if at is None else at
        with self._lock:
            level, since = self._buckets.pop(caller, (self._burst, at))
            level = min(self._burst, level + (at - since) * self._per_s)
            wait = 0.0 if level >= 1 else (1 - level) / self._per_s
            self._buckets[caller] = (level - 1 if level >= 1 else level, at)
            while len(self._buckets) > _MOST_KNOWN:
                self._buckets.popitem(last=False)
            return wait


class Throttle:
    """Answers 429 to who asks too often, whatever for; probes apart.

    Args:
        app: The application behind it.
        limiter: Counts.
        caller: Returns, from a request's headers, the name under which a token's owner is counted;
            None counts by the address that connects.
    """

    def __init__(
        self, app: ASGIApp, limiter: RateLimiter, caller: Callable[[Headers], str | None]
    ) -> None:
        self._app, self._limiter, self._caller = app, limiter, caller

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or let the application answer."""
        if scope["type"] == "http" and scope["path"] not in _PROBES:
            name = self._caller(Headers(scope=scope))
            address = (scope.get("client") or ("",))[0]
            wait_s = self._limiter.wait_s(f"user {name}" if name else f"address {address}")
            if wait_s > 0:
                headers = {"Retry-After": str(int(wait_s) + 1)}
                answer = problem(429, "too many requests; slow down", headers)
                await answer(scope, receive, send)
                return
        await self._app(scope, receive, send)


class Guard:
    """Refuses what no route should see, and adds headers to every answer.

    Args:
        app: The application behind it.
        hosts: Names by which the service is known; a web page that made its own name resolve to
            this machine (DNS rebinding) does not know them. Empty accepts any; probes need none.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self._app, self._hosts = app, frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or let the application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        is_too_large = False

        async def send_with_headers(message: Message) -> None:
            nonlocal is_too_large
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                # The framework answers by itself, in plain text, where a body is too large.
                is_too_large = message["status"] == 413
            if not is_too_large:
                await send(message)
            elif not message.get("more_body", False) and message["type"] == "http.response.body":
                answer = problem(413, "the body is too large", _HEADERS)
                await answer(scope, receive, send)

        refusal = self._refusal(scope["method"], scope["path"], Headers(scope=scope))
        if refusal is not None:
            await problem(*refusal)(scope, receive, send_with_headers)
            return
        await self._app(scope, receive, send_with_headers)

    def _refusal(self, method: str, path: str, headers: Headers) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if self._hosts and _name(host) not in self._hosts and path not in _PROBES:
            return 400, "the Host header must name this service; see `laminar serve --host-name`"
        origin = headers.get("origin")
        if method not in _SAFE_METHODS and origin is not None:
            # A browser says where a request comes from; ours come from our own page.
            try:
                netloc = urlsplit(origin).netloc
            except ValueError:
                netloc = ""
            if netloc.lower() != host.lower():
                return 403, "requests of other web pages are refused"
        return None


def _name(host: str) -> str:
    """Return the name in a Host header, without its port."""
    name, _, port = host.rpartition(":")
    return (name if name and port.isdigit() else host).lower()
