"""What a job is: what was asked for, where it stands, and what is told about it.

The same models are the records on storage, the bodies of the REST API and what the client returns.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, Discriminator, Field, StringConstraints, Tag

from laminar.config import Config
from laminar.config.base import FrozenModel
from service.jobs.search_models import SearchFile, SearchProgress

State = Literal["queued", "starting", "running", "stopping", "succeeded", "failed", "stopped"]
"""`starting` is from admission to the first training step, `running` from there on."""

ACTIVE: frozenset[State] = frozenset({"starting", "running", "stopping"})
"""Hold room on the cluster."""
ENDED: frozenset[State] = frozenset({"succeeded", "failed", "stopped"})

Kind = Literal["train", "search"]
Outcome = Literal["succeeded", "failed", "refused", "no_room", "stopped"]
"""Of a try; `refused` is for what another try would not mend."""

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._ -]{0,79}$")]
JobId = Annotated[str, StringConstraints(pattern=r"^job-[0-9a-z]{14}$")]
JOB_ID = re.compile(r"job-[0-9a-z]{14}")
MAX_PRIORITY = 100
_KEEP = 3


def now() -> datetime:
    """Return the time, in UTC."""
    return datetime.now(UTC)


class Versions(FrozenModel):
    """Versions of what client, service and cluster must have in common; null is not installed."""

    python: str | None = Field(None, max_length=40, description="Python, as 3.12.3.")
    ray: str | None = Field(None, max_length=80, description="Ray.")
    torch: str | None = Field(None, max_length=80, description="PyTorch.")
    laminar: str | None = Field(None, max_length=80, description="Laminar.")


class _Request(FrozenModel):
    """What requests of all kinds have in common."""

    name: Name | None = Field(None, description="For people; need not be unique.")
    priority: int = Field(
        0, ge=-MAX_PRIORITY, le=MAX_PRIORITY, description="Higher ones leave the queue first."
    )
    max_retries: int = Field(
        1, ge=0, le=20, description="Go on from the last checkpoint so many times after failures."
    )
    versions: Versions | None = Field(
        None, description="The client's, to be compared with the cluster's; null compares nothing."
    )


class JobRequest(_Request):
    """A training to run: data only, never code."""

    kind: Literal["train"] = Field("train", description="One training; `search` is many.")
    config: Config = Field(default_factory=Config, description="The run's configuration.")
    keep: int | None = Field(_KEEP, ge=1, description="Checkpoints to keep; null keeps all.")


class SearchRequest(_Request):
    """A search to run, many trainings: data only, never code."""

    kind: Literal["search"] = Field("search", description="Many trainings.")
    search_file: SearchFile = Field(
        description="Content of a search file: a configuration in which values may be "
        "distributions, and a section `search`; docs/tuning.md."
    )


def kind_of(request: Any) -> Any:
    """Return what sort of job is asked for; a training where nothing is said of it."""
    if isinstance(request, dict):
        kind = request.get("kind", "train")
        return kind if isinstance(kind, str) else None
    return getattr(request, "kind", None)


AnyRequest = Annotated[
    Annotated[JobRequest, Tag("train")] | Annotated[SearchRequest, Tag("search")],
    Discriminator(kind_of),
]
"""What to run, of either kind."""


class Needs(FrozenModel):
    """The placement group of a job: equal bundles, each of which must fit on one node.

    A search has several of them, one for each trial that runs.
    """

    num_bundles: int = Field(ge=1, description="Of a group: one for each stage.")
    cpus: float = Field(ge=0, description="CPUs of a bundle.")
    gpus: float = Field(ge=0, description="GPUs of a bundle.")
    num_groups: int = Field(
        1,
        ge=1,
        description="Trials of a search at once; fewer where the empty cluster has no such room.",
    )

    @property
    def total_bundles(self) -> int:
        """Of all groups."""
        return self.num_bundles * self.num_groups

    @classmethod
    def of(cls, config: Config) -> Needs:
        """Return what a configuration needs."""
        resources = config.resources
        return cls(
            num_bundles=config.num_stages,
            cpus=resources.cpus_per_stage,
            gpus=resources.gpus_per_stage,
        )


class Estimate(FrozenModel):
    """What a job will take, roughly."""

    num_workers: int = Field(description="Stage actors.")
    cpus: float = Field(description="CPUs of all stages.")
    gpus: float = Field(description="GPUs of all stages.")
    stage_bytes: tuple[int, ...] = Field(
        description="Tensors of each stage at their most, without the 0.7 GB of its process."
    )
    memory_bytes: int = Field(description="All stages, their processes and the driver's.")
    seconds: float | None = Field(
        description="On CPU cores like those it was calibrated on; null with GPUs."
    )
    num_trials: int | None = Field(None, description="Of a search; null for a training.")
    num_concurrent: int | None = Field(None, description="Of these at once; all else is of them.")


class Progress(FrozenModel):
    """Where a running job is."""

    epoch: int = Field(description="Under way, from 1.")
    num_epochs: int = Field(description="Of the run.")
    phase: str = Field(description="starting, correction, parallel, evaluation or checkpoint.")
    num_batches_done: int = Field(description="Of the whole run.")
    num_batches: int = Field(description="Of the whole run.")
    samples_per_s: float | None = Field(None, description="Over the last seconds.")
    eta_s: float | None = Field(None, description="Seconds until the end.")
    loss: float | None = Field(None, description="Mean training loss of this epoch so far.")
    accuracy: float | None = Field(None, description="Training accuracy of this epoch, 0..1.")


class Transition(FrozenModel):
    """A job came into a state."""

    state: State = Field(description="The state.")
    at: AwareDatetime = Field(description="When.")
    reason: str = Field(description="Why, in words.")
    attempt: int = Field(description="Number of the try, from 1; 0 before the first.")


class JobSpec(FrozenModel):
    """What was asked for; written once, and what makes a folder a job."""

    id: JobId
    owner: str
    created_at: AwareDatetime
    request: AnyRequest
    needs: Needs
    estimate: Estimate | None = None
    idempotency_key: str | None = None
    sent: str | None = None
    """SHA-256 of the request as it came, to know it again whatever its paths lead to by then."""
    versions: Versions = Versions()
    """The service's, which the cluster's must equal when the job starts."""


class JobStatus(FrozenModel):
    """Where a job stands; written by the service alone."""

    history: tuple[Transition, ...]
    is_submitted: bool = False
    """Whether Ray has taken this attempt."""
    session: str | None = None
    """The life of the cluster's head in which it has."""
    num_retries: int = 0
    """Used up since the job was last queued by a person."""
    not_before: AwareDatetime | None = None
    """Of a queued job: wait until then."""

    @property
    def last(self) -> Transition:
        """The state the job is in."""
        return self.history[-1]

    @property
    def state(self) -> State:
        """Its name."""
        return self.last.state

    def moved(
        self, state: State, reason: str, *, attempt: int | None = None, **changes: Any
    ) -> JobStatus:
        """Return the status after a transition that happens now."""
        attempt = self.last.attempt if attempt is None else attempt
        step = Transition(state=state, at=now(), reason=reason, attempt=attempt)
        return self.model_copy(update={"history": (*self.history, step), **changes})


class AttemptReport(FrozenModel):
    """What the driver of one attempt says; written by the driver alone."""

    phase: Literal["starting", "running", "ended"]
    outcome: Outcome | None = None
    reason: str = ""
    at: AwareDatetime
    progress: Progress | None = None
    search_progress: SearchProgress | None = None


class JobSummary(FrozenModel):
    """A row of the list of jobs."""

    id: JobId = Field(description="Sorts by time of submission.")
    kind: Kind = Field(description="A training, or a search of many.")
    name: str | None = Field(description="For people.")
    owner: str = Field(description="Who submitted it.")
    priority: int = Field(description="Higher ones leave the queue first.")
    state: State = Field(description="Where it stands.")
    reason: str = Field(description="Why it is in this state, or what it waits for.")
    attempt: int = Field(description="Number of the try, from 1; 0 before the first.")
    created_at: AwareDatetime = Field(description="Time of submission.")
    changed_at: AwareDatetime = Field(description="Since when it is in this state.")
    progress: Progress | None = Field(None, description="Of a training, as its driver last told.")
    search_progress: SearchProgress | None = Field(None, description="Of a search, likewise.")


class Job(JobSummary):
    """All about a job."""

    config: Config | None = Field(
        description="Of a training, as it was asked for; defaults included."
    )
    search_file: SearchFile | None = Field(None, description="Of a search, as it was asked for.")
    max_retries: int = Field(description="Tries that may follow a failure.")
    keep: int | None = Field(
        description="Checkpoints of a training to keep; null keeps all. A search keeps each "
        "trial's last."
    )
    needs: Needs = Field(description="Its placement group.")
    estimate: Estimate | None = Field(description="What it will take, roughly.")
    history: tuple[Transition, ...] = Field(description="All states, oldest first.")
    run: str = Field(description="Its run directory on the shared storage.")


class JobPage(FrozenModel):
    """Some of the jobs, newest first."""

    jobs: tuple[JobSummary, ...] = Field(description="Newest first.")
    next_cursor: str | None = Field(description="To ask for those after; null: there are none.")


class NodeInfo(FrozenModel):
    """What one living node of the cluster has, busy or not."""

    cpus: float = Field(description="CPUs.")
    gpus: float = Field(description="GPUs.")


class ClusterInfo(FrozenModel):
    """The cluster, as the service last saw it."""

    is_reachable: bool = Field(description="Whether it answered.")
    nodes: tuple[NodeInfo, ...] = Field(description="Living nodes.")
    cpus: float = Field(description="Of all nodes.")
    gpus: float = Field(description="Of all nodes.")
    cpus_used: float = Field(description="By jobs of this service and others.")
    gpus_used: float = Field(description="By jobs of this service and others.")
    versions: Versions | None = Field(description="What runs there; null: not known yet.")
    service_versions: Versions = Field(description="What the service runs.")
    num_active: int = Field(description="Jobs that hold room.")
    num_queued: int = Field(description="Jobs that wait.")


class Checkpoint(FrozenModel):
    """A published checkpoint."""

    name: str = Field(description="Its folder under `checkpoints/`.")
    epoch: int = Field(description="Epochs finished.")
    num_bytes: int = Field(description="Of all its files but the manifest.")
    files: tuple[str, ...] = Field(description="Paths to ask `artifacts` for.")


class Artifact(FrozenModel):
    """A file of the run directory."""

    path: str = Field(description="Within the run directory.")
    num_bytes: int = Field(description="Its size.")
