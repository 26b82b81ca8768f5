"""Jobs and what is told of them, in words for the terminal."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from service.jobs.models import Estimate, Job, JobSummary

_KINDS = {"train": "training", "search": "search"}


def progress(job: JobSummary) -> str:
    """Return how far a job is, in a few words."""
    if (search := job.search_progress) is not None:
        best = "".join(f", {name} {_number(value)}" for name, value in search.best.items())
        return f"trials {search.num_done}/{search.num_trials}{best}"
    return f"epoch {job.progress.epoch}/{job.progress.num_epochs}" if job.progress else ""


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def in_words(estimate: Estimate) -> str:
    """Return what a job will take."""
    parts = []
    if estimate.num_trials is not None:
        parts.append(f"{estimate.num_trials} trials, {estimate.num_concurrent} at once")
    parts += [f"{estimate.num_workers} workers", f"{estimate.cpus:g} CPUs"]
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


def ago(then: datetime) -> str:
    """Return how long ago something was."""
    return f"{_duration((datetime.now(UTC) - then).total_seconds())} ago"


def show(job: Job) -> None:
    """Print where a job stands, and all its states."""
    name = f" ({job.name})" if job.name else ""
    typer.echo(f"job       {job.id}{name}, a {_KINDS[job.kind]} of {job.owner}")
    typer.echo(f"state     {job.state}: {job.reason}")
    if (p := job.progress) is not None:
        loss = "" if p.loss is None else f", loss {p.loss:.4f}"
        batches = f"{p.num_batches_done}/{p.num_batches}"
        typer.echo(f"progress  epoch {p.epoch}/{p.num_epochs}, batch {batches}{loss}")
    if (s := job.search_progress) is not None:
        best = "".join(f", {name} {_number(value)}" for name, value in s.best.items())
        of = "" if s.best_trial is None else f"; best: trial {s.best_trial}{best}"
        done = f"{s.num_done}/{s.num_trials} trials done, {s.num_running} under way"
        typer.echo(f"progress  {done}{of}")
    typer.echo(f"run       {job.run}")
    for step in job.history:
        attempt = f" (attempt {step.attempt})" if step.attempt else ""
        typer.echo(f"{step.at:%Y-%m-%d %H:%M:%S}  {step.state:9} {step.reason}{attempt}")


def ledger_line(line: dict[str, Any]) -> str:
    """Return a line of a search's ledger in words; nothing of those that are for nobody."""
    if line["event"] == "report":
        metrics = line["metrics"]
        accuracy = _number(metrics["test_accuracy"])
        return f"trial {line['trial']} epoch {metrics['epoch']}: test accuracy {accuracy}"
    if line["event"] == "status":
        error = f": {line['error']}" if line["error"] else ""
        return f"trial {line['trial']} {line['status']}{error}"
    return ""
