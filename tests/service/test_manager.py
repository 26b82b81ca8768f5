"""The life of jobs on real storage, with a cluster and drivers that the test plays."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from laminar.errors import ConfigError
from laminar.storage import Storage
from service.jobs import dispatcher, entry
from service.jobs.dispatcher import submission_id
from service.jobs.manager import Conflict
from service.jobs.models import AttemptReport, JobStatus, Versions
from service.jobs.searches import confined_search
from service.jobs.settings import Settings
from service.jobs.store import TooManyJobs
from service.jobs.versions import differences, versions_here
from tests.service.scripted_cluster import (
    VERSIONS,
    ScriptedCluster,
    Service,
    request,
    search_request,
)
from tests.tiny import tiny_config


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path / "jobs", ScriptedCluster((2, 0)))


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


def test_the_same_key_is_the_same_job_even_after_a_restart(service: Service):
    first = service.submit(key="k")
    assert service.submit(key="k") == first
    service.restart()
    assert service.submit(key="k") == first
    assert service.submit(owner="bob", key="k") != first
    with pytest.raises(Conflict, match=first):
        service.submit(key="k", priority=7)
    assert len(service.store.ids()) == 2


def test_a_person_has_a_place_in_the_queue_and_no_more(tmp_path: Path):
    service = Service(tmp_path, ScriptedCluster(), max_queued_per_user=2)
    first, _ = service.submit(key="k"), service.submit()
    with pytest.raises(TooManyJobs, match="ada has 2 queued jobs"):
        service.submit()
    assert service.submit(key="k") == first  # sent again, it takes no further place
    service.submit(owner="bob")


def test_what_was_taken_is_known_again_whatever_has_changed_since(tmp_path: Path):
    """Sent again after the cluster's upgrade, or after its data was moved."""
    root = tmp_path / "data"
    (root / "set").mkdir(parents=True)
    service = Service(tmp_path / "jobs", ScriptedCluster((2, 0)), data_roots=(root,))
    config = tiny_config().model_dump(mode="json") | {"data": {"name": "mnist", "root": "set"}}
    sent = request(config=config, versions=versions_here())
    job, _ = service.manager.submit(sent, "ada", "k")
    service.cluster.known_versions = versions_here().model_copy(update={"torch": "1.0"})
    service.tick()
    assert service.manager.submit(sent, "ada", "k") == (service.store.job(job.id), False)
    (root / "set").rename(root / "other")
    (root / "set").symlink_to("/etc")
    assert service.manager.submit(sent, "ada", "k")[0].id == job.id
    with pytest.raises(Conflict, match=job.id):
        service.manager.submit(sent.model_copy(update={"priority": 7}), "ada", "k")
    with pytest.raises(ConfigError, match="must agree on versions"):
        service.manager.submit(sent, "ada", "another key")


def test_versions_are_compared_with_the_cluster(service: Service):
    service.tick()
    ours = versions_here()
    service.cluster.known_versions = ours.model_copy(update={"torch": "1.0"})
    service.tick()
    with pytest.raises(ConfigError, match=r"client and cluster must agree .*torch"):
        service.manager.submit(request(versions=ours), "ada")
    service.manager.submit(request(), "ada")


def test_differences_count_what_matters():
    assert differences(VERSIONS, VERSIONS) == []
    assert differences(VERSIONS, Versions(torch="2.15.0+cpu", python="3.11.9")) == []
    assert differences(VERSIONS, Versions(torch="2.14.0")) == ["torch 2.15.0 and 2.14.0"]
    assert differences(VERSIONS, Versions(python="3.12.1")) == ["python 3.11.1 and 3.12.1"]


def test_a_folder_that_cannot_be_read_keeps_no_other_from_being_read(service: Service):
    first, second = service.submit(), service.submit()
    (service.folder / first / "job.json").write_text("{")
    service.restart()
    assert service.store.ids() == [second]
    assert service.store.unreadable == [first]


# -- the driver --------------------------------------------------------------------------------


def test_the_driver_writes_what_the_service_reads(tmp_path: Path):
    from laminar import progress as events

    reporter = entry.Reporter(tmp_path, 1)
    path = tmp_path / "attempts/0001.json"

    def told() -> AttemptReport:
        return AttemptReport.model_validate_json(path.read_bytes())

    reporter.starting()
    assert told().phase == "starting"
    figures = {"samples_per_s": 1.0, "eta_s": 2.0, "loss": 3.0, "accuracy": 0.5}
    reporter(events.Progress(1, 2, "starting", 0, 10, None, None, None, None))
    assert told().phase == "starting"
    reporter(events.Progress(1, 2, "parallel", 1, 10, **figures))
    reporter(events.Progress(1, 2, "parallel", 2, 10, **figures))  # within a second: not written
    assert (told().phase, told().progress.num_batches_done) == ("running", 1)
    reporter.ended("stopped", "asked for")
    assert (told().outcome, told().progress.num_batches_done) == ("stopped", 2)


def test_the_driver_heeds_a_stop_and_gives_way_to_a_later_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    exits: list[int] = []

    def leave(code: int) -> None:
        exits.append(code)
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(entry, "_WATCH_S", 0.0)
    status = {"state": "stopping", "at": "2026-01-01T00:00:00Z", "reason": "", "attempt": 1}
    (tmp_path / "status.json").write_text(json.dumps({"history": [status]}))
    calls: list[int] = []
    home = Storage.open(str(tmp_path))

    def give_up() -> None:
        """The driver lets go, and meanwhile the service starts another."""
        calls.append(1)
        later = json.dumps({"history": [status | {"attempt": 2}]})
        (tmp_path / "status.json").write_text(later)

    with pytest.raises(SystemExit):
        entry.watch(home, 1, give_up)
    (tmp_path / "status.json").unlink()
    with pytest.raises(SystemExit):
        entry.watch(home, 2, lambda: calls.append(2))
    assert (calls, exits) == ([1], [3, 4])


def test_a_run_directory_is_trained_by_what_its_folder_says(service: Service):
    """A configuration whose file has been moved since is refused by the driver, not read."""
    root = service.folder.parent / "data"
    root.mkdir()
    service.settings = Settings(data_roots=(root,))
    service.restart()
    config = tiny_config().model_copy(update={"data": {"name": "mnist", "root": "set"}})
    (root / "set").mkdir()
    body = config.model_dump(mode="json", warnings=False)
    job, _ = service.manager.submit(request(config=body), "ada")
    assert job.config.data.root == str(root / "set")
    (root / "set").rename(root / "other")
    (root / "set").symlink_to("/etc")
    service.tick()
    status = service.store.status(job.id)
    assert isinstance(status, JobStatus)
    spec = service.store.spec(job.id)
    with pytest.raises(ConfigError, match=r"data\.root must lead where it led"):
        entry.check(spec)


@pytest.mark.parametrize("kind", ["train", "search"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_that_leads_out_of_its_data_set_by_now_is_refused(
    service: Service, split: str, kind: str
):
    """One that is a link within it may stay one."""
    root = service.folder.parent / "data"
    for name in ("set/2026_train", "set/val", "elsewhere"):
        (root / name).mkdir(parents=True)
    (root / "set/train").symlink_to("2026_train")
    service.settings = Settings(data_roots=(root,))
    service.restart()
    data = {"name": "image_folder", "root": "set", "train_split": "train", "test_split": "val"}
    if kind == "search":
        tree = {"data": data, "search": {"num_trials": 1}}
        asked: Any = search_request(confined_search(tree, [root]))
        spec = service.store.spec(service.submit()).model_copy(update={"request": asked})
    else:
        config = tiny_config().model_dump(mode="json") | {"data": data}
        spec = service.store.spec(service.manager.submit(request(config=config), "ada")[0].id)
    entry.check(spec)
    (root / "set" / split).rename(root / "set/old")
    (root / "set" / split).symlink_to(root / "elsewhere")
    key = {"train": "train_split", "val": "test_split"}[split]
    with pytest.raises(ConfigError, match=rf"data\.{key} must be inside a folder"):
        entry.check(spec)
