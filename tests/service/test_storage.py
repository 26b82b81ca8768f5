"""Storage on every kind of file system: a folder, the same by URI, and what is no folder at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from laminar.errors import ConfigError
from service.api.files import list_artifacts, list_checkpoints, open_artifact
from service.api.server import ServeOptions, serve
from service.api.streams import read_metrics, tail_log
from service.jobs.models import AttemptReport, now
from service.jobs.storage import Storage
from service.jobs.store import JobStore, attempt_file
from tests.service.scripted_cluster import ScriptedCluster, Service


@pytest.fixture(params=["folder", "file", "mock"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """`mock://` is pyarrow's file system in memory, which knows no local path, as S3 does not."""
    roots = {"folder": str(tmp_path), "file": f"file://{tmp_path}", "mock": "mock:///bucket/jobs"}
    found = Storage.open(roots[request.param])
    assert found.is_local == (request.param != "mock")
    return found


def test_what_is_written_is_read_listed_and_removed(storage: Storage):
    assert storage.read("a/b") is None
    assert storage.size("a/b") is None
    assert storage.names() == storage.names("a") == storage.files("a") == []
    storage.write("a/b", b"0123456789")
    storage.write("a/c/d", b"")
    assert storage.read("a/b") == b"0123456789"
    assert storage.read_from("a/b", 4, 3) == b"456"
    assert storage.read_from("a/b", 8, 30) == b"89"
    assert storage.read_from("a/b", 10, None) == b""
    storage.write("a/b", b"anew")
    assert (storage.read("a/b"), storage.size("a/b"), storage.size("a")) == (b"anew", 4, None)
    assert storage.names() == ["a"]
    assert storage.names("a") == ["b", "c"]
    assert storage.files("a") == [("b", 4), ("c/d", 0)]
    storage.remove_file("a/b")
    assert storage.read("a/b") is None
    storage.remove("a")
    assert storage.names() == []


def test_a_service_finds_all_about_its_jobs_again(storage: Storage, tmp_path: Path):
    maker = Service(tmp_path / "elsewhere", ScriptedCluster((2, 0)))
    spec = maker.store.spec(maker.submit(name="kept"))
    store = JobStore(storage)
    store.add(spec)
    moved = store.change(spec.id, {"queued"}, lambda s: s.moved("starting", "room", attempt=1))
    assert moved is not None
    report = AttemptReport(phase="starting", at=now())
    for name, content in {
        attempt_file(1): report.model_dump_json(),
        "log.txt": "one\ntwo\nthree\n",
        "run/metrics.jsonl": '{"epoch": 1}\n{"epoch": 2}\n',
        "run/checkpoints/epoch_0002/manifest.json": '{"epoch": 2, "parts": []}',
    }.items():
        storage.write(f"{spec.id}/{name}", content.encode())

    again = JobStore(storage)
    assert again.job(spec.id) == store.job(spec.id)
    assert again.status(spec.id).history == moved.history
    assert again.refresh(spec.id) == report
    assert tail_log(again, spec.id, 2) == "two\nthree\n"
    assert [line["epoch"] for line in read_metrics(again, spec.id)] == [1, 2]
    assert [found.name for found in list_checkpoints(storage, spec.id)] == ["epoch_0002"]
    paths = [found.path for found in list_artifacts(storage, spec.id)]
    assert paths == ["checkpoints/epoch_0002/manifest.json", "metrics.jsonl"]
    opened = open_artifact(storage, spec.id, "metrics.jsonl")
    assert opened is not None
    with opened[0] as file:
        assert len(file.read()) == opened[1] == 26
    again.remove(spec.id)
    assert JobStore(storage).ids() == []


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("mock:///bucket/jobs", "mount it"),  # stages could not write their checkpoints there
        ("nothing://known/jobs", "a URI that pyarrow knows"),
        ("/proc/nobody/writes/here", "can be written to"),
    ],
)
def test_storage_that_no_job_could_train_on_is_refused(where: str, said: str):
    with pytest.raises(ConfigError, match=said):
        serve(ServeOptions(storage=where, ray_address="http://127.0.0.1:9"))
