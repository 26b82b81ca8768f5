"""The service on a cluster of two nodes: Ray's Jobs API, drivers, stages, a service that dies.

The cluster is the one that the scripts in `docker/` start, each node in a network namespace of its
own; `deployment.py` has it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from laminar.checkpoint import list_checkpoints, load_tensors, read_manifest
from laminar.config import Config
from laminar.config_file import load_config
from laminar.data import describe
from laminar.evaluation import evaluate_run
from laminar.plan import make_plan
from laminar.run_directory import RunDirectory
from service.client import LaminarClient
from service.jobs.models import ENDED, Job, JobRequest, SearchRequest
from service.jobs.versions import versions_here
from tests.end_to_end.deployment import Deployment
from tests.tiny import differing, run_reference, tiny_config

NUM_EPOCHS = {"split": 24, "long": 16, "short": 2}
TIMEOUT_S = 240.0


def config(name: str, num_stages: int, cpus_per_stage: float) -> Config:
    return tiny_config(
        15,
        epochs=NUM_EPOCHS[name],
        num_stages=num_stages,
        resources={"cpus_per_stage": cpus_per_stage, "message_timeout_s": 60},
    )


CONFIGS = {
    # Of two nodes with a CPU each: neither has room for both stages, so they are apart.
    "split": config("split", 2, 0.6),
    "long": config("long", 1, 0.4),
    "short": config("short", 1, 0.4),
}
GPUS = CONFIGS["split"].model_copy(
    update={"resources": CONFIGS["split"].resources.model_copy(update={"gpus_per_stage": 2.0})}
)


def wait(client: LaminarClient, job_id: str, condition: Callable[[Job], bool]) -> Job:
    """Poll until something holds of a job, or it has ended."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition(job := client.job(job_id)):
        assert job.state not in ENDED, (job.state, job.reason, client.logs(job_id))
        assert time.monotonic() < deadline, (job, client.logs(job_id))
        time.sleep(0.1)
    return job


@contextmanager
def followed(url: str, job_id: str) -> Iterator[Future[list[str]]]:
    """Follow a job's log from the side, to the job's end."""

    def follow() -> list[str]:
        with LaminarClient(url) as client:
            return list(client.follow_logs(job_id))

    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(follow)


@pytest.mark.timeout(600)
def test_three_jobs_outlive_the_service_and_the_stopped_one_comes_out_as_if_nothing_was(
    deployed: Deployment, tmp_path: Path
):
    deployed.wait_for_nodes()
    service = deployed.service
    with LaminarClient(service.url) as client:
        requests = {
            name: JobRequest(config=found, name=name, keep=2, versions=versions_here())
            for name, found in CONFIGS.items()
        }

        def submit(name: str) -> str:
            return client.submit(requests[name], key=name).id

        ids = {name: submit(name) for name in ("split", "short")}
        split = ids["split"]
        large = client.submit(JobRequest(config=GPUS, priority=9)).id
        wait(client, split, lambda job: job.state == "running")
        # Not before, so that it is under way when the service is killed.
        long = ids["long"] = submit("long")
        with followed(service.url, long) as lines_of_long:
            for event in client.follow_metrics(split):
                assert event.event != "end", client.logs(split)
                if event.event == "epoch":
                    break
            assert client.job(large).reason == "needs 4 GPUs, the cluster has 0"
            assert client.cluster().versions == versions_here()
            assert len(client.cluster().nodes) == deployed.num_nodes
            client.stop(split)
            stopped = wait(client, split, lambda job: job.state == "stopped")
            _, _, kept = stopped.reason.partition("last checkpoint: epoch_")
            before = client.metrics(split)[: int(kept)]
            assert 0 < len(before) < NUM_EPOCHS["split"]

            wait(client, long, lambda job: job.state == "running")
            service.kill()
            service.start()
            service.wait()
            assert {*ids.values(), large} <= {job.id for job in client.jobs()}
            assert client.job(split).history == stopped.history
            assert {name: submit(name) for name in requests} == ids

            client.resume(split)
            lines = list(client.follow_logs(split))
            done = {name: client.wait(job_id, poll_s=0.1) for name, job_id in ids.items()}
        assert {name: job.state for name, job in done.items()} == dict.fromkeys(ids, "succeeded")
        assert {n: job.attempt for n, job in done.items()} == {"split": 2, "long": 1, "short": 1}
        assert heads(lines) == ["-- attempt 1", "-- attempt 2"]
        # Nothing was lost between the two services, nothing came twice.
        assert "\n".join(lines_of_long.result()) + "\n" == client.logs(long, tail=10_000)
        assert [step.state for step in done["split"].history] == [
            *("queued", "starting", "running", "stopping", "stopped"),
            *("queued", "starting", "running", "succeeded"),
        ]
        for name, job_id in ids.items():
            epochs = [line["epoch"] for line in client.metrics(job_id)]
            assert epochs == list(range(1, NUM_EPOCHS[name] + 1))
        metrics = client.metrics(split)
        assert metrics[: len(before)] == before
        newest = client.checkpoints(split)[-1]
        client.download_run(split, tmp_path / "fetched")
        client.stop(large)
        client.delete(large)

    run = RunDirectory(tmp_path / "fetched")
    plan = make_plan(CONFIGS["split"], describe(CONFIGS["split"].data))
    saved = load_tensors(read_manifest(run.checkpoints / newest.name))
    assert differing(run_reference(plan).state(), saved) == []
    accuracy = metrics[-1]["test_accuracy"]
    assert evaluate_run(run.path)["accuracy"] == pytest.approx(accuracy)
    assert done["split"].reason == f"test accuracy {accuracy:.4f}"
    assert run.plot_file.stat().st_size > 1000
    stages = json.loads(run.environment_file.read_text())["stages"]
    assert len({stage["node"] for stage in stages}) == deployed.num_nodes
    if deployed.why_one_node:
        pytest.skip(f"passed, but on one node: {deployed.why_one_node}")


def heads(lines: list[str]) -> list[str]:
    return [line[:12] for line in lines if line.startswith("-- ")]


@pytest.mark.timeout(300)
def test_a_search_ends_with_a_configuration_that_trains_to_the_same(
    deployed: Deployment, tmp_path: Path
):
    """Two trials, one after the other, in one driver; the best of them is fetched."""
    tree = {
        **config("short", 1, 0.4).model_dump(mode="json", exclude_defaults=True),
        "optimizer": {"lr": {"choice": [1e-6, 0.05]}},
        "search": {"num_trials": 2, "algorithm": "grid"},
    }
    with LaminarClient(deployed.service.url) as client:
        request = SearchRequest(search_file=tree, name="search", versions=versions_here())
        job = client.submit(request)
        lines = [e.json() for e in client.follow_metrics(job.id) if e.event == "trial"]
        done = client.job(job.id)
        assert done.state == "succeeded", (done.reason, client.logs(job.id))
        assert lines == client.metrics(job.id)
        found = client.trials(job.id)
        assert [trial.status for trial in found.trials] == ["finished"] * 2
        best = found.trials[found.best[0]]
        assert done.search_progress.best == best.values
        client.download(job.id, "best.yaml", tmp_path / "best.yaml")
        client.download_run(job.id, tmp_path / "fetched", f"{best.id}/runs/seed_0")
        assert "report.html" in {file.path for file in client.artifacts(job.id)}
        client.delete(job.id)
    chosen = load_config(tmp_path / "best.yaml")
    assert chosen.optimizer.lr == best.params["optimizer.lr"]
    run = RunDirectory(tmp_path / "fetched" / best.id / "runs" / "seed_0")
    saved = load_tensors(read_manifest(list_checkpoints(run.checkpoints)[-1]))
    reference = run_reference(make_plan(chosen, describe(chosen.data)))
    assert differing(reference.state(), saved) == []
