"""What several people, or one and the dispatcher, do to a job at the same time."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from service.jobs.manager import Conflict
from service.jobs.models import Config, Estimate, JobStatus
from service.jobs.store import TooManyJobs
from tests.service.scripted_cluster import ScriptedCluster, Service


@pytest.mark.parametrize("how", ["failed", "no_room", "refused", "is gone"])
def test_a_stop_that_comes_while_a_failure_is_dealt_with_is_not_lost(
    service: Service, how: str, monkeypatch: pytest.MonkeyPatch
):
    """The stop is accepted after the dispatcher has looked and before it has written."""
    job_id = service.submit(max_retries=3)
    service.tick()
    change, answers = service.store.change, []

    def stop_first(*arguments: Any) -> JobStatus | None:
        monkeypatch.setattr(service.store, "change", change)
        answers.append(service.manager.stop(job_id).state)
        return change(*arguments)

    monkeypatch.setattr(service.store, "change", stop_first)
    if how == "is gone":
        service.cluster.drivers.clear()
    else:
        service.say(job_id, "ended", how, "a stage died")
    service.tick()
    assert answers == ["stopping"]
    service.tick()
    states = [step.state for step in service.store.status(job_id).history]
    assert states == ["queued", "starting", "stopping", "stopped"]


def test_a_stop_is_not_lost_to_a_retry_that_begins_meanwhile(
    service: Service, monkeypatch: pytest.MonkeyPatch
):
    job_id = service.submit(max_retries=3)
    service.tick()
    service.say(job_id, "ended", "failed", "a stage died")
    change = service.store.change

    def retried_meanwhile(*arguments: Any) -> JobStatus | None:
        """Where the stop found nothing to change, the dispatcher goes round before it looks on."""
        changed = change(*arguments)
        if changed is None:
            monkeypatch.setattr(service.store, "change", change)
            service.tick()
        return changed

    monkeypatch.setattr(service.store, "change", retried_meanwhile)
    service.manager.stop(job_id)
    service.tick()
    assert service.state(job_id) == "stopped"


def test_a_resume_that_comes_while_a_job_is_deleted_keeps_it(
    service: Service, monkeypatch: pytest.MonkeyPatch
):
    job_id = service.submit()
    service.manager.stop(job_id)
    remove = service.store.remove

    def resumed_first(*arguments: Any) -> bool:
        service.manager.resume(job_id)
        return remove(*arguments)

    monkeypatch.setattr(service.store, "remove", resumed_first)
    with pytest.raises(Conflict, match="this one is queued"):
        service.manager.delete(job_id)
    service.restart()
    assert service.state(job_id) == "queued"


def test_those_who_come_together_share_the_places_that_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    service = Service(tmp_path, ScriptedCluster(), max_queued_per_user=2)
    together, planner = threading.Barrier(8), service.manager._planner
    plan = planner.plan

    def plan_together(config: Config) -> Estimate:
        """All have seen a free place when the first takes it."""
        together.wait(30)
        return plan(config)

    monkeypatch.setattr(planner, "plan", plan_together)
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(service.submit) for _ in range(8)]
    errors = Counter(type(future.exception()) for future in futures)
    assert errors == {type(None): 2, TooManyJobs: 6}
    assert len(service.store.ids()) == 2
