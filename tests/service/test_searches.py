"""Searches as jobs: submitted, admitted, followed, fetched; cluster and drivers are played."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from laminar.storage import Storage
from service.client import LaminarClient, ServiceError
from service.jobs.admission import fitting
from service.jobs.manager import Conflict
from service.jobs.models import Needs, NodeInfo
from service.jobs.searches import estimate_search
from service.jobs.store import JobStore
from tests.service.conftest import Served
from tests.service.ledgers import write_ledger
from tests.service.scripted_cluster import (
    SEARCH_FILE,
    Service,
    request,
    search_request,
    with_search,
)
from tests.service.test_commands import Laminar, here  # noqa: F401 - a fixture

# -- what is asked for -----------------------------------------------------------------------------


def test_a_search_from_queue_to_success(served: Served, client: LaminarClient, tmp_path: Path):
    job = client.submit(search_request(name="lr", priority=2))
    assert (job.kind, job.name, job.config, job.keep) == ("search", "lr", None, None)
    assert job.search_file == with_search(max_concurrent=1)
    assert (job.needs.num_bundles, job.needs.num_groups, job.estimate.num_trials) == (2, 1, 3)
    served.tick()
    served.say(job.id, "running")
    served.tick()
    (row,) = client.jobs("running")
    assert (row.progress, row.search_progress.num_done) == (None, 1)
    assert row.search_progress.best == {"test_accuracy": 0.75}
    assert client.stop(job.id).state == "stopping"
    served.say(job.id, "ended", "stopped", "stopped; 1 of 3 trials are done")
    served.tick()
    assert client.resume(job.id).state == "queued"
    served.tick()
    run = served.run(job.id)
    write_ledger(run)
    (run / "best.yaml").write_text("epochs: 2\n")
    served.say(job.id, "ended", "succeeded", "best of 3 trials: number 0, test_accuracy 0.75")
    served.tick()
    client.download(job.id, "best.yaml", tmp_path / "best.yaml")
    assert (tmp_path / "best.yaml").read_text() == "epochs: 2\n"
    assert [a.path for a in client.artifacts(job.id)] == ["best.yaml", "trials.jsonl"]
    client.delete(job.id)
    assert not run.exists()


def test_a_restarted_service_reads_searches_and_the_same_key_is_the_same_one(service: Service):
    first, _ = service.manager.submit(search_request(), "ada", "k")
    service.restart()
    again, is_new = service.manager.submit(search_request(), "ada", "k")
    assert (again.id, is_new) == (first.id, False)
    assert service.store.job(first.id) == first
    with pytest.raises(Conflict, match="used before for another job"):
        service.manager.submit(request(), "ada", "k")


def test_a_job_of_before_there_were_searches_is_read(service: Service):
    job_id = service.submit()
    path = service.folder / job_id / "job.json"
    tree = json.loads(path.read_text())
    for name in ("num_trials", "num_concurrent"):
        del tree["estimate"][name]
    del tree["needs"]["num_groups"]
    path.write_text(json.dumps(tree))
    store = JobStore(Storage.open(str(service.folder)))
    assert store.job(job_id) == service.store.job(job_id)


def test_needs_are_those_of_the_largest_trial_and_of_all_seeds_at_once(service: Service):
    choice = [
        {"num_stages": 1, "resources": {"cpus_per_stage": 0.5}},
        {"num_stages": 3, "resources": {"cpus_per_stage": 0.25}},
    ]
    tree = {**with_search(seeds=2, max_concurrent=2), "together": {"choice": choice}}
    del tree["resources"]
    needs, found = estimate_search(json.dumps(tree))
    assert needs == Needs(num_bundles=6, cpus=0.5, gpus=0, num_groups=2)
    assert (found.num_workers, found.cpus, found.num_concurrent) == (12, 6, 2)
    assert len(found.stage_bytes) in (1, 3)


def test_time_grows_with_the_trials_and_ends_with_the_budget():
    def seconds(**changes: Any) -> float:
        found = estimate_search(json.dumps(with_search(**changes)))[1].seconds
        assert found is not None
        return found

    one = seconds(num_trials=1)
    assert seconds(num_trials=6) == pytest.approx(6 * one)
    assert seconds(num_trials=6, max_concurrent=4) == pytest.approx(2 * one)
    assert seconds(num_trials=100, time_budget_s=7) == 7


def test_a_search_waits_for_its_trials_at_once_but_never_for_more_than_there_can_be(
    service: Service,
):
    """Four CPUs are wanted at once, of two; with another job's half there is no room for two."""
    small = service.submit(stages=1, cpus=0.5)
    service.tick()
    wide = service.submit_search(tree=with_search(max_concurrent=8, num_trials=20, seeds=1))
    service.tick()
    assert service.state(wide) == "queued"
    assert service.reason(wide) == "waits for room: needs 2 CPUs, busy with other jobs"
    service.say(small, "ended", "succeeded")
    service.tick()
    assert service.state(wide) == "starting"
    behind = service.submit(stages=1, cpus=0.5)
    service.tick()
    assert "waits for room" in service.reason(behind)


def test_a_trial_that_never_fits_says_so(service: Service):
    tree = {**SEARCH_FILE, "num_stages": {"choice": [1, 3]}, "resources": {"cpus_per_stage": 1}}
    job_id = service.submit_search(tree=tree)
    service.tick()
    assert service.reason(job_id) == "needs 3 CPUs, the cluster has 2"


def test_groups_are_as_many_as_the_empty_cluster_has_room_for():
    nodes = [NodeInfo(cpus=4, gpus=0), NodeInfo(cpus=3, gpus=0)]
    wanted = Needs(num_bundles=2, cpus=1.5, gpus=0, num_groups=9)
    assert fitting(wanted, nodes).num_groups == 2
    assert fitting(wanted.model_copy(update={"num_groups": 1}), nodes).num_groups == 1
    assert fitting(wanted.model_copy(update={"cpus": 5.0}), nodes).num_groups == 1


# -- what is told of it ----------------------------------------------------------------------------


def test_trials_are_put_together_and_come_live(served: Served, client: LaminarClient):
    job_id = served.submit_search()
    assert (client.trials(job_id).trials, client.metrics(job_id)) == ((), [])
    ledger = write_ledger(served.run(job_id))
    found = client.trials(job_id)
    assert (found.metrics, found.modes, found.num_trials, found.best) == (
        ("test_accuracy",), ("max",), 3, (0,),
    )  # fmt: skip
    assert [(t.status, t.epoch, t.values) for t in found.trials] == [
        ("finished", 2, {"test_accuracy": 0.75}),
        ("failed", 0, {}),
        ("running", 1, {"test_accuracy": None}),
    ]
    assert found.trials[0].curve == [(1, 0.5), (2, 0.75)]
    assert found.trials[1].error == "a stage died"

    lines = client.metrics(job_id)
    assert lines[-1]["metrics"]["test_accuracy"] is None  # infinite: JSON has no word for it
    events = client.follow_metrics(job_id)
    seen = [next(events) for _ in range(len(lines) + 1)]
    assert [event.event for event in seen] == ["state", *["trial"] * len(lines)]
    assert [event.json() for event in seen[1:]] == lines
    ledger.note("cc", {"optimizer.lr": 0.09}, "stopped")
    last = next(events)
    assert (last.json()["status"], last.id) == ("stopped", str(len(lines) + 1))
    served.tick()
    served.say(job_id, "running")
    served.tick()
    served.say(job_id, "ended", "stopped")
    served.tick()
    rest = list(events)
    assert {event.event for event in rest} == {"state", "search", "end"}
    from_there = client.follow_metrics(job_id, start=len(lines))
    assert [event.event for event in from_there if event.event == "trial"] == ["trial"]


def test_a_training_has_no_trials(served: Served, client: LaminarClient):
    with pytest.raises(ServiceError, match="a training and has no trials") as refused:
        client.trials(served.submit())
    assert refused.value.status == 404


def test_prometheus_counts_trials(served: Served):
    job_id = served.submit_search()
    served.tick()
    served.say(job_id, "running")
    served.tick()
    text = httpx.get(f"{served.url}/metrics").text
    assert f'laminar_job_trials_done{{job="{job_id}",owner="ada"}} 1.0' in text
    assert f'laminar_job_trials{{job="{job_id}",owner="ada"}} 3.0' in text


# -- the command line ------------------------------------------------------------------------------


def test_submit_knows_a_search_by_its_section(here: Served, laminar: Laminar):  # noqa: F811
    Path("search.yaml").write_text(yaml.safe_dump(SEARCH_FILE))
    code, out, err = laminar("submit", "search.yaml", "--set", "epochs=3", "--name", "lr")
    assert (code, err) == (0, "")
    job_id, estimate = out.splitlines()
    assert estimate.startswith("estimate: 3 trials, 1 at once, 2 workers, ")
    assert here.store.job(job_id).search_file == {**with_search(max_concurrent=1), "epochs": 3}
    here.tick()
    here.say(job_id, "running")
    here.tick()
    out = laminar("list")[1]
    assert [w for w in ("search", "trials 1/3, test_accuracy 0.75") if w not in out] == []
    out = laminar("status", job_id)[1]
    assert "a search of local" in out
    assert "1/3 trials done, 1 under way; best: trial 0, test_accuracy 0.75" in out
    write_ledger(here.run(job_id))
    here.say(job_id, "ended", "succeeded", "best of 3 trials")
    here.tick()
    code, _, err = laminar("submit", "search.yaml", "--wait", "--key", "other", "--dry-run")
    assert (code, err) == (0, "")
    code, _, err = laminar("submit", "search.yaml", "--keep", 2)
    assert (code, "--keep must go with a training" in err) == (2, True)
    code, _, err = laminar("submit", "search.yaml", "--set", "search.num_trials=0")
    assert (code, "`search.num_trials` must be greater than or equal to 1" in err) == (2, True)
    Path("dated.yaml").write_text("epochs: 2001-01-01\nsearch: {}\n")
    code, _, err = laminar("submit", "dated.yaml")
    assert (code, "put quotes around a date" in err) == (2, True)
    assert here.store.ids() == [job_id]
