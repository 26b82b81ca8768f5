"""`laminar submit`, `list`, `status`, `logs`, `stop`, `delete`, `artifacts`: jobs of a service."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from laminar.config_file import read_tree, validate_config
from laminar.errors import ConfigError
from service.commands.in_words import ago, in_words, ledger_line, progress, show
from service.commands.options import ConfigPath, Settings
from service.table import print_table

if TYPE_CHECKING:
    from service.client import LaminarClient
    from service.jobs.models import AnyRequest, Job, State

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
    """Submit a training to a service; or a search, where the file has a section `search`."""
    what = _read(config, set_ or (), keep)
    with connect(address) as client:
        from service.jobs.versions import versions_here

        request = _request(
            what,
            name=name,
            priority=priority,
            max_retries=max_retries,
            versions=None if any_versions else versions_here(),
        )
        if dry_run:
            estimate = client.estimate(request)
            typer.echo(estimate.model_dump_json(indent=1) if as_json else in_words(estimate))
            return
        job = client.submit(request, key)
        _show_submitted(job, as_json)
        if wait:
            raise typer.Exit(_EXIT_CODES[_follow(client, job.id)])


def _read(path: Path | None, overrides: Sequence[str], keep: int | None) -> dict[str, Any]:
    """Return the fields of a request that say what to run.

    A training is judged here, too; a search by the service alone, which says the same of it.
    """
    tree = read_tree(path, overrides)
    if "search" not in tree:
        changes = {} if keep is None else {"keep": keep}
        return {"kind": "train", "config": validate_config(tree), **changes}
    if keep is not None:
        raise ConfigError(
            "--keep must go with a training",
            got="a search, which keeps the last checkpoint of each trial",
            fix="leave it out",
        )
    return {"kind": "search", "search_file": tree}


def _request(what: dict[str, Any], **named: Any) -> AnyRequest:
    from pydantic import TypeAdapter, ValidationError

    from service.jobs.models import AnyRequest

    try:
        return TypeAdapter[AnyRequest](AnyRequest).validate_python({**what, **named})
    except ValidationError as error:
        first = error.errors()[0]
    if first["loc"][-1] == "name":
        raise ConfigError(
            "--name must be letters, digits, spaces and ._-, 80 at most",
            got=repr(named["name"]),
            fix="choose another",
        )
    raise ConfigError(
        "a search file must be of text, numbers, true, false, null, lists and mappings",
        got=repr(first["input"]),
        fix="put quotes around a date or what else YAML takes for no text",
    )


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
            job.kind,
            job.name or "",
            job.owner,
            job.state,
            progress(job),
            ago(job.created_at),
            job.reason,
        )
        for job in found
    ]
    columns = ("job", "kind", "name", "owner", "state", "progress", "submitted", "reason")
    print_table(columns, rows)


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
        show(found)


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
        typer.echo(in_words(job.estimate))


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
            elif event.event == "trial" and (text := ledger_line(event.json())):
                console.print(text)
    except KeyboardInterrupt:
        console.print(f"{job_id} goes on; see laminar status {job_id}")
        raise typer.Exit(130) from None
    return state
