"""`laminar train` and `laminar resume`."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console

from laminar.config_file import load_config, override_resources
from laminar.errors import ConfigError
from service.commands.jobs import is_job, resume_job
from service.commands.options import Address, ConfigPath, Settings

if TYPE_CHECKING:
    from actors import LayerParallelTrainer

Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]
Keep = Annotated[
    int | None, typer.Option(min=1, help="Checkpoints to keep; left out: all of them.")
]


def train(
    config: ConfigPath = None,
    set_: Settings = None,
    address: Address = None,
    name: Annotated[str | None, typer.Option(help="Name of the run; default: the time.")] = None,
    storage_path: Annotated[str, typer.Option(help="Folder of the runs.")] = "runs",
    keep: Keep = 3,
    max_failures: Annotated[
        int, typer.Option(min=0, help="Go on from the last checkpoint so many times.")
    ] = 0,
    quiet: Quiet = False,
) -> None:
    """Train a network layer-parallel; ends with a checkpoint, metrics and a plot."""
    resolved = load_config(config, set_ or ())

    def make(display: Any) -> LayerParallelTrainer:
        from ray.train import CheckpointConfig, FailureConfig, RunConfig

        from actors import LayerParallelTrainer

        run_config = RunConfig(
            storage_path=storage_path,
            name=name or _time_stamp(),
            checkpoint_config=CheckpointConfig(num_to_keep=keep),
            failure_config=FailureConfig(max_failures=max_failures),
        )
        return LayerParallelTrainer(
            resolved, run_config=run_config, address=address, callback=display
        )

    _fit(make, quiet)


def resume(
    run: Annotated[
        str, typer.Argument(help="Run directory; or a job of a service, as `laminar list` has it.")
    ],
    num_stages: Annotated[
        int | None, typer.Option(min=1, help="Another number of stages from now on.")
    ] = None,
    cuts: Annotated[
        str | None,
        typer.Option(metavar="N,N", help="First block of each stage but the first, from now on."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="resources.KEY=VALUE", help="Change what a stage may use."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="Running Ray cluster, left out: a small one on this machine; of a job: the "
            "service's URL."
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Go on from a run's newest checkpoint, as if it had never been interrupted."""
    if is_job(run):
        if num_stages is not None or cuts is not None or set_:
            raise ConfigError(
                "a job must be resumed as it is",
                got="--num-stages, --cuts or --set",
                fix="leave them out, or fetch the run with `laminar artifacts get`",
            )
        resume_job(run, address)
        return
    from laminar.run_directory import RunDirectory

    resources = None
    if set_:
        resources = override_resources(RunDirectory(run).open_config(), set_).resources

    def make(display: Any) -> LayerParallelTrainer:
        from actors import LayerParallelTrainer

        return LayerParallelTrainer.resume(
            run,
            num_stages=num_stages,
            cuts=None if cuts is None else _parse_cuts(cuts),
            resources=resources,
            address=address,
            callback=display,
        )

    _fit(make, quiet)


def _parse_cuts(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise ConfigError(
            "--cuts must be numbers of blocks with commas between",
            got=text,
            fix="write, say, --cuts 3,6",
        ) from error


def _time_stamp() -> str:
    from datetime import datetime

    return datetime.now().strftime("%Y%m%d-%H%M%S")


def _fit(make: Any, quiet: bool) -> None:
    """Train with a display; then plot and say where everything is."""
    from actors import RunStopped
    from laminar.run_directory import RunDirectory
    from service.plot import plot_run
    from service.progress import ProgressDisplay

    out = Console(highlight=False, soft_wrap=True)
    try:
        with _terminate_like_ctrl_c(), ProgressDisplay(is_quiet=quiet) as display:
            path = make(display).fit().path
        stopped = None
    except RunStopped as error:
        path, stopped = error.run_path, error
    except KeyboardInterrupt:
        out.print("stopped before training began")
        raise typer.Exit(130) from None
    run = RunDirectory(path)
    metrics = run.read_metrics()
    if metrics:
        plot_run(metrics, run.open_config(), run.plot_file)
    if stopped is not None:
        kept = stopped.last_checkpoint or "none, no epoch was finished"
        out.print(f"stopped; last checkpoint: {kept}")
        if stopped.last_checkpoint:
            out.print(f"go on with: laminar resume {path}")
        raise typer.Exit(130)
    out.print(f"test accuracy {metrics[-1]['test_accuracy']:.4f}")
    out.print(f"run directory {path}")
    out.print(f"plot          {run.plot_file}")


@contextlib.contextmanager
def _terminate_like_ctrl_c() -> Iterator[None]:
    """Let SIGTERM end a run as cleanly as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
