"""The web page at `/`: our own files and plotly's script, all from installed packages."""

from __future__ import annotations

import os
from pathlib import Path

import plotly
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FOLDER = Path(__file__).parent.parent / "page"
PLOTLY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",  # neither inline nor eval: text of a job can never become a script
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)


class Assets(StaticFiles):
    """The page's files; browsers keep them, and ask whether they have changed."""

    def __init__(self) -> None:
        super().__init__(directory=FOLDER)

    def lookup_path(self, path: str) -> tuple[str, os.stat_result | None]:
        """Find a file; one is plotly's."""
        if path == PLOTLY.name:
            return str(PLOTLY), PLOTLY.stat()
        return super().lookup_path(path)

    def file_response(
        self,
        full_path: str | os.PathLike[str],
        stat_result: os.stat_result,
        scope: Scope,
        status_code: int = 200,
    ) -> Response:
        """Answer with a file, or that it has not changed."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers["Cache-Control"] = "no-cache"
        return response


async def index(request: Request) -> Response:
    """Return the page itself; it needs no token, for it holds nothing."""
    headers = {
        "Content-Security-Policy": CONTENT_SECURITY_POLICY,
        "Cache-Control": "no-cache",
    }
    return FileResponse(FOLDER / "index.html", headers=headers)


def install(app: FastAPI) -> None:
    """Serve the page at `/` and its files under `/static`."""
    app.add_route("/", index, methods=["GET"], include_in_schema=False)
    app.mount("/static", Assets(), name="static")
