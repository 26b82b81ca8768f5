"""Jobs on two nodes that share an object store and no folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.client import LaminarClient
from service.jobs.models import JobRequest
from tests.end_to_end.deployment import Deployment
from tests.end_to_end.split import SPLIT, check_split, wait
from tests.object_store import object_store


@pytest.mark.timeout(600)
def test_a_job_in_a_store_is_stopped_and_comes_out_as_if_nothing_was(
    deployed: Deployment, tmp_path: Path
):
    deployed.wait_for_nodes()
    with object_store(deployed.address) as bucket:
        storage = bucket.replace("s3://bucket", "s3://bucket/team/jobs")
        with (
            deployed.another_service(tmp_path, storage) as service,
            LaminarClient(service.url) as client,
        ):
            job_id = client.submit(JobRequest(config=SPLIT, name="split", keep=2)).id
            assert client.job(job_id).run.startswith(f"s3://bucket/team/jobs/{job_id}/run?")
            wait(client, job_id, lambda job: len(client.checkpoints(job_id)) == 2)
            client.stop(job_id)
            stopped = wait(client, job_id, lambda job: job.state == "stopped")
            before = client.metrics(job_id)

            assert service.terminate() == 0
            service.start()
            service.wait()
            assert client.job(job_id).history == stopped.history
            client.resume(job_id)
            epochs = [e.json() for e in client.follow_metrics(job_id) if e.event == "epoch"]
            done = client.wait(job_id, poll_s=0.1)
            log = client.logs(job_id, tail=10_000)
            assert done.state == "succeeded", (done.reason, log)
            assert [f"-- attempt {n}" in log for n in (1, 2, 3)] == [True, True, False]
            _, _, kept = stopped.reason.partition("last checkpoint: epoch_")
            metrics = client.metrics(job_id)
            assert metrics[: int(kept)] == before[: int(kept)]
            assert list({line["epoch"]: line for line in epochs}.values()) == metrics
            assert len(client.checkpoints(job_id)) == 2
            check_split(client, done, tmp_path / "split", deployed.num_nodes)
            client.delete(job_id)
            assert list(client.jobs()) == []
            assert service.terminate() == 0
    if deployed.why_one_node:
        pytest.skip(f"passed, but without: {deployed.why_one_node}")
