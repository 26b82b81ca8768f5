"""All of the cluster is lost while a job runs; `make test-outage`, for it takes two minutes."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.client import LaminarClient
from service.jobs.models import JobRequest
from tests.end_to_end.deployment import Deployment
from tests.end_to_end.jobs import SPLIT, check_whole, heads, wait

pytestmark = pytest.mark.outage


@pytest.mark.timeout(600)
def test_a_job_outlives_head_and_workers(
    deployed: Deployment, client: LaminarClient, tmp_path: Path
):
    """Lost twice, with one retry allowed: an outage is no failure of the job."""
    deployed.wait_for_nodes()
    request = JobRequest(config=SPLIT, name="split", keep=3, max_retries=1)
    job_id = client.submit(request).id
    for attempt in (1, 2):
        wait(client, job_id, lambda job: job.attempt == attempt and job.state == "running")  # noqa: B023
        before = client.metrics(job_id)
        deployed.lose_cluster()
        assert client.metrics(job_id)[: len(before)] == before
    job = client.wait(job_id, poll_s=0.1)
    assert [step.state for step in job.history] == [
        *("queued", "starting", "running") * 3,
        "succeeded",
    ]
    for step in (job.history[3], job.history[6]):
        assert "its driver is gone with the cluster's head, which is a new one" in step.reason
    assert job.attempt == 3
    assert heads(list(client.follow_logs(job_id))) == [f"-- attempt {n}" for n in (1, 2, 3)]
    check_whole(client, job, tmp_path)
