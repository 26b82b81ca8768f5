"""The service on a cluster of two nodes: Ray's Jobs API, drivers, stages, and what dies.

The cluster is the one that the scripts in `docker/` start, each node in a network namespace of its
own; `deployment.py` has it. It has two services, one whose jobs are in a folder, and one whose jobs
are in an object store, the only thing that the nodes share then. The first lets in who has its
token; the second sends its own Laminar along with jobs. A job of that one is submitted, watched and
stopped on the page, in a real browser; `users.py` has that walk.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from laminar.checkpoint import list_checkpoints, load_tensors, read_manifest
from laminar.config_file import load_config
from laminar.data import describe
from laminar.evaluation import evaluate_run
from laminar.planning import make_plan
from laminar.run_directory import RunDirectory
from laminar.storage import Storage
from service.client import LaminarClient, ServiceError
from service.jobs.cluster import PACKAGES
from service.jobs.models import Job, JobRequest, SearchRequest
from service.jobs.store import RUN
from service.jobs.versions import versions_here
from tests.end_to_end.deployment import Deployment
from tests.end_to_end.jobs import NUM_EPOCHS, SPLIT, check_whole, config, heads, wait
from tests.end_to_end.processes import REPOSITORY, ServiceProcess
from tests.end_to_end.users import BrowserUser, RestUser
from tests.object_store import ENVIRONMENT, object_store
from tests.tiny import differing, run_reference

WRONG_TOKEN = "lam_that_nobody_ever_had"
STAGE = "stage_000.safetensors"
KEEP = 3

GPUS = SPLIT.model_copy(
    update={"resources": SPLIT.resources.model_copy(update={"gpus_per_stage": 2.0})}
)
SHORT = config(2, 1, 0.2)
SEARCH = {
    **SHORT.model_dump(mode="json", exclude_defaults=True),
    "optimizer": {"lr": {"choice": [1e-6, 0.05]}},
    # One trial after the other, in one driver.
    "search": {"num_trials": 2, "algorithm": "grid"},
}
REQUESTS = {
    "short": JobRequest(config=SHORT, name="short", keep=2, versions=versions_here()),
    "search": SearchRequest(search_file=SEARCH, name="search", versions=versions_here()),
}


@contextmanager
def followed(service: ServiceProcess, job_id: str) -> Iterator[Future[list[str]]]:
    """Follow a job's log from the side, to the job's end."""

    def follow() -> list[str]:
        with LaminarClient(service.url, service.token) as client:
            return list(client.follow_logs(job_id))

    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(follow)


def copy_laminar(folder: Path) -> None:
    """Copy our packages; in the copy driver and stages say where their code is."""
    for name in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, folder / name, ignore=ignored)
    for name, before, after in (
        ("service/jobs/entry.py", "-- attempt {attempt}, ", "-- attempt {attempt}, {__file__}, "),
        (
            "actors/stage_worker.py",
            '"device": str(device),',
            '"device": str(device), "code": __file__,',
        ),
    ):
        text = (folder / name).read_text()
        assert text.count(before) == 1, name
        (folder / name).write_text(text.replace(before, after))


@pytest.fixture
def store(deployed: Deployment, monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    """A folder of an object store, which all nodes reach."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with object_store(deployed.address) as bucket:
        yield Storage.open(Storage.open(bucket).uri("team/jobs"))


@pytest.fixture
def second(deployed: Deployment, store: Storage, tmp_path: Path) -> Iterator[ServiceProcess]:
    """The service of that store, whose Laminar the nodes do not have."""
    code = tmp_path / "code"
    copy_laminar(code)
    with deployed.another_service(tmp_path, store.uri(), "--ship-code", code=code) as found:
        yield found
        assert found.terminate() == 0


@pytest.fixture
def far(second: ServiceProcess) -> Iterator[LaminarClient]:
    """Its client."""
    with LaminarClient(second.url) as found:
        yield found


@pytest.fixture
def user(
    request: pytest.FixtureRequest, far: LaminarClient, tmp_path: Path
) -> RestUser | BrowserUser:
    """In a browser, where there is one."""
    try:
        page = request.getfixturevalue("chromium").new_page()
    except pytest.skip.Exception as error:
        return RestUser(far, tmp_path, why_no_browser=str(error))
    return BrowserUser(page, far)


@pytest.mark.timeout(600)
def test_jobs_outlive_the_service_and_the_stopped_one_comes_out_as_if_nothing_was(
    deployed: Deployment,
    client: LaminarClient,
    second: ServiceProcess,
    far: LaminarClient,
    store: Storage,
    user: RestUser | BrowserUser,
    tmp_path: Path,
):
    deployed.wait_for_nodes()

    def submit(name: str) -> str:
        return client.submit(REQUESTS[name], key=name).id

    split = user.submit(JobRequest(config=SPLIT, name="split", keep=KEEP))
    large = client.submit(JobRequest(config=GPUS, priority=9)).id
    wait(far, split, lambda job: job.state == "running")
    # Not before, so that the search is under way when the service is killed.
    ids = {name: submit(name) for name in REQUESTS}
    with followed(deployed.service, ids["search"]) as lines_of_search:
        user.watch()
        assert client.job(large).reason == "needs 4 GPUs, the cluster has 0"
        assert client.cluster().versions == versions_here()
        assert len(client.cluster().nodes) == deployed.num_nodes
        stopped, before = stop_and_fetch(user, far, store, split)
        wait(client, ids["search"], lambda job: job.state == "running")
        kill_and_start((deployed.service, second))
        assert {*ids.values(), large} <= {job.id for job in client.jobs()}
        assert [job.id for job in far.jobs()] == [split]
        assert far.job(split).history == stopped.history
        assert {name: submit(name) for name in REQUESTS} == ids

        far.resume(split)
        epochs = [e.json() for e in far.follow_metrics(split) if e.event == "epoch"]
        lines = list(far.follow_logs(split))
        done = {name: client.wait(job_id, poll_s=0.1) for name, job_id in ids.items()}
        done["split"] = far.wait(split, poll_s=0.1)
    assert {name: job.state for name, job in done.items()} == dict.fromkeys(done, "succeeded")
    assert {n: job.attempt for n, job in done.items()} == {"split": 2, "short": 1, "search": 1}
    assert heads(lines) == ["-- attempt 1", "-- attempt 2"]
    assert all("/py_modules_files/" in line for line in lines if line.startswith("-- "))
    # Nothing was lost between the two services, nothing came twice.
    assert "\n".join(lines_of_search.result()) + "\n" == client.logs(ids["search"], tail=10_000)
    assert [line["epoch"] for line in client.metrics(ids["short"])] == [1, 2]
    assert far.metrics(split)[: len(before)] == before
    # By number, as an epoch that the checkpoint did not hold is told of twice.
    assert list({line["epoch"]: line for line in epochs}.values()) == far.metrics(split)
    check_secrets(deployed, tmp_path, store)
    client.stop(large)
    client.delete(large)
    num_addresses = 1 if deployed.why_one_machine else deployed.num_nodes
    check_split(far, done["split"], tmp_path / "split", num_addresses)
    check_search(client, done["search"], tmp_path / "search")
    if deployed.why_one_machine or user.why_no_browser:
        pytest.skip(f"passed, but without: {deployed.why_one_machine} {user.why_no_browser}")


def stop_and_fetch(
    user: RestUser | BrowserUser, far: LaminarClient, store: Storage, job_id: str
) -> tuple[Job, list[dict[str, Any]]]:
    """Stop the user's job; return it and the metrics of the epochs that its checkpoint holds."""
    user.stop()
    stopped = wait(far, job_id, lambda job: job.state == "stopped")
    _, _, kept = stopped.reason.partition("last checkpoint: epoch_")
    before = far.metrics(job_id)[: int(kept)]
    assert 0 < len(before) < NUM_EPOCHS
    fetched = user.fetch_weights()
    kept = [f"{RUN}/checkpoints/{c.name}/{STAGE}" for c in far.checkpoints(job_id)]
    there = [name for name, _ in store.files(job_id) if name.endswith(STAGE)]
    # The stop may come after a new one's parts, before its manifest is there or the oldest pruned.
    assert kept
    assert set(kept) <= set(there)
    assert len(there) <= KEEP + 1
    assert fetched in [store.read(f"{job_id}/{name}") for name in kept]
    return stopped, before


def kill_and_start(services: Sequence[ServiceProcess]) -> None:
    for service in services:
        service.kill()
        service.start()
    for service in services:
        service.wait()


def check_secrets(deployed: Deployment, folder: Path, store: Storage) -> None:
    """Search all that services, nodes, drivers and stages have written for what nobody may see.

    Args:
        deployed: With the folders of the first service and of Ray.
        folder: Of the second service.
        store: Of its jobs.
    """
    token_file = deployed.service.token_file
    ray_token = Path(deployed.environment["RAY_AUTH_TOKEN_PATH"])
    assert token_file is not None
    with (
        pytest.raises(ServiceError) as refused,
        LaminarClient(deployed.service.url, WRONG_TOKEN) as stranger,
    ):
        stranger.cluster()
    assert refused.value.status == 401
    secrets = [
        *(file.read_bytes().strip() for file in (token_file, ray_token)),
        WRONG_TOKEN.encode(),
        ENVIRONMENT["AWS_SECRET_ACCESS_KEY"].encode(),
    ]
    assert min(map(len, secrets)) > 20
    found = {name: store.read(name) or b"" for name, _ in store.files("")}
    for path in (p for f in (folder, token_file.parent, deployed.ray_files) for p in f.rglob("*")):
        if path.is_file() and path not in (token_file, ray_token):
            found[str(path)] = path.read_bytes()
    names = {name.rpartition("/")[2] for name in found}
    assert names >= {"service.log", "head.log", "worker.log", "log.txt", "environment.json"}
    assert names >= {"gcs_server.out", "raylet.out", "dashboard.log"}
    told = [name for name, content in found.items() if any(s in content for s in secrets)]
    assert told == []


def check_split(client: LaminarClient, job: Job, folder: Path, num_addresses: int) -> None:
    """Compare a job that was stopped and resumed with one that was not; use its checkpoint."""
    assert [step.state for step in job.history] == [
        *("queued", "starting", "running", "stopping", "stopped"),
        *("queued", "starting", "running", "succeeded"),
    ]
    run = check_whole(client, job, folder)
    accuracy = client.metrics(job.id)[-1]["test_accuracy"]
    assert evaluate_run(run.path)["accuracy"] == pytest.approx(accuracy)
    assert job.reason == f"test accuracy {accuracy:.4f}"
    assert run.plot_file.stat().st_size > 1000
    stages = json.loads(run.environment_file.read_text())["stages"]
    assert len({stage["node"] for stage in stages}) == num_addresses
    assert all("/py_modules_files/" in stage["code"] for stage in stages)


def check_search(client: LaminarClient, job: Job, folder: Path) -> None:
    """See that the best trial of a search is what its configuration trains to; delete it."""
    lines = [e.json() for e in client.follow_metrics(job.id) if e.event == "trial"]
    assert lines == client.metrics(job.id)
    found = client.trials(job.id)
    assert [trial.status for trial in found.trials] == ["finished"] * 2
    best = found.trials[found.best[0]]
    assert job.search_progress is not None
    assert job.search_progress.best == best.values
    client.download(job.id, "best.yaml", folder / "best.yaml")
    client.download_run(job.id, folder, f"{best.id}/runs/seed_0")
    assert "report.html" in {file.path for file in client.artifacts(job.id)}
    client.delete(job.id)
    chosen = load_config(folder / "best.yaml")
    assert chosen.optimizer.lr == best.params["optimizer.lr"]
    run = RunDirectory(folder / best.id / "runs" / "seed_0")
    saved = load_tensors(read_manifest(list_checkpoints(run.checkpoints)[-1]))
    reference = run_reference(make_plan(chosen, describe(chosen.data)))
    assert differing(reference.state(), saved) == []
