"""The loop that carries out what the states of jobs ask for."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from service.jobs.admission import Candidate, Decision, Holder, admit
from service.jobs.cluster import (
    Cluster,
    ClusterState,
    ClusterUnreachable,
    SubmissionRefused,
)
from service.jobs.models import (
    ACTIVE,
    AttemptReport,
    ClusterInfo,
    JobStatus,
    Needs,
    Versions,
    now,
)
from service.jobs.settings import Settings
from service.jobs.store import JobStore, NoSuchJob
from service.jobs.versions import versions_here

_log = logging.getLogger("laminar.service")

_ROOM_PAUSE_S = 15.0
_RETRY_PAUSE_S = 5.0
_QUIET_S = 0.2
"""Without another request, before a round: of jobs that come together the first is to start."""
_LONGEST_S = 1.0
"""That a round waits for such a moment."""
_LAG_S = 10.0
"""Ray's account of what is in use is up to five seconds old."""


class Dispatcher:
    """Follows active jobs and admits queued ones, round after round, in one thread.

    Whatever it does is on storage before the cluster is asked for it, so that a service that was
    killed goes on where it was.

    Args:
        store: The jobs.
        cluster: Where they run.
        settings: How they are treated.
    """

    def __init__(self, store: JobStore, cluster: Cluster, settings: Settings) -> None:
        self.store, self.settings = store, settings
        self._cluster = cluster
        self._own = versions_here()
        self._state: ClusterState | None = None
        self.versions: Versions | None = None
        """The cluster's, once they are known."""
        self._stopping_since: dict[str, float] = {}
        self._silence = "-"
        """Why the cluster did not answer, as was last logged."""
        self._left: list[tuple[float, Needs]] = []
        self._wake = threading.Event()
        self._closed = threading.Event()
        self.ticked_at = 0.0
        """When `tick` last came to its end, on the monotonic clock."""

    @property
    def is_cluster_reachable(self) -> bool:
        """Whether the cluster answered when it was last asked; takes no lock."""
        return self._state is not None

    def info(self) -> ClusterInfo:
        """Return the cluster as it was last seen."""
        state = self._state
        nodes = state.nodes if state else ()
        return ClusterInfo(
            is_reachable=state is not None,
            nodes=nodes,
            cpus=sum(n.cpus for n in nodes),
            gpus=sum(n.gpus for n in nodes),
            cpus_used=state.cpus_used if state else 0.0,
            gpus_used=state.gpus_used if state else 0.0,
            versions=self.versions,
            service_versions=self._own,
            num_active=len(self.store.ids(ACTIVE)),
            num_queued=len(self.store.ids({"queued"})),
        )

    def run(self, interval_s: float = 1.0) -> None:
        """Call `tick` until `close`, so many seconds apart, or sooner where something is asked."""
        while not self._closed.is_set():
            try:
                self.tick()
            except Exception:  # one bad tick must not end all the others
                _log.exception("a round of the dispatcher failed")
            self._wake.wait(interval_s)
            self._wait_for_quiet()

    def _wait_for_quiet(self) -> None:
        """Let a burst of requests pass, which may end with the one of highest priority."""
        until = time.monotonic() + _LONGEST_S
        while self._wake.is_set() and time.monotonic() < until:
            self._wake.clear()
            # Looked at after `clear`, which may have undone what `close` had set.
            if not self._closed.is_set():
                self._wake.wait(_QUIET_S)
        self._wake.clear()

    def wake(self) -> None:
        """Let `run` go round soon: something was asked for."""
        self._wake.set()

    def close(self) -> None:
        """Let `run` return; jobs go on without the service."""
        self._closed.set()
        self._wake.set()

    def tick(self) -> None:
        """Look at the cluster and the active jobs, then admit who may start."""
        self._look()
        for job_id in self.store.ids(ACTIVE):
            try:
                self._follow(job_id)
            except ClusterUnreachable:
                self._state = None
            except NoSuchJob:
                continue  # deleted meanwhile
            except Exception:  # one job's broken folder must not stop all the others
                _log.exception("%s cannot be followed", job_id)
        self._admit()
        self.ticked_at = time.monotonic()

    def _look(self) -> None:
        try:
            self._state = self._cluster.state()
            self.versions = self._cluster.versions()
            self._silence = ""
        except ClusterUnreachable as error:
            if str(error) != self._silence:
                _log.warning("the cluster does not answer: %s", error)
            self._state, self._silence = None, str(error)
        except SubmissionRefused as error:
            _log.warning("the cluster cannot tell its versions: %s", error)

    def _follow(self, job_id: str) -> None:
        """Bring one active job's state up to what its driver says, or the cluster."""
        status = self.store.status(job_id)
        if not status.is_submitted:
            if self._state is not None:
                self._submit(job_id, status)
            return
        report = self.store.refresh(job_id)
        if report is None or report.phase != "ended":
            if self._state is None:
                return  # nothing is known of it, so nothing changes
            state, message = self._cluster.driver(submission_id(job_id, status.last.attempt))
            if state in ("ended", "absent"):
                # It may have said so between the two looks.
                report = self.store.refresh(job_id)
                if report is None or report.phase != "ended":
                    is_lost_head = state == "absent" and self._is_of_another_head(status)
                    self._lost(job_id, message, is_lost_head=is_lost_head)
                    return
        if report is None:
            self._insist(job_id)
        elif report.phase == "ended":
            self._end(job_id, report)
        elif report.phase == "running" and status.state == "starting":
            self.store.change(job_id, {"starting"}, lambda s: s.moved("running", "training"))
        else:
            self._insist(job_id)

    def _submit(self, job_id: str, status: JobStatus) -> None:
        """Hand an admitted job to the cluster; a second time does nothing there.

        The state was on storage before, so a service that is killed here hands it over again, by
        the same name.
        """
        name = submission_id(job_id, status.last.attempt)
        if status.state == "stopping":
            self._cluster.stop(name)  # which may have it, and we were killed before we knew
            self._leave(job_id, lambda s: s.moved("stopped", "stopped before it started"))
            return
        try:
            self._cluster.submit(name, self.store.storage.uri(job_id), status.last.attempt)
        except SubmissionRefused as error:
            self._retry_or_fail(job_id, f"the cluster refused it: {error}")
            return
        # Asked for afterwards: a head that comes between is taken for the one that has it, which
        # may cost a retry; the other way round a retry could be had for nothing.
        taken = {"is_submitted": True, "session": self._cluster.session()}
        self.store.change(job_id, ACTIVE, lambda s: s.model_copy(update=taken))

    def _insist(self, job_id: str) -> None:
        """Kill a driver that was asked to stop and has not within the grace."""
        if self.store.status(job_id).state != "stopping":
            return
        since = self._stopping_since.setdefault(job_id, time.monotonic())
        if time.monotonic() - since > self.settings.stop_grace_s:
            attempt = self.store.status(job_id).last.attempt
            self._cluster.stop(submission_id(job_id, attempt))

    def _end(self, job_id: str, report: AttemptReport) -> None:
        if report.outcome == "succeeded":
            self._leave(job_id, lambda s: s.moved("succeeded", report.reason))
        elif report.outcome == "stopped":
            self._leave(job_id, lambda s: s.moved("stopped", report.reason))
        elif report.outcome == "refused":
            self._leave_unless_stopped(
                job_id, report.reason, lambda s: s.moved("failed", report.reason)
            )
        elif report.outcome == "no_room":
            later = now() + timedelta(seconds=_ROOM_PAUSE_S)
            self._leave_unless_stopped(
                job_id, report.reason, lambda s: _requeued(s, report.reason, not_before=later)
            )
        else:
            self._retry_or_fail(job_id, report.reason)

    def _is_of_another_head(self, status: JobStatus) -> bool:
        """Whether it is certain that the head which took the present try is gone.

        Asked for after the driver was found absent, so that it is no older than that answer.
        """
        return status.session is not None and self._cluster.session() != status.session

    def _lost(self, job_id: str, message: str, *, is_lost_head: bool) -> None:
        """Deal with a driver that is gone without a word: killed, or lost with its head."""
        if not is_lost_head:
            self._retry_or_fail(job_id, f"its driver is gone without a word: {message}")
            return
        reason = "its driver is gone with the cluster's head, which is a new one"
        later = now() + timedelta(seconds=_RETRY_PAUSE_S)
        self._leave_unless_stopped(
            job_id, reason, lambda s: _requeued(s, f"tries again: {reason}", not_before=later)
        )

    def _retry_or_fail(self, job_id: str, reason: str) -> None:
        most = self.store.spec(job_id).request.max_retries

        def change(status: JobStatus) -> JobStatus:
            if status.num_retries >= most:
                return status.moved("failed", reason)
            count = status.num_retries + 1
            return _requeued(
                status,
                f"retry {count} of {most}: {reason}",
                not_before=now() + timedelta(seconds=_RETRY_PAUSE_S),
                num_retries=count,
            )

        self._leave_unless_stopped(job_id, reason, change)

    def _leave_unless_stopped(
        self, job_id: str, reason: str, change: Callable[[JobStatus], JobStatus]
    ) -> None:
        """Let a job go; one whose stop was accepted, up to this moment, is stopped instead."""
        self._leave(
            job_id, lambda s: s.moved("stopped", reason) if s.state == "stopping" else change(s)
        )

    def _leave(self, job_id: str, change: Callable[[JobStatus], JobStatus]) -> None:
        """Let a job go from the cluster; on storage first, as the cluster may not answer.

        Args:
            job_id: Which one.
            change: What becomes of it; called with the store's lock held, so that nobody changes
                the job between the look and the deed.
        """
        name = submission_id(job_id, self.store.status(job_id).last.attempt)
        self._stopping_since.pop(job_id, None)
        self._left.append((time.monotonic(), self.store.spec(job_id).needs))
        self.store.change(job_id, ACTIVE, change)
        with contextlib.suppress(ClusterUnreachable):
            self._cluster.forget(name)

    def _admit(self) -> None:
        for decision in self._decide():
            if not decision.is_admitted:
                self.store.note(decision.id, decision.reason)
                continue
            changed = self.store.change(
                decision.id,
                {"queued"},
                lambda s, reason=decision.reason: s.moved(  # type: ignore[misc]
                    "starting",
                    reason,
                    attempt=s.last.attempt + 1,
                    is_submitted=False,
                    not_before=None,
                ),
            )
            if changed is not None:
                try:
                    self._submit(decision.id, changed)
                except ClusterUnreachable:
                    self._state = None
                    return

    def _decide(self) -> Sequence[Decision]:
        queued = []
        for job_id in self.store.ids({"queued"}):
            try:
                spec, status = self.store.spec(job_id), self.store.status(job_id)
            except NoSuchJob:
                continue  # stopped and deleted meanwhile
            queued.append(
                Candidate(
                    job_id,
                    spec.owner,
                    spec.request.priority,
                    spec.created_at,
                    spec.needs,
                    status.not_before,
                )
            )
        active = [self.store.spec(job_id) for job_id in self.store.ids(ACTIVE)]
        self._left = [(t, n) for t, n in self._left if time.monotonic() - t < _LAG_S]
        return admit(
            queued,
            [Holder(spec.owner, spec.needs) for spec in active],
            self.info(),
            left=[needs for _, needs in self._left],
            max_active_per_user=self.settings.max_active_per_user,
            at=now(),
        )


def submission_id(job_id: str, attempt: int) -> str:
    """Return the name of a try on the cluster."""
    return f"{job_id}-{attempt:04d}"


def _requeued(status: JobStatus, reason: str, **changes: Any) -> JobStatus:
    """Return the status of a job that waits for another try."""
    return status.moved("queued", reason, is_submitted=False, **changes)
