"""Jobs on the cluster of two nodes, waited for and held against unbroken runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from laminar.checkpoint import load_tensors, read_manifest
from laminar.config import Config
from laminar.data import describe
from laminar.planning import make_plan
from laminar.run_directory import RunDirectory
from service.client import LaminarClient
from service.jobs.models import ENDED, Job
from tests.tiny import differing, run_reference, tiny_config

NUM_EPOCHS = 36
"""Of the job that is stopped or lost: a few before that, however quick the machine."""
TIMEOUT_S = 240.0


def config(num_epochs: int, num_stages: int, cpus_per_stage: float) -> Config:
    return tiny_config(
        15,
        epochs=num_epochs,
        num_stages=num_stages,
        resources={"cpus_per_stage": cpus_per_stage, "message_timeout_s": 60},
    )


# Of two nodes with a CPU each: neither has room for both stages, so they are apart, and wherever
# the other jobs are they leave room for them.
SPLIT = config(NUM_EPOCHS, 2, 0.6)


def wait(client: LaminarClient, job_id: str, condition: Callable[[Job], bool]) -> Job:
    """Poll until something holds of a job, or it has ended."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition(job := client.job(job_id)):
        assert job.state not in ENDED, (job.state, job.reason, client.logs(job_id))
        assert time.monotonic() < deadline, (job, client.logs(job_id))
        time.sleep(0.1)
    return job


def heads(lines: list[str]) -> list[str]:
    return [line[:12] for line in lines if line.startswith("-- ")]


def check_whole(client: LaminarClient, job: Job, folder: Path) -> RunDirectory:
    """See that a job of `SPLIT` ended as an unbroken run does; return its run, downloaded."""
    metrics = client.metrics(job.id)
    assert [line["epoch"] for line in metrics] == list(range(1, NUM_EPOCHS + 1))
    newest = client.checkpoints(job.id)[-1]
    client.download_run(job.id, folder)
    run = RunDirectory(folder)
    saved = load_tensors(read_manifest(run.checkpoints / newest.name))
    reference = run_reference(make_plan(SPLIT, describe(SPLIT.data)))
    assert differing(reference.state(), saved) == []
    return run
