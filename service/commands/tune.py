"""`laminar tune`: searches; `laminar tune SEARCH.yaml` is short for `laminar tune run`."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from service.commands.options import Address, Settings

if TYPE_CHECKING:
    from tuning.search import SearchResult

Folder = Annotated[Path, typer.Argument(help="Folder of the search.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]


class _RunByDefault(TyperGroup):
    """A group in which what is no command is the argument of `run`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `run` before a search file."""
        if args and args[0] not in (*self.commands, "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    help="Search for a good configuration: laminar tune SEARCH.yaml.",
    cls=_RunByDefault,
    no_args_is_help=True,
)


@app.command()
def run(
    search: Annotated[Path, typer.Argument(help="YAML file; see docs/tuning.md.")],
    set_: Settings = None,
    address: Address = None,
    name: Annotated[str | None, typer.Option(help="Name of the search; default: the time.")] = None,
    storage_path: Annotated[str, typer.Option(help="Folder of the searches.")] = "searches",
    quiet: Quiet = False,
) -> None:
    """Search; ends with the best configuration as YAML and a report."""
    from tuning.config import load_search

    found = load_search(search, set_ or ())

    def work(display: Any) -> SearchResult:
        from tuning.search import run_search

        return run_search(
            found, storage_path=storage_path, name=name, address=address, listener=display
        )

    _work(found, work, quiet)


@app.command()
def resume(
    folder: Folder,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Also go on with trials that failed.")
    ] = False,
    address: Address = None,
    quiet: Quiet = False,
) -> None:
    """Go on with a search that was stopped or killed; resume only what you wrote yourself."""
    from tuning.ledger import open_search

    found, _ = open_search(folder)

    def work(display: Any) -> SearchResult:
        from tuning.search import resume_search

        return resume_search(folder, retry_failed=retry_failed, address=address, listener=display)

    _work(found, work, quiet)


@app.command()
def report(folder: Folder) -> None:
    """Write the report of a search, one HTML file, while it runs or after."""
    from tuning.report import write_report

    typer.echo(str(write_report(folder)))


def _work(search: Any, work: Any, quiet: bool) -> None:
    """Search with a display; then write the report and say where everything is."""
    from tuning.display import SearchDisplay
    from tuning.ledger import BEST_FILE
    from tuning.report import number, write_report

    out = Console(highlight=False, soft_wrap=True)
    try:
        with _terminate_like_ctrl_c(), SearchDisplay(search, is_quiet=quiet) as display:
            result = work(display)
    except KeyboardInterrupt:
        out.print("stopped")
        raise typer.Exit(130) from None
    if result.best:
        out.print(f"report      {write_report(result.path)}")
    if not result.is_complete:
        out.print(f"stopped; go on with: laminar tune resume {result.path}")
        raise typer.Exit(130)
    if not result.best:
        out.print(f"no trial came to an end; see {result.path}")
        raise typer.Exit(1)
    for trial in result.best:
        values = zip(search.settings.metrics, trial.values(search.settings), strict=True)
        figures = ", ".join(f"{metric} {number(value)}" for metric, value in values)
        out.print(f"trial {trial.number:<5} {figures}")
    out.print(f"best config {Path(result.path) / BEST_FILE}")


@contextlib.contextmanager
def _terminate_like_ctrl_c() -> Iterator[None]:
    """Let SIGTERM end a search as Ctrl-C does, which Tune takes note of between two steps."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
