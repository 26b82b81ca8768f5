"""`laminar report` and `laminar compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.commands.options import Run
from service.table import print_table


def report(
    run: Run,
    output: Annotated[
        Path | None, typer.Option(help="File to write; default: RUN/report.html.")
    ] = None,
) -> None:
    """Write one HTML file: curves, timeline, constraint violation, bytes and seconds of a run."""
    from laminar.run_directory import RunDirectory
    from service.report import write_report

    path = output or run / "report.html"
    write_report(RunDirectory(run), path)
    typer.echo(path)


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run directories.")],
    output: Annotated[
        Path | None, typer.Option("--html", help="Also write their curves, over each other, here.")
    ] = None,
) -> None:
    """Print what was set differently in several runs, and what came of it."""
    from service.comparison import differing_settings, open_runs, results

    opened = open_runs(runs)
    rows = [
        (key, *values) for key, values in differing_settings([r.config for r in opened]).items()
    ]
    found = [results(run) for run in opened]
    rows += [(name, *(result[name] for result in found)) for name in found[0]]
    print_table(("", *(run.name for run in opened)), rows)
    if output is not None:
        from service.report import write_overlay

        write_overlay({run.name: run.metrics for run in opened}, output)
        typer.echo(output)
