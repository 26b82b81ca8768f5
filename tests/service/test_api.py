"""The REST API and its client, over a real port."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.client import LaminarClient, ServiceError
from service.jobs.estimate import PlannerBusy
from service.jobs.models import Config, Estimate, Versions
from tests.service.conftest import Serve, Served
from tests.service.scripted_cluster import request
from tests.tiny import tiny_plan, write_run

LINES = [
    {"epoch": n, "train_loss": 1 / n, "test_accuracy": n / 10} for n in (1, 2, 3)
]  # of metrics.jsonl, as far as anybody here looks


def finish(served: Served, job_id: str, outcome: str = "succeeded") -> None:
    served.tick()
    served.say(job_id, "ended", outcome, "done")
    served.tick()


def write_metrics(served: Served, job_id: str, num: int) -> None:
    served.run(job_id).mkdir(exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in LINES[:num])
    fresh = served.run(job_id) / ".metrics"
    fresh.write_text(text)
    fresh.replace(served.run(job_id) / "metrics.jsonl")  # nobody sees it half written


def test_a_job_is_submitted_followed_stopped_resumed_and_deleted(
    served: Served, client: LaminarClient
):
    job = client.submit(request(name="first", priority=3, stages=2, cpus=0.5))
    assert (job.state, job.owner, job.name, job.priority) == ("queued", "local", "first", 3)
    assert job.estimate is not None
    assert job.needs.num_bundles == 2
    served.tick()
    served.say(job.id, "running")
    served.tick()
    running = client.job(job.id)
    assert (running.state, running.progress.num_batches_done) == ("running", 3)
    assert client.stop(job.id).state == "stopping"
    served.say(job.id, "ended", "stopped", "last checkpoint: epoch_0001")
    served.tick()
    assert client.job(job.id).reason == "last checkpoint: epoch_0001"
    assert client.resume(job.id).state == "queued"
    finish(served, job.id)
    states = [step.state for step in client.job(job.id).history]
    assert states == [
        *("queued", "starting", "running", "stopping", "stopped"),
        *("queued", "starting", "succeeded"),
    ]
    client.delete(job.id)
    with pytest.raises(ServiceError, match="no such job") as refused:
        client.job(job.id)
    assert refused.value.status == 404


def test_pages_hold_every_job_once_newest_first(served: Served, client: LaminarClient):
    ids = [client.submit(request()).id for _ in range(7)]
    seen: list[str] = []
    query: dict[str, Any] = {"limit": 3}
    while True:
        page = httpx.get(f"{served.url}/v1/jobs", params=query).json()
        seen += [job["id"] for job in page["jobs"]]
        if page["next_cursor"] is None:
            break
        served.submit()  # newer ones do not shift the pages
        query["cursor"] = page["next_cursor"]
    assert [job_id for job_id in seen if job_id in ids] == sorted(ids, reverse=True)
    assert len(seen) == len(set(seen)) == 7
    client.stop(ids[0])
    assert [job.id for job in client.jobs("stopped")] == [ids[0]]
    assert len(list(client.jobs())) == 9


def test_the_same_key_at_the_same_time_is_one_job(served: Served, client: LaminarClient):
    def submit(_: int) -> httpx.Response:
        body = request(name="one").model_dump(mode="json")
        return httpx.post(f"{served.url}/v1/jobs", json=body, headers={"Idempotency-Key": "k"})

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(submit, range(16)))
    assert sorted(a.status_code for a in answers) == [200] * 15 + [201]
    assert len({a.json()["id"] for a in answers}) == 1
    with pytest.raises(ServiceError, match="used before for another job") as refused:
        client.submit(request(name="two"), key="k")
    assert refused.value.status == 409


def test_what_a_state_does_not_allow_is_a_conflict(served: Served):
    def ask(method: str, path: str = "") -> int:
        answer = httpx.request(method, f"{served.url}/v1/jobs/{job_id}{path}")
        if answer.status_code == 409:
            assert answer.headers["content-type"] == "application/problem+json"
            assert f"this one is {served.state(job_id)}" in answer.json()["detail"]
        return answer.status_code

    job_id = served.submit()
    assert [ask("POST", "/resume"), ask("DELETE")] == [409, 409]
    served.tick()
    served.say(job_id, "running")
    served.tick()
    assert [ask("POST", "/resume"), ask("DELETE")] == [409, 409]
    assert ask("POST", "/stop") == 202
    assert [ask("POST", "/resume"), ask("DELETE"), ask("POST", "/stop")] == [409, 409, 202]
    served.say(job_id, "ended", "succeeded")
    served.tick()
    assert [ask("POST", "/resume"), ask("POST", "/stop")] == [409, 409]
    assert ask("DELETE") == 204
    assert [ask("POST", "/stop"), ask("POST", "/resume"), ask("DELETE")] == [404, 404, 404]


def test_a_full_queue_is_too_many_requests(serve: Serve):
    served = serve(max_queued_per_user=2)
    body = request().model_dump(mode="json")
    answers = [httpx.post(f"{served.url}/v1/jobs", json=body) for _ in range(3)]
    assert [a.status_code for a in answers] == [201, 201, 429]
    assert answers[-1].headers["retry-after"] == "60"
    assert "local has 2 queued jobs" in answers[-1].json()["detail"]
    assert len(served.store.ids()) == 2


def test_a_mistake_is_one_line_with_its_parts(client: LaminarClient):
    with pytest.raises(ServiceError) as refused:
        client.submit(request(versions=Versions(torch="0.1")))
    error = refused.value
    assert error.status == 422
    assert error.rule == "client and service must agree on versions"
    assert "torch 0.1" in str(error.got)


def test_a_busy_planner_is_asked_again(
    served: Served, client: LaminarClient, monkeypatch: pytest.MonkeyPatch
):
    """503 with Retry-After, and no job; threads that wait for it leave the others theirs."""
    may_go, plan = threading.Event(), served.manager._planner.plan

    def wait(config: Config) -> Estimate:
        may_go.wait(60)
        raise PlannerBusy("other jobs are being planned")

    monkeypatch.setattr(served.manager._planner, "plan", wait)
    body = request().model_dump(mode="json")
    with ThreadPoolExecutor(64) as pool:
        asked = [pool.submit(httpx.post, f"{served.url}/v1/{path}", json=body, timeout=120)
                 for path in ("jobs", "estimate") * 32]  # fmt: skip
        try:
            time.sleep(0.5)  # for most of them to get there
            assert httpx.get(f"{served.url}/v1/jobs", timeout=20).json()["jobs"] == []
            assert httpx.get(f"{served.url}/healthz", timeout=20).text == "ok\n"
        finally:
            may_go.set()
        answers = [future.result() for future in asked]
    assert {a.status_code for a in answers} == {503}
    assert {a.headers["retry-after"] for a in answers} == {"5"}
    assert answers[0].json()["detail"] == "other jobs are being planned; try again"
    assert served.store.ids() == []
    monkeypatch.setattr(served.manager._planner, "plan", plan)
    assert client.submit(request()).state == "queued"


def test_an_estimate_keeps_nothing(served: Served, client: LaminarClient):
    assert client.estimate(request(stages=2)).num_workers == 2
    assert served.store.ids() == []


def test_logs_are_followed_to_the_end_and_across_a_restart(served: Served, client: LaminarClient):
    job_id = served.submit()
    log = served.folder / job_id / "log.txt"
    log.write_text("one\ntwo\nthr")
    assert client.logs(job_id, tail=2) == "two\nthr"
    lines = client.follow_logs(job_id)
    assert [next(lines), next(lines)] == ["one", "two"]
    with log.open("a") as file:
        file.write("ee\n\nüber\nlast")
    assert [next(lines), next(lines), next(lines)] == ["three", "", "über"]
    finish(served, job_id)
    assert list(lines) == ["last"]


def test_a_stream_goes_on_where_it_was(served: Served):
    job_id = served.submit()
    (served.folder / job_id / "log.txt").write_text("one\ntwo\n")
    write_metrics(served, job_id, 3)
    served.manager.stop(job_id)

    def events(path: str, last: int) -> list[str]:
        headers = {"Last-Event-ID": str(last)}
        text = httpx.get(f"{served.url}/v1/jobs/{job_id}/{path}", headers=headers).text
        return [line for line in text.splitlines() if line.startswith(("data", "id"))]

    assert events("logs/events", 4) == ["data: two", "id: 8", 'data: {"state": "stopped"}']
    found = events("metrics/events", 2)
    assert [line for line in found if line.startswith("id")] == ["id: 3"]


def test_metrics_come_live_and_again_after_a_step_back(served: Served, client: LaminarClient):
    job_id = served.submit()
    write_metrics(served, job_id, 2)
    events = client.follow_metrics(job_id)
    found = [next(events) for _ in range(3)]
    assert [event.event for event in found] == ["state", "epoch", "epoch"]
    assert client.metrics(job_id) == LINES[:2]
    write_metrics(served, job_id, 1)  # a driver that went on from its first checkpoint
    time.sleep(0.2)  # which takes longer than the stream needs to see it
    served.tick()
    state = next(events)
    assert (state.event, state.json()["state"]) == ("state", "starting")
    write_metrics(served, job_id, 3)
    assert [next(events).json()["epoch"] for _ in range(2)] == [2, 3]
    finish(served, job_id)
    rest = [event.event for event in events]
    assert (set(rest), rest[-1]) == ({"state", "progress", "end"}, "end")


def test_fifty_listeners_hear_the_same(served: Served):
    job_id = served.submit()
    log = served.folder / job_id / "log.txt"
    log.write_text("".join(f"{n}\n" for n in range(500)))
    together = threading.Barrier(51)

    def listen(_: int) -> list[str]:
        with LaminarClient(served.url) as client:
            lines = client.follow_logs(job_id)
            first = next(lines)
            together.wait(30)
            return [first, *lines]

    with ThreadPoolExecutor(50) as pool:
        heard = [pool.submit(listen, n) for n in range(50)]
        together.wait(30)
        with log.open("a") as file:
            file.writelines(f"{n}\n" for n in range(500, 1000))
        served.manager.stop(job_id)
        expected = [str(n) for n in range(1000)]
        assert all(future.result() == expected for future in heard)


def test_streams_are_limited(serve: Serve):
    served = serve(max_streams=1)
    job_id = served.submit()
    with httpx.stream("GET", f"{served.url}/v1/jobs/{job_id}/logs/events") as first:
        assert first.status_code == 200
        assert httpx.get(f"{served.url}/v1/jobs/{job_id}/logs/events").status_code == 429
    served.manager.stop(job_id)


def test_checkpoints_and_files_are_fetched_as_a_run(
    served: Served, client: LaminarClient, tmp_path: Path
):
    from laminar.evaluation import evaluate_run

    job_id = served.submit()
    assert client.checkpoints(job_id) == client.artifacts(job_id) == []
    write_run(served.run(job_id), tiny_plan(3))
    (checkpoint,) = client.checkpoints(job_id)
    assert (checkpoint.name, checkpoint.epoch) == ("epoch_0002", 2)
    listed = {a.path: a.num_bytes for a in client.artifacts(job_id)}
    assert listed.keys() == {*checkpoint.files, "config.yaml"}
    client.download_run(job_id, tmp_path / "run")
    for path, size in listed.items():
        assert (tmp_path / "run" / path).stat().st_size == size
        here, there = (
            hashlib.sha256((folder / path).read_bytes()).digest()
            for folder in (tmp_path / "run", served.run(job_id))
        )
        assert here == there
    assert evaluate_run(tmp_path / "run") == evaluate_run(served.run(job_id))
    client.download_run(job_id, tmp_path / "part", "checkpoints/epoch_0002")
    assert not (tmp_path / "part/config.yaml").exists()
    with pytest.raises(ServiceError, match="nothing of that name"):
        client.download_run(job_id, tmp_path / "none", "check")


def test_probes_and_prometheus(served: Served, client: LaminarClient):
    def get(path: str) -> httpx.Response:
        return httpx.get(f"{served.url}/{path}")

    assert get("healthz").text == "ok\n"
    assert get("readyz").status_code == 503
    job_id = client.submit(request()).id
    served.tick()
    served.say(job_id, "running")
    served.tick()
    assert get("readyz").text == "ok\n"
    get("nowhere/at/all")
    text = get("metrics").text
    assert 'laminar_jobs{state="running"} 1.0' in text
    assert f'laminar_job_loss{{job="{job_id}",owner="local"}} 1.5' in text
    assert "laminar_cluster_cpus 2.0" in text
    assert 'laminar_request_seconds_count{method="POST",route="/v1/jobs",status="201"} 1.0' in text
    assert 'route="unknown",status="404"' in text
    served.cluster.is_reachable = False
    served.tick()
    assert get("readyz").json()["detail"] == "the cluster does not answer"
