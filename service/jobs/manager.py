"""What people may do to jobs."""

from __future__ import annotations

import hashlib

from laminar.errors import ConfigError
from service.jobs.cluster import Cluster
from service.jobs.dispatcher import Dispatcher
from service.jobs.estimate import Planner
from service.jobs.models import (
    ENDED,
    AnyRequest,
    ClusterInfo,
    Estimate,
    Job,
    JobSpec,
    JobStatus,
    Needs,
    SearchRequest,
    now,
)
from service.jobs.paths import confined
from service.jobs.searches import confined_search
from service.jobs.settings import Settings
from service.jobs.store import JobStore, make_id
from service.jobs.versions import differences, versions_here


class Conflict(Exception):  # noqa: N818 - what it says
    """The job is in a state in which this cannot be done."""


class JobManager:
    """Submits, stops, resumes and deletes: changes the states of jobs, on storage.

    Its dispatcher does what the states ask for, so no request waits for the cluster.

    Args:
        store: The jobs.
        cluster: Where they run.
        planner: What checks and measures them.
        settings: How they are treated.
    """

    def __init__(
        self, store: JobStore, cluster: Cluster, planner: Planner, settings: Settings
    ) -> None:
        self.store, self.settings = store, settings
        self.dispatcher = Dispatcher(store, cluster, settings)
        self._planner = planner
        self._own = versions_here()

    def submit(self, request: AnyRequest, owner: str, key: str | None = None) -> tuple[Job, bool]:
        """Take a job, which will be on storage when this returns.

        Args:
            request: What to run.
            owner: Who asks.
            key: The same key of the same owner is the same job, however often it is sent.

        Returns:
            The job, and whether it is a new one.

        Raises:
            UserError: It cannot run, or its versions are not the cluster's.
            PlannerBusy: Whether it can run is not known yet.
            Conflict: The key was used for something else.
            TooManyJobs: The owner has too many waiting.
        """
        # Before anything that may refuse: what is sent again was taken already.
        found = self.store.submitted_before(owner, key)
        is_new = False
        if found is None:
            spec = self._spec(request, owner, key)
            found = self.store.add(spec, most_queued=self.settings.max_queued_per_user)
            is_new = found is spec
        if not is_new and not self._is_of(request, found):
            raise Conflict(f"the idempotency key was used before for another job, {found.id}")
        self.dispatcher.wake()
        return self.store.job(found.id), is_new

    def _is_of(self, request: AnyRequest, spec: JobSpec) -> bool:
        """Whether a job was made of such a request, whatever has become of versions and paths."""
        if spec.sent == _digest(request):
            return True
        try:
            return spec.request == self._confined(request)
        except ConfigError:
            return False

    def _spec(self, sent: AnyRequest, owner: str, key: str | None) -> JobSpec:
        request = self._checked(sent)
        # `add` counts again; who has no place need not wait for the planner.
        self.store.check_place(owner, self.settings.max_queued_per_user)
        needs, estimate = self._plan(request)
        return JobSpec(
            id=make_id(at := now()),
            owner=owner,
            created_at=at,
            request=request,
            needs=needs,
            estimate=estimate,
            idempotency_key=key,
            sent=_digest(sent),
            versions=self._own,
        )

    def _plan(self, request: AnyRequest) -> tuple[Needs, Estimate]:
        if isinstance(request, SearchRequest):
            return self._planner.plan_search(request.search_file)
        return Needs.of(request.config), self._planner.plan(request.config)

    def estimate(self, request: AnyRequest) -> Estimate:
        """Check a job as `submit` does, and say what it would take.

        Raises:
            UserError: It cannot run, or its versions are not the cluster's.
            PlannerBusy: Whether it can run is not known yet.
        """
        return self._plan(self._checked(request))[1]

    def _checked(self, request: AnyRequest) -> AnyRequest:
        self._check_versions(request)
        return self._confined(request)

    def _confined(self, request: AnyRequest) -> AnyRequest:
        """Return the request with its paths resolved and what was compared left out."""
        roots = self.settings.data_roots
        if isinstance(request, SearchRequest):
            if not self.store.storage.is_local:
                raise ConfigError(
                    "a search must have storage that is a folder, where its trials meet",
                    got=f"the storage {self.store.storage.uri()}",
                    fix="submit jobs, or let `laminar serve --storage` name a mounted folder",
                )
            tree = confined_search(request.search_file, roots)
            return request.model_copy(update={"search_file": tree, "versions": None})
        config = confined(request.config, roots)
        return request.model_copy(update={"config": config, "versions": None})

    def _check_versions(self, request: AnyRequest) -> None:
        if request.versions is None:
            return
        for whose, versions in (("cluster", self.dispatcher.versions), ("service", self._own)):
            odd = [] if versions is None else differences(request.versions, versions)
            if odd:
                raise ConfigError(
                    f"client and {whose} must agree on versions",
                    got=", ".join(odd),
                    fix=f"install the {whose}'s, or send no versions to submit all the same",
                )

    def stop(self, job_id: str) -> Job:
        """Stop a job: at once where it waits, after its driver has let go where it runs.

        Raises:
            NoSuchJob: There is no such job.
            Conflict: It has ended.
        """
        changed = self.store.change(job_id, {"queued", "starting", "running"}, _stopped)
        state = self.store.status(job_id).state
        if state in ENDED and changed is None:
            raise Conflict(f"only a job that has not ended can be stopped, this one is {state}")
        self.dispatcher.wake()
        return self.store.job(job_id)

    def resume(self, job_id: str) -> Job:
        """Queue a stopped or failed job again, to go on from its last checkpoint.

        Of a search no trial that has ended is repeated.

        Raises:
            NoSuchJob: There is no such job.
            Conflict: It is in another state.
        """
        self.store.spec(job_id)
        changed = self.store.change(
            job_id,
            {"stopped", "failed"},
            lambda s: s.moved(
                "queued", "resume was asked for", num_retries=0, not_before=None, is_submitted=False
            ),
        )
        if changed is None:
            state = self.store.status(job_id).state
            raise Conflict(f"only a stopped or failed job can be resumed, this one is {state}")
        self.dispatcher.wake()
        return self.store.job(job_id)

    def delete(self, job_id: str) -> None:
        """Delete a job that has ended, and its run directory.

        Raises:
            NoSuchJob: There is no such job.
            Conflict: It has not ended.
        """
        if not self.store.remove(job_id, ENDED):
            state = self.store.status(job_id).state
            raise Conflict(f"only a job that has ended can be deleted, this one is {state}")

    def cluster(self) -> ClusterInfo:
        """Return the cluster as it was last seen."""
        return self.dispatcher.info()


def _stopped(status: JobStatus) -> JobStatus:
    """Return what a stop makes of a job that has not ended."""
    if status.state == "queued":
        return status.moved("stopped", "stopped before it started")
    return status.moved("stopping", "stop was asked for")


def _digest(request: AnyRequest) -> str:
    """Return what tells one request from another, versions apart."""
    content = request.model_copy(update={"versions": None}).model_dump_json()
    return hashlib.sha256(content.encode()).hexdigest()
