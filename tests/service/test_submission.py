"""What is taken once, known again, or refused, before a job waits in the queue."""

from __future__ import annotations

from pathlib import Path

import pytest

from laminar.errors import ConfigError
from service.jobs.manager import Conflict
from service.jobs.models import Versions
from service.jobs.store import TooManyJobs
from service.jobs.versions import differences, versions_here
from tests.service.scripted_cluster import (
    VERSIONS,
    ScriptedCluster,
    Service,
    request,
)
from tests.tiny import tiny_config


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
