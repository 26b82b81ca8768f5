"""`laminar submit`, `list`, `status`, `logs`, `stop`, `delete`, `artifacts`: jobs of a service."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from laminar.config_file import load_config
from laminar.errors import ConfigError
from service.commands.options import ConfigPath, Settings
from service.table import print_table

if TYPE_CHECKING:
    from service.client import LaminarClient
    from service.jobs.models import Estimate, Job, State

artifacts_app = typer.Typer(help="Files of a job's run directory.", no_args_is_help=True)

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="As `laminar list` shows it.")]
ServiceAddress = Annotated[
    str | None,
    typer.Option(
        "--address",
        envvar="LAMINAR_SERVICE",
        help="URL of the service; default: http://127.0.0.1:8484.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_JOB = re.compile(r"job-[0-9a-z]{14}")
_EXIT_CODES = {"succeeded": 0, "failed": 1, "stopped": 130}


def is_job(text: str) -> bool:
    """Whether an argument names a job, and no folder that is here."""
    return _JOB.fullmatch(text) is not None and not Path(text).exists()


def connect(address: str | None) -> LaminarClient:
    """Return a client, or say what to install."""
    try:
        from service.client import LaminarClient
    except ModuleNotFoundError as error:
        raise ConfigError(
            "jobs must be submitted with the service's extra installed",
            got=f"no {error.name}",
            fix="pip install 'laminar-train[service]'",
        ) from error
    return LaminarClient(address)


def submit(
    config: ConfigPath = None,
    set_: Settings = None,
    address: ServiceAddress = None,
    name: Annotated[str | None, typer.Option(help="For people; need not be unique.")] = None,
    priority: Annotated[
        int, typer.Option(min=-100, max=100, help="Higher ones leave the queue first.")
    ] = 0,
    max_retries: Annotated[
        int, typer.Option(min=0, max=20, help="Go on after so many failures.")
    ] = 1,
    keep: Annotated[
        int | None, typer.Option(min=1, help="Checkpoints to keep; default: 3.")
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="The same key again is the same job, not another.")
    ] = None,
    any_versions: Annotated[
        bool, typer.Option("--any-versions", help="Compare no versions with the cluster's.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check it, show what it would take, submit nothing.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Follow it to its end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Submit a training job to a service."""
    resolved = load_config(config, set_ or ())
    with connect(address) as client:
        from service.jobs.models import JobRequest
        from service.jobs.versions import versions_here

        changes = {} if keep is None else {"keep": keep}
        try:
            request = JobRequest(
                config=resolved,
                name=name,
                priority=priority,
                max_retries=max_retries,
                versions=None if any_versions else versions_here(),
                **changes,
            )
        except ValueError:
            raise ConfigError(
                "--name must be letters, digits, spaces and ._-, 80 at most",
                got=repr(name),
                fix="choose another",
            ) from None
        if dry_run:
            estimate = client.estimate(request)
            typer.echo(estimate.model_dump_json(indent=1) if as_json else _in_words(estimate))
            return
        job = client.submit(request, key)
        _show_submitted(job, as_json)
        if wait:
            raise typer.Exit(_EXIT_CODES[_follow(client, job.id)])


def list_jobs(
    state: Annotated[list[str] | None, typer.Option(help="Only jobs in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Jobs at most, newest first.")] = 50,
    address: ServiceAddress = None,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    with connect(address) as client:
        found = []
        for job in client.jobs(*_states(state or [])):
            found.append(job)
            if len(found) == limit:
                break
    if as_json:
        typer.echo("\n".join(job.model_dump_json() for job in found))
        return
    rows = [
        (
            job.id,
            job.name or "",
            job.owner,
            job.state,
            f"{job.progress.epoch}/{job.progress.num_epochs}" if job.progress else "",
            _ago(job.created_at),
            job.reason,
        )
        for job in found
    ]
    print_table(("job", "name", "owner", "state", "epoch", "submitted", "reason"), rows)


def status(
    job: Annotated[str | None, typer.Argument(metavar="JOB", help="Left out: the cluster.")] = None,
    address: ServiceAddress = None,
    as_json: AsJson = False,
) -> None:
    """Show all states of a job; or, without one, the cluster."""
    with connect(address) as client:
        if job is None:
            cluster = client.cluster()
            if as_json:
                typer.echo(cluster.model_dump_json(indent=1))
                return
            reached = "reachable" if cluster.is_reachable else "does not answer"
            typer.echo(f"cluster   {reached}, {len(cluster.nodes)} nodes")
            typer.echo(f"CPUs      {cluster.cpus_used:g} of {cluster.cpus:g} in use")
            typer.echo(f"GPUs      {cluster.gpus_used:g} of {cluster.gpus:g} in use")
            typer.echo(f"jobs      {cluster.num_active} active, {cluster.num_queued} queued")
            return
        found = client.job(job)
        if as_json:
            typer.echo(found.model_dump_json(indent=1))
            return
        _show(found)


def logs(
    job: JobArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on to the job's end.")] = False,
    tail: Annotated[int, typer.Option(min=1, max=10_000, help="Lines from the end.")] = 200,
    address: ServiceAddress = None,
) -> None:
    """Print what a job's drivers and stages printed."""
    with connect(address) as client:
        if not follow:
            typer.echo(client.logs(job, tail), nl=False)
            return
        for line in client.follow_logs(job):
            typer.echo(line)


def stop(job: JobArgument, address: ServiceAddress = None) -> None:
    """Stop a job; its last checkpoint is kept."""
    with connect(address) as client:
        found = client.stop(job)
        typer.echo(f"{found.id} is {found.state}")


def resume_job(job: str, address: str | None) -> None:
    """Queue a stopped or failed job again."""
    with connect(address) as client:
        found = client.resume(job)
        typer.echo(f"{found.id} is {found.state}")


def delete(job: JobArgument, address: ServiceAddress = None) -> None:
    """Delete a job that has ended, its run directory included."""
    with connect(address) as client:
        client.delete(job)
        typer.echo(f"{job} is deleted")


@artifacts_app.command("list")
def list_artifacts(job: JobArgument, address: ServiceAddress = None) -> None:
    """List the files of a job's run directory."""
    with connect(address) as client:
        rows = [(f"{a.num_bytes:,}", a.path) for a in client.artifacts(job)]
    print_table(("bytes", "file"), rows, right=["bytes"])


@artifacts_app.command("get")
def get_artifacts(
    job: JobArgument,
    path: Annotated[str, typer.Argument(help="File or folder; left out: all of them.")] = "",
    output: Annotated[
        Path | None, typer.Option(help="Folder to write to; default: runs/JOB.")
    ] = None,
    address: ServiceAddress = None,
) -> None:
    """Fetch a job's run directory, or a part of it, for evaluate, predict and export."""
    target = output or Path("runs") / job
    with connect(address) as client:
        found = client.download_run(job, target, path.strip("/"))
    typer.echo(f"{len(found)} files in {target}")


# -- showing -----------------------------------------------------------------------------------


def _states(names: list[str]) -> list[State]:
    from typing import get_args

    from service.jobs.models import State

    for name in names:
        if name not in get_args(State):
            raise ConfigError(
                "--state must be a state of jobs",
                got=name,
                expected=", ".join(get_args(State)),
                fix="choose one of them",
            )
    return names  # type: ignore[return-value]


def _show_submitted(job: Job, as_json: bool) -> None:
    if as_json:
        typer.echo(job.model_dump_json(indent=1))
        return
    typer.echo(job.id)
    if job.estimate is not None:
        typer.echo(_in_words(job.estimate))


def _in_words(estimate: Estimate) -> str:
    parts = [f"{estimate.num_workers} workers", f"{estimate.cpus:g} CPUs"]
    if estimate.gpus:
        parts.append(f"{estimate.gpus:g} GPUs")
    parts.append(f"{estimate.memory_bytes / 1e9:.1f} GB")
    if estimate.seconds is not None:
        parts.append(f"about {_duration(estimate.seconds)}")
    return f"estimate: {', '.join(parts)}"


def _duration(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _ago(then: datetime) -> str:
    return f"{_duration((datetime.now(UTC) - then).total_seconds())} ago"


def _show(job: Job) -> None:
    typer.echo(f"job       {job.id}{f' ({job.name})' if job.name else ''}, of {job.owner}")
    typer.echo(f"state     {job.state}: {job.reason}")
    if (p := job.progress) is not None:
        loss = "" if p.loss is None else f", loss {p.loss:.4f}"
        batches = f"{p.num_batches_done}/{p.num_batches}"
        typer.echo(f"progress  epoch {p.epoch}/{p.num_epochs}, batch {batches}{loss}")
    typer.echo(f"run       {job.run}")
    for step in job.history:
        attempt = f" (attempt {step.attempt})" if step.attempt else ""
        typer.echo(f"{step.at:%Y-%m-%d %H:%M:%S}  {step.state:9} {step.reason}{attempt}")


def _follow(client: LaminarClient, job_id: str) -> str:
    """Tell of a job to its end; Ctrl-C leaves it running."""
    console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    state = ""
    try:
        for event in client.follow_metrics(job_id):
            if event.event == "state":
                found: dict[str, Any] = event.json()
                state = found["state"]
                console.print(f"{state}: {found['reason']}")
            elif event.event == "epoch":
                line = event.json()
                console.print(
                    f"epoch {line['epoch']}: train loss {line['train_loss']:.4f}, "
                    f"test accuracy {line['test_accuracy']:.2%}"
                )
    except KeyboardInterrupt:
        console.print(f"{job_id} goes on; see laminar status {job_id}")
        raise typer.Exit(130) from None
    return state
