"""`laminar serve` and `laminar token`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from laminar.errors import ConfigError
from service.table import print_table

token_app = typer.Typer(help="Tokens of the service.", no_args_is_help=True)

TokenFile = Annotated[
    Path, typer.Option("--file", envvar="LAMINAR_TOKENS", help="The file of tokens.")
]
_ROLES = ("read", "submit", "admin")


def serve(
    storage: Annotated[
        str,
        typer.Option(
            help="Folder of the jobs, shared by the service and all nodes; or a URI, as "
            "s3://bucket/jobs."
        ),
    ] = "jobs",
    ray_address: Annotated[
        str, typer.Option(envvar="LAMINAR_RAY_ADDRESS", help="Dashboard of the Ray cluster.")
    ] = "http://127.0.0.1:8265",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8484,
    tokens: Annotated[
        Path | None,
        typer.Option(envvar="LAMINAR_TOKENS", help="File of tokens; needed off this machine."),
    ] = None,
    host_name: Annotated[
        list[str] | None,
        typer.Option(help="Name by which browsers may call it, besides localhost; * is any."),
    ] = None,
    data_root: Annotated[
        list[Path] | None, typer.Option(help="Folder that jobs may read data and weights from.")
    ] = None,
    cluster_python: Annotated[str, typer.Option(help="Python of the cluster's nodes.")] = "python",
    ship_code: Annotated[
        bool,
        typer.Option("--ship-code", help="Send this Laminar along with jobs; else nodes have it."),
    ] = False,
    max_active_per_user: Annotated[
        int, typer.Option(min=1, help="Jobs of one person that run at a time.")
    ] = 8,
    max_queued_per_user: Annotated[
        int, typer.Option(min=1, help="Jobs of one person that wait at a time.")
    ] = 1000,
) -> None:
    """Serve jobs of a Ray cluster over a REST API."""
    _check_installed()
    from service.api.server import ServeOptions
    from service.api.server import serve as serve_forever

    serve_forever(
        ServeOptions(
            storage=storage,
            ray_address=ray_address,
            host=host,
            port=port,
            tokens=tokens,
            host_names=tuple(host_name or ()),
            data_roots=tuple(data_root or ()),
            cluster_python=cluster_python,
            ship_code=ship_code,
            max_active_per_user=max_active_per_user,
            max_queued_per_user=max_queued_per_user,
        )
    )


def _check_installed() -> None:
    import importlib.util

    missing = [
        name
        for name in ("fastapi", "uvicorn", "prometheus_client", "aiohttp_cors")
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise ConfigError(
            "the service must be installed with its extra",
            got=f"no {', '.join(missing)}",
            fix="pip install 'laminar-train[service]'",
        )


@token_app.command("create")
def create(
    file: TokenFile,
    user: Annotated[str, typer.Option(help="Who it is for; owner of the jobs submitted with it.")],
    role: Annotated[
        str, typer.Option(help="read looks, submit also submits, admin rules over all jobs.")
    ] = "submit",
) -> None:
    """Make a token and print it, this once: the file keeps its hash alone."""
    from pydantic import ValidationError

    from service.api.auth import Tokens, User

    try:
        found = User.model_validate({"name": user, "role": role})
    except ValidationError as error:
        field = error.errors()[0]["loc"][0]
        raise ConfigError(
            f"--{'user' if field == 'name' else 'role'} of a token must be "
            f"{'letters, digits and ._@-, 64 at most' if field == 'name' else 'one of three'}",
            got=repr(user if field == "name" else role),
            expected=None if field == "name" else ", ".join(_ROLES),
            fix="mend it",
        ) from None
    typer.echo(Tokens(file).create(found))


@token_app.command("list")
def list_tokens(file: TokenFile) -> None:
    """List users and roles; the tokens themselves are kept nowhere."""
    from service.api.auth import Tokens

    rows = [
        (t.id, t.user.name, t.user.role, f"{t.created_at:%Y-%m-%d %H:%M}")
        for t in Tokens(file).read()
    ]
    print_table(("id", "user", "role", "created"), rows)


@token_app.command("revoke")
def revoke(file: TokenFile, token_id: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """Revoke a token, at once, also in a service that runs."""
    from service.api.auth import Tokens

    Tokens(file).revoke(token_id)
