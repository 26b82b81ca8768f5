"""The command line: its commands, each in a file of its own, and what their errors become."""

from __future__ import annotations

import sys

import typer

from laminar import __version__
from laminar.errors import UserError
from service.commands import (
    config,
    doctor,
    evaluate,
    export,
    jobs,
    predict,
    report,
    serve,
    train,
    tune,
)

app = typer.Typer(
    help="Layer-parallel training of deep residual networks on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(train.train)
app.command()(train.resume)
app.command()(evaluate.evaluate)
app.command()(predict.predict)
app.command()(export.export)
app.command()(report.report)
app.command()(report.compare)
app.command()(doctor.doctor)
app.command()(jobs.submit)
app.command("list")(jobs.list_jobs)
app.command()(jobs.status)
app.command()(jobs.logs)
app.command()(jobs.stop)
app.command()(jobs.delete)
app.add_typer(jobs.artifacts_app, name="artifacts")
app.command()(serve.serve)
app.add_typer(serve.token_app, name="token")
app.add_typer(config.app, name="config")
app.add_typer(tune.app, name="tune")


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def main() -> None:
    """Entry point: mistakes of the user are one line and exit code 2, failures one line and 1."""
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
