"""The life of jobs on real storage, with a cluster and drivers that the test plays."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from service.jobs import dispatcher
from service.jobs.dispatcher import Dispatcher, submission_id
from service.jobs.manager import Conflict
from tests.service.scripted_cluster import (
    ScriptedCluster,
    Service,
)


@pytest.fixture
def _no_pauses(monkeypatch: pytest.MonkeyPatch):
    for name in ("_ROOM_PAUSE_S", "_RETRY_PAUSE_S"):
        monkeypatch.setattr(dispatcher, name, 0.0)


def history(service: Service, job_id: str) -> list[str]:
    return [step.state for step in service.store.status(job_id).history]


def started(service: Service, **changes: Any) -> str:
    job_id = service.submit(**changes)
    service.tick()
    assert service.state(job_id) == "starting"
    return job_id


@contextmanager
def running(loop: Dispatcher) -> Iterator[None]:
    """Let a dispatcher run in its thread; the first round is over when the block begins."""
    thread = threading.Thread(target=loop.run, args=(600.0,))
    thread.start()
    try:
        while not loop.ticked_at:
            time.sleep(0.01)
        yield
    finally:
        loop.close()
        thread.join()


def test_a_job_from_queue_to_success(service: Service):
    job_id = service.submit(name="first")
    assert service.state(job_id) == "queued"
    service.tick()
    assert service.cluster.submitted == [f"{job_id}-0001"]
    service.say(job_id, "starting")
    service.tick()
    assert service.state(job_id) == "starting"
    service.say(job_id, "running")
    service.tick()
    assert service.state(job_id) == "running"
    assert service.store.summary(job_id).progress.loss == 1.5
    service.say(job_id, "ended", "succeeded", "test accuracy 0.9")
    service.tick()
    job = service.store.job(job_id)
    assert (job.state, job.reason, job.attempt) == ("succeeded", "test accuracy 0.9", 1)
    assert history(service, job_id) == ["queued", "starting", "running", "succeeded"]
    times = [step.at for step in job.history]
    assert times == sorted(times)
    assert all(step.reason for step in job.history)


def test_a_restarted_service_knows_everything(service: Service):
    ids = [started(service), started(service), service.submit(priority=3, name="waits")]
    service.say(ids[0], "running")
    service.say(ids[1], "ended", "failed", "a stage died")
    service.tick()
    before = [service.store.job(i) for i in ids]
    service.restart()
    assert [service.store.job(i).history for i in ids] == [job.history for job in before]
    assert service.store.job(ids[0]).progress == before[0].progress
    assert service.store.ids() == sorted(ids)
    service.say(ids[0], "ended", "succeeded")
    service.tick()
    assert service.state(ids[0]) == "succeeded"


def test_a_service_killed_between_admission_and_submission_submits_once(service: Service):
    job_id = service.submit()
    service.cluster.is_reachable = False
    service.tick()
    assert (service.state(job_id), service.reason(job_id)) == (
        "queued",
        "the cluster does not answer",
    )
    service.cluster.is_reachable = True
    moved = lambda s: s.moved("starting", "admitted", attempt=1)  # noqa: E731
    service.store.change(job_id, {"queued"}, moved)
    service.cluster.submit(f"{job_id}-0001", "", 1)  # the cluster took it; the service died
    service.restart()
    service.tick()
    assert service.cluster.submitted == [f"{job_id}-0001"]
    assert service.store.status(job_id).is_submitted


@pytest.mark.usefixtures("_no_pauses")
@pytest.mark.parametrize("how", ["says failed", "vanishes", "is unknown"])
def test_failures_are_retried_so_often_and_no_more(service: Service, how: str):
    job_id = started(service, max_retries=2)
    for attempt in (1, 2, 3):
        name = submission_id(job_id, attempt)
        assert service.cluster.submitted[-1] == name
        if how == "says failed":
            service.say(job_id, "ended", "failed", "a stage died")
        elif how == "vanishes":
            service.cluster.drivers[name] = "ended"
        else:
            del service.cluster.drivers[name]
        service.tick()  # takes note, and admits it again as there is no pause
    assert service.state(job_id) == "failed"
    assert history(service, job_id).count("starting") == 3
    assert "retry 2 of 2" in service.store.status(job_id).history[-3].reason
    service.manager.resume(job_id)
    service.tick()
    assert service.cluster.submitted[-1] == submission_id(job_id, 4)


@pytest.mark.usefixtures("_no_pauses")
def test_a_head_that_is_lost_uses_up_no_retry(service: Service):
    job_id = started(service, max_retries=1)
    for attempt in (2, 3, 4):
        service.say(job_id, "running")
        service.tick()
        service.cluster.lose_head()
        if attempt == 3:
            service.restart()  # which head took it is on storage
            service.tick()  # a new service first looks at the cluster, then admits
        else:
            service.tick()
        assert service.cluster.submitted[-1] == submission_id(job_id, attempt)
    status = service.store.status(job_id)
    assert status.num_retries == 0
    assert "with the cluster's head" in status.history[-2].reason
    for state in ("starting", "failed"):  # of the same head each one counts
        service.cluster.drivers.clear()
        service.tick()
        assert service.state(job_id) == state


def test_a_job_whose_stop_was_asked_for_is_stopped_by_a_lost_head(service: Service):
    job_id = started(service)
    service.manager.stop(job_id)
    service.cluster.lose_head()
    service.tick()
    assert service.state(job_id) == "stopped"


def test_a_mistake_of_the_user_is_not_retried(service: Service):
    job_id = started(service, max_retries=5)
    service.say(job_id, "ended", "refused", "batch_size must be smaller")
    service.tick()
    assert (service.state(job_id), service.reason(job_id)) == (
        "failed",
        "batch_size must be smaller",
    )


def test_a_job_that_found_no_room_waits_again_and_keeps_its_retries(service: Service):
    job_id = started(service, max_retries=0)
    service.say(job_id, "ended", "no_room", "busy")
    service.tick()
    assert service.state(job_id) == "queued"
    assert "before it tries again" in service.reason(job_id)


def test_stopping_waits_for_the_driver_and_kills_it_in_the_end(tmp_path: Path):
    service = Service(tmp_path, ScriptedCluster((2, 0)), stop_grace_s=0.05)
    first, second, waiting = started(service), started(service), service.submit()
    assert service.manager.stop(waiting).state == "stopped"
    for job_id in (first, second):
        assert service.manager.stop(job_id).state == "stopping"
        assert service.manager.stop(job_id).state == "stopping"  # twice is no error
    service.say(first, "ended", "stopped", "last checkpoint: epoch_0001")
    service.tick()
    assert service.state(first) == "stopped"
    assert service.cluster.stopped == []
    time.sleep(0.06)
    service.tick()
    assert service.cluster.stopped == [f"{second}-0001"]
    service.tick()
    assert service.state(second) == "stopped"
    for done in (first, second, waiting):
        with pytest.raises(Conflict, match="has not ended"):
            service.manager.stop(done)


def test_a_job_that_was_stopped_is_not_retried(service: Service):
    job_id = started(service, max_retries=3)
    service.manager.stop(job_id)
    service.say(job_id, "ended", "failed", "a stage died")
    service.tick()
    assert service.state(job_id) == "stopped"


def test_a_stopped_job_goes_on_as_another_attempt(service: Service):
    job_id = started(service)
    with pytest.raises(Conflict, match="only a stopped or failed job"):
        service.manager.resume(job_id)
    service.manager.stop(job_id)
    service.say(job_id, "ended", "stopped")
    service.tick()
    assert service.manager.resume(job_id).state == "queued"
    service.tick()
    assert service.cluster.submitted == [f"{job_id}-0001", f"{job_id}-0002"]
    assert service.store.summary(job_id).progress is None  # of the second try nothing is known


def test_a_broken_folder_stops_no_other_job(service: Service):
    broken, good = started(service), started(service)
    service.say(broken, "running")
    (service.folder / broken / "attempts/0001.json").write_text("{")
    service.say(good, "running")
    service.tick()
    assert (service.state(broken), service.state(good)) == ("starting", "running")
    service.restart()
    assert service.store.ids() == sorted([broken, good])


def test_what_is_not_known_changes_nothing(service: Service):
    job_id = started(service)
    service.say(job_id, "running")
    service.tick()
    service.cluster.is_reachable = False
    service.cluster.drivers.clear()
    for _ in range(3):
        service.tick()
    assert service.state(job_id) == "running"
    service.say(job_id, "ended", "succeeded")
    service.tick()  # what the driver wrote to storage needs no cluster
    assert service.state(job_id) == "succeeded"


def test_of_jobs_that_come_together_the_first_in_rank_starts_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Not the one that came first while the others were on their way."""
    monkeypatch.setattr(dispatcher, "_QUIET_S", 600.0)
    monkeypatch.setattr(dispatcher, "_LONGEST_S", 600.0)
    service = Service(tmp_path / "jobs", ScriptedCluster((1, 0)))
    loop = service.manager.dispatcher
    with running(loop):
        low = service.submit(priority=1)
        high = service.submit(priority=2)
    service.tick()
    assert (service.state(low), service.state(high)) == ("queued", "starting")


def test_a_burst_without_end_holds_up_no_round(service: Service, monkeypatch: pytest.MonkeyPatch):
    """Requests keep coming, ten in each moment that would be quiet; the job starts all the same."""
    monkeypatch.setattr(dispatcher, "_LONGEST_S", 0.05)
    loop = service.manager.dispatcher
    with running(loop):
        job_id = service.submit()
        for _ in range(1500):
            loop.wake()
            time.sleep(dispatcher._QUIET_S / 10)
            if service.state(job_id) != "queued":
                break
        assert service.state(job_id) == "starting"


def test_a_refusal_of_the_cluster_is_a_failure(service: Service):
    service.cluster.refusal = "no such runtime environment"
    job_id = service.submit(max_retries=0)
    service.tick()
    assert service.state(job_id) == "failed"
    assert "no such runtime environment" in service.reason(job_id)


def test_only_what_has_ended_can_be_deleted(service: Service):
    job_id = started(service)
    (service.run(job_id) / "checkpoints").mkdir(parents=True)
    with pytest.raises(Conflict):
        service.manager.delete(job_id)
    service.say(job_id, "ended", "succeeded")
    service.tick()
    service.manager.delete(job_id)
    assert not (service.folder / job_id).exists()
    with pytest.raises(KeyError):
        service.store.job(job_id)
    service.restart()
    assert service.store.ids() == []


@pytest.mark.parametrize("when", ["before the job is gone", "with half of its files"])
def test_a_deletion_that_was_cut_short_is_finished_at_the_next_start(
    service: Service, when: str, monkeypatch: pytest.MonkeyPatch
):
    job_id, other = service.submit(), service.submit()
    service.run(job_id).mkdir()
    service.manager.stop(job_id)

    def killed(*_: Any) -> None:
        raise SystemExit

    method = "remove_file" if when == "before the job is gone" else "remove"
    monkeypatch.setattr(service.store.storage, method, killed)
    with pytest.raises(SystemExit):
        service.manager.delete(job_id)
    assert service.run(job_id).exists()
    service.restart()
    assert service.store.ids() == [other]
    assert not (service.folder / job_id).exists()
    assert list((service.folder / "deleted").iterdir()) == []


def test_a_folder_that_is_no_job_is_told_and_left_alone(
    service: Service, caplog: pytest.LogCaptureFixture
):
    job_id = service.submit()
    (service.folder / job_id / "job.json").unlink()
    service.run(job_id).mkdir()
    service.restart()
    assert service.store.ids() == []
    assert f"{job_id} has no job.json" in caplog.text
    assert service.run(job_id).exists()


def test_a_folder_that_cannot_be_read_keeps_no_other_from_being_read(service: Service):
    first, second = service.submit(), service.submit()
    (service.folder / first / "job.json").write_text("{")
    service.restart()
    assert service.store.ids() == [second]
    assert service.store.unreadable == [first]
