"""All jobs, in memory and on storage: what the one knows can always be read back from the other.

STORAGE/job-.../job.json             what was asked for; its being there makes it a job
                status.json          states with time and reason; only the service writes it
                attempts/0001.json   what the driver of a try says; only that driver writes it
                log.txt              what the drivers of all tries printed
                run/                 the run directory, or the folder of a search
STORAGE/deleted/job-...             is being deleted: a service that is killed meanwhile goes on
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Collection
from datetime import datetime
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from laminar.storage import Storage
from service.jobs.models import (
    ENDED,
    JOB_ID,
    AttemptReport,
    Job,
    JobSpec,
    JobStatus,
    JobSummary,
    SearchRequest,
    State,
    Transition,
)

_log = logging.getLogger("laminar.service")

Model = TypeVar("Model", bound=BaseModel)
Value = TypeVar("Value")

_NUM_LOCKS = 64
_DIGITS = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's: no letter looks like another digit

SPEC, STATUS, LOG, RUN = "job.json", "status.json", "log.txt", "run"
_DELETED = "deleted"


def attempt_file(attempt: int) -> str:
    """Return the name, in a job's folder, of what the driver of a try says."""
    return f"attempts/{attempt:04d}.json"


def make_id(at: datetime) -> str:
    """Return an identifier that sorts by time: 45 bits of milliseconds, 25 of chance."""
    number = (int(at.timestamp() * 1000) << 25) | secrets.randbits(25)
    return "job-" + "".join(_DIGITS[(number >> shift) & 31] for shift in range(65, -1, -5))


class NoSuchJob(KeyError):  # noqa: N818 - what it says
    """There is no job of this name, or no longer."""


class TooManyJobs(Exception):  # noqa: N818
    """The user has as many jobs in the queue as one may have."""


class JobStore:
    """The jobs of a storage.

    Only one service may use a storage at a time; its methods may be called from several threads.

    Args:
        storage: Where the jobs' folders are.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._lock = threading.RLock()
        self._changing = threading.RLock()
        """Held while storage is written, so that who only reads states never waits for it."""
        self._adding = [threading.Lock() for _ in range(_NUM_LOCKS)]
        """So that two submissions with one key meet, and others do not wait for each other."""
        self._specs: dict[str, JobSpec] = {}
        self._statuses: dict[str, JobStatus] = {}
        self._reports: dict[str, AttemptReport] = {}
        self._notes: dict[str, str] = {}
        self._keys: dict[tuple[str, str], str] = {}
        self._ended: Counter[State] = Counter()
        self._coming: Counter[str] = Counter()
        """How many jobs of each owner are on their way to storage."""
        self.unreadable: list[str] = []
        """Folders that look like jobs and cannot be read."""
        self._finish_deletions()
        self._load()

    def _finish_deletions(self) -> None:
        """Delete what a service that was killed meanwhile had begun to."""
        for job_id in filter(JOB_ID.fullmatch, self.storage.names(_DELETED)):
            try:
                self.storage.remove_file(f"{job_id}/{SPEC}")
                self._remove_files(job_id)
            except OSError:
                _log.exception("the files of %s, which was deleted, cannot be", job_id)

    def _load(self) -> None:
        for name in self.storage.names():
            if not JOB_ID.fullmatch(name):
                continue
            try:
                spec = self._read(f"{name}/{SPEC}", JobSpec)
                if spec is None:
                    _log.warning("the folder %s has no %s, and is no job", name, SPEC)
                    continue
                status = self._read(f"{name}/{STATUS}", JobStatus) or _initial(spec)
            except ValidationError:
                self.unreadable.append(name)
                continue
            self._remember(spec, status)
            with contextlib.suppress(ValidationError):
                self.refresh(name)

    def _read(self, name: str, model: type[Model]) -> Model | None:
        content = self.storage.read(name)
        if content is None:
            return None
        try:
            return model.model_validate_json(content)
        except ValidationError:  # a store may have replaced it while it was read
            content = self.storage.read(name)
            return None if content is None else model.model_validate_json(content)

    def _remember(self, spec: JobSpec, status: JobStatus) -> None:
        with self._lock:
            self._specs[spec.id], self._statuses[spec.id] = spec, status
            if spec.idempotency_key is not None:
                self._keys[spec.owner, spec.idempotency_key] = spec.id

    def add(self, spec: JobSpec, *, most_queued: int | None = None) -> JobSpec:
        """Add a job, on storage when this returns.

        Args:
            spec: What was asked for.
            most_queued: Jobs that its owner may have in the queue; None is any number.

        Returns:
            The spec; or, where the owner has submitted with this key before, the one of then.

        Raises:
            TooManyJobs: The owner has so many.
        """
        key = spec.idempotency_key
        if key is None:
            self._add(spec, most_queued)
            return spec
        with self._adding[hash((spec.owner, key)) % _NUM_LOCKS]:
            with self._lock:
                before = self._keys.get((spec.owner, key))
                if before is not None:
                    return self._specs[before]
            self._add(spec, most_queued)
            return spec

    def _add(self, spec: JobSpec, most_queued: int | None) -> None:
        with self._lock:
            self.check_place(spec.owner, most_queued)
            self._coming[spec.owner] += 1
        try:
            self.storage.write(f"{spec.id}/{SPEC}", spec.model_dump_json(indent=1).encode())
            self._remember(spec, _initial(spec))
        finally:
            with self._lock:
                self._coming[spec.owner] -= 1

    def submitted_before(self, owner: str, key: str | None) -> JobSpec | None:
        """Return what somebody submitted with this key, if anything."""
        with self._lock:
            found = None if key is None else self._keys.get((owner, key))
            return None if found is None else self._specs[found]

    def spec(self, job_id: str) -> JobSpec:
        """Return what was asked for.

        Raises:
            NoSuchJob: As all methods do that take a job.
        """
        with self._lock:
            return self._get(self._specs, job_id)

    def status(self, job_id: str) -> JobStatus:
        """Return where a job stands."""
        with self._lock:
            return self._get(self._statuses, job_id)

    def _get(self, found: dict[str, Value], job_id: str) -> Value:
        try:
            return found[job_id]
        except KeyError:
            raise NoSuchJob(job_id) from None

    def ids(self, states: Collection[State] | None = None) -> list[str]:
        """Return the jobs that are in one of these states, oldest first."""
        with self._lock:
            found = self._statuses.items()
            return sorted(i for i, s in found if states is None or s.state in states)

    def check_place(self, owner: str, most_queued: int | None) -> None:
        """Refuse somebody who may have no further job in the queue.

        Raises:
            TooManyJobs: There are as many, those that are just coming included.
        """
        if most_queued is None:
            return
        with self._lock:
            if self._coming.total() + len(self._statuses) < most_queued:
                return  # nothing to count: there are not so many jobs at all
            queued = self._coming[owner] + sum(
                status.state == "queued" and self._specs[job_id].owner == owner
                for job_id, status in self._statuses.items()
            )
        if queued >= most_queued:
            raise TooManyJobs(f"{owner} has {queued} queued jobs, the most allowed")

    def counts(self) -> Counter[State]:
        """Return how many jobs are in each state."""
        with self._lock:
            return Counter(status.state for status in self._statuses.values())

    def ended(self) -> Counter[State]:
        """Return how often jobs have ended in each state since this began; it only grows."""
        with self._lock:
            return Counter(self._ended)

    def change(
        self, job_id: str, expected: Collection[State], change: Callable[[JobStatus], JobStatus]
    ) -> JobStatus | None:
        """Change the status if the job is in one of the expected states; on storage after.

        Returns:
            The new status, or None where the job is in another state by now, or gone.
        """
        with self._changing:
            with self._lock:
                status = self._statuses.get(job_id)
            if status is None or status.state not in expected:
                return None
            changed = change(status)
            self._write(job_id, changed)
            return changed

    def _write(self, job_id: str, status: JobStatus) -> None:
        content = status.model_dump_json(indent=1).encode()
        self.storage.write(f"{job_id}/{STATUS}", content)
        with self._lock:
            before = self._statuses[job_id]
            if status.state in ENDED and before.state not in ENDED:
                self._ended[status.state] += 1
            if before.last.attempt != status.last.attempt:
                self._reports.pop(job_id, None)
            self._statuses[job_id] = status
            self._notes.pop(job_id, None)

    def note(self, job_id: str, text: str) -> None:
        """Say what a queued job waits for; in memory only, as it is worked out anew every time."""
        with self._lock:
            if job_id in self._statuses and self._statuses[job_id].state == "queued":
                self._notes[job_id] = text

    def refresh(self, job_id: str) -> AttemptReport | None:
        """Read what the driver of the present try says, if it has said anything."""
        attempt = self.status(job_id).last.attempt
        report = self._read(f"{job_id}/{attempt_file(attempt)}", AttemptReport) if attempt else None
        with self._lock:
            if report is None:
                self._reports.pop(job_id, None)
            elif job_id in self._specs:
                self._reports[job_id] = report
        return report

    def remove(self, job_id: str, expected: Collection[State]) -> bool:
        """Delete a job and all its files if it is in one of the expected states.

        What makes it a job goes first, in the same moment for all other methods.

        Returns:
            Whether it was in one of them.
        """
        with self._changing:
            if self.status(job_id).state not in expected:
                return False
            with contextlib.suppress(OSError):  # on a full disk, where room is to be made
                self.storage.write(f"{_DELETED}/{job_id}", b"")
            self.storage.remove_file(f"{job_id}/{SPEC}")
            with self._lock:
                spec = self._specs.pop(job_id)
                for found in (self._statuses, self._reports, self._notes):
                    found.pop(job_id, None)
                if spec.idempotency_key is not None:
                    self._keys.pop((spec.owner, spec.idempotency_key), None)
        self._remove_files(job_id)
        return True

    def _remove_files(self, job_id: str) -> None:
        self.storage.remove(job_id)
        self.storage.remove_file(f"{_DELETED}/{job_id}")

    def summary(self, job_id: str) -> JobSummary:
        """Return a job's row."""
        with self._lock:
            return JobSummary.model_validate(self._summary(job_id))

    def job(self, job_id: str) -> Job:
        """Return all about a job."""
        with self._lock:
            spec = self.spec(job_id)
            request = spec.request
            asked: dict[str, object]
            if isinstance(request, SearchRequest):
                asked = {"config": None, "search_file": request.search_file, "keep": None}
            else:
                asked = {"config": request.config, "keep": request.keep}
            return Job.model_validate(
                self._summary(job_id)
                | asked
                | {
                    "max_retries": request.max_retries,
                    "needs": spec.needs,
                    "estimate": spec.estimate,
                    "history": self._statuses[job_id].history,
                    "run": self.storage.uri(f"{job_id}/{RUN}"),
                }
            )

    def _summary(self, job_id: str) -> dict[str, object]:
        spec, last = self.spec(job_id), self.status(job_id).last
        report = self._reports.get(job_id)
        return {
            "id": job_id,
            "kind": spec.request.kind,
            "name": spec.request.name,
            "owner": spec.owner,
            "priority": spec.request.priority,
            "state": last.state,
            "reason": self._notes.get(job_id, last.reason),
            "attempt": last.attempt,
            "created_at": spec.created_at,
            "changed_at": last.at,
            "progress": report.progress if report else None,
            "search_progress": report.search_progress if report else None,
        }


def _initial(spec: JobSpec) -> JobStatus:
    step = Transition(state="queued", at=spec.created_at, reason="submitted", attempt=0)
    return JobStatus(history=(step,))
