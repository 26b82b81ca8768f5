"""The service on a real cluster: Ray's Jobs API, drivers, stages, and a service that is killed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from laminar.checkpoint import load_tensors, read_manifest
from laminar.data import describe
from laminar.evaluation import evaluate_run
from laminar.plan import make_plan
from laminar.run_directory import RunDirectory
from service.client import LaminarClient
from service.jobs.models import ENDED, Job, JobRequest
from service.jobs.versions import versions_here
from tests.end_to_end.service_process import ServiceProcess, ray_head
from tests.tiny import differing, run_reference, tiny_config

NUM_EPOCHS = 60
CONFIG = tiny_config(
    20, epochs=NUM_EPOCHS, resources={"cpus_per_stage": 0.5, "message_timeout_s": 60}
)
TIMEOUT_S = 240.0


def wait(client: LaminarClient, job_id: str, condition: Callable[[Job], bool]) -> Job:
    """Poll until something holds of a job, or it has ended."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition(job := client.job(job_id)):
        assert job.state not in ENDED, (job.state, job.reason, client.logs(job_id))
        assert time.monotonic() < deadline, (job, client.logs(job_id))
        time.sleep(0.1)
    return job


@pytest.mark.timeout(600)
def test_a_job_is_stopped_resumed_outlives_the_service_and_comes_out_as_if_nothing_was(
    tmp_path: Path,
):
    with ray_head(tmp_path) as ray, ServiceProcess(tmp_path, ray).running() as service:
        with LaminarClient(service.url) as client:
            request = JobRequest(config=CONFIG, name="first", keep=2, versions=versions_here())
            job = client.submit(request, key="once")
            gpus = CONFIG.model_copy(
                update={"resources": CONFIG.resources.model_copy(update={"gpus_per_stage": 2.0})}
            )
            large = client.submit(JobRequest(config=gpus, priority=9))
            for event in client.follow_metrics(job.id):
                assert event.event != "end", client.logs(job.id)
                if event.event == "epoch":
                    break
            assert client.job(large.id).reason == "needs 4 GPUs, the cluster has 0"
            assert client.cluster().versions == versions_here()

            wait(client, job.id, lambda j: j.state == "running")
            client.stop(job.id)
            stopped = wait(client, job.id, lambda j: j.state == "stopped")
            _, _, kept = stopped.reason.partition("last checkpoint: epoch_")
            before = client.metrics(job.id)[: int(kept)]
            assert 0 < len(before) < NUM_EPOCHS
            client.resume(job.id)
            wait(client, job.id, lambda j: j.state == "running")

            service.kill()
            service.start()
            assert {found.id for found in client.jobs()} == {job.id, large.id}
            assert client.submit(request, key="once").id == job.id
            lines = list(client.follow_logs(job.id))
            done = client.job(job.id)
            assert (done.state, done.attempt) == ("succeeded", 2), lines
            assert [line[:12] for line in lines if line.startswith("-- ")] == [
                "-- attempt 1",
                "-- attempt 2",
            ]
            assert [step.state for step in done.history] == [
                *("queued", "starting", "running", "stopping", "stopped"),
                *("queued", "starting", "running", "succeeded"),
            ]
            metrics = client.metrics(job.id)
            assert metrics[: len(before)] == before
            assert [line["epoch"] for line in metrics] == list(range(1, NUM_EPOCHS + 1))
            newest = client.checkpoints(job.id)[-1]
            client.download_run(job.id, tmp_path / "fetched")
            client.stop(large.id)
            client.delete(large.id)
        assert service.terminate() == 0

    run = RunDirectory(tmp_path / "fetched")
    plan = make_plan(CONFIG, describe(CONFIG.data))
    saved = load_tensors(read_manifest(run.checkpoints / newest.name))
    assert differing(run_reference(plan).state(), saved) == []
    accuracy = metrics[-1]["test_accuracy"]
    assert evaluate_run(run.path)["accuracy"] == pytest.approx(accuracy)
    assert done.reason == f"test accuracy {accuracy:.4f}"
    assert run.plot_file.stat().st_size > 1000
