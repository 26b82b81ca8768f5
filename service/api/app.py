"""The application: routes, guards and errors put together."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import AsyncIterator

from fastapi import FastAPI, Response
from fastapi.responses import PlainTextResponse
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.types import Lifespan

from laminar import __version__
from service.api import configs, jobs, page, problems, run, timelines, trials
from service.api.auth import Tokens
from service.api.context import ApiSettings, Context, Reader, Service
from service.api.guard import Guard, RateLimiter, Throttle
from service.api.telemetry import Telemetry, TimedRequests
from service.jobs.manager import JobManager

_DESCRIPTION = """
Submit layer-parallel training jobs to a Ray cluster, watch them, stop them.

Errors are `application/problem+json`. Live streams are server-sent events; they end with an `end`
event, and go on from `Last-Event-ID`.
"""


def create_app(
    manager: JobManager,
    *,
    tokens: Tokens | None = None,
    settings: ApiSettings | None = None,
    dispatch_s: float | None = None,
) -> FastAPI:
    """Return the application.

    Args:
        manager: The jobs.
        tokens: Who may come in; None lets everybody.
        settings: How it behaves.
        dispatch_s: Seconds between rounds of the dispatcher, which then runs as long as the
            application does; None runs none.
    """
    settings = settings or ApiSettings()
    telemetry = Telemetry(manager)
    context = Context(
        manager,
        tokens,
        settings,
        telemetry,
    )

    app = FastAPI(
        title="Laminar",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=_lifespan(context, dispatch_s),
        # Their pages load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
    )
    app.state.context = context
    problems.install(app)
    app.include_router(jobs.router)
    app.include_router(run.router)
    app.include_router(timelines.router)
    app.include_router(trials.router)
    app.include_router(configs.router)
    page.install(app)
    _add_probes(app)
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=settings.max_body_bytes)
    limiter = RateLimiter(settings.requests_per_s, settings.burst)
    app.add_middleware(Throttle, limiter=limiter, caller=context.caller)
    app.add_middleware(TimedRequests, telemetry=telemetry)
    app.add_middleware(Guard, hosts=settings.hosts)
    return app


def _lifespan(context: Context, dispatch_s: float | None) -> Lifespan[FastAPI]:
    """Run the dispatcher, if wanted, as long as the application lives."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        dispatcher, thread = context.manager.dispatcher, None
        if dispatch_s is not None:
            thread = threading.Thread(target=dispatcher.run, args=(dispatch_s,), daemon=True)
            thread.start()
        yield
        context.is_closing = True
        dispatcher.close()
        if thread is not None:
            thread.join(timeout=30)

    return lifespan


def _add_probes(app: FastAPI) -> None:
    # The probes are coroutines: the threads that routes run in may all be waiting for storage.
    @app.get("/healthz", operation_id="healthz", response_class=PlainTextResponse)
    async def healthz() -> str:
        """Whether the service answers at all."""
        return "ok\n"

    @app.get(
        "/readyz",
        operation_id="readyz",
        response_class=PlainTextResponse,
        responses=problems.responses(503),
    )
    async def readyz(service: Service) -> Response:
        """Whether the cluster answers and the dispatcher goes round."""
        if not service.manager.dispatcher.is_cluster_reachable:
            return problems.problem(503, "the cluster does not answer")
        age = time.monotonic() - service.manager.dispatcher.ticked_at
        if age > service.settings.ready_within_s:
            return problems.problem(503, f"the dispatcher last went round {age:.0f} s ago")
        return PlainTextResponse("ok\n")

    @app.get(
        "/metrics",
        operation_id="prometheus",
        response_class=PlainTextResponse,
        responses=problems.responses(401, 403, 429),
    )
    def metrics(user: Reader, service: Service) -> Response:
        """Return metrics of the service and of running jobs, in Prometheus' text format."""
        return Response(service.telemetry.render(), media_type="text/plain; version=0.0.4")
