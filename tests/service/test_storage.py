"""Storage on every kind of file system: a folder, the same by URI, and what is no folder at all."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from laminar import mirror as mirrors
from laminar.checkpoint import (
    find_checkpoint,
    load_parts,
    load_tensors,
    prune,
    publish,
    read_manifest,
    write_part,
)
from laminar.errors import CheckpointError, ConfigError
from laminar.mirror import Copier, Mirror
from laminar.run_directory import RunDirectory
from laminar.storage import Storage
from service.api.files import list_artifacts, list_checkpoints, open_artifact
from service.api.server import ServeOptions, serve
from service.api.streams import read_metrics, tail_log
from service.jobs import entry
from service.jobs.models import AttemptReport, now
from service.jobs.only_service import LEASE_S, leased
from service.jobs.store import JobStore, attempt_file
from tests.object_store import ENVIRONMENT, object_store
from tests.service.scripted_cluster import ScriptedCluster, Service, search_request
from tests.tiny import differing, run_reference, tiny_plan


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, object_store() as uri:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        yield uri


@pytest.fixture(params=["folder", "file", "mock", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, bucket: str) -> Storage:
    """`mock://` is pyarrow's file system in memory, which has folders and knows no local path."""
    roots = {"folder": str(tmp_path), "file": f"file://{tmp_path}", "mock": "mock:///bucket/jobs"}
    of_store = Storage.open(bucket).uri(tmp_path.name)
    found = Storage.open(roots.get(request.param, of_store))
    assert found.is_local == (request.param in ("folder", "file"))
    return found


@pytest.fixture
def store(tmp_path: Path, bucket: str) -> Storage:
    return Storage.open(Storage.open(bucket).uri(f"{tmp_path.name}/job"))


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
    storage.remove_file("a/b")
    storage.remove("a")
    assert storage.files("") == []


def test_files_of_any_size_go_to_storage_and_come_back(storage: Storage, tmp_path: Path):
    content = os.urandom(9_000_000)
    (tmp_path / "large").write_bytes(content)
    storage.upload(tmp_path / "large", "some/where")
    storage.download("some/where", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content
    with pytest.raises(FileNotFoundError):
        storage.download("nowhere", tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("where", ["{folder}", "{folder}/odd?name", "file://{folder}", "{bucket}"])
def test_a_folder_within_is_opened_by_its_uri(where: str, tmp_path: Path, bucket: str):
    storage = Storage.open(where.format(folder=tmp_path, bucket=bucket))
    storage.write("a/b/c", b"1")
    assert Storage.open(storage.uri("a/b")).read("c") == b"1"
    assert Storage.open(Storage.open(storage.uri("a")).uri("b")).names() == ["c"]


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
    assert again.remove(spec.id, {"starting"})
    assert JobStore(storage).ids() == []


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("nothing://known/jobs", "a URI that pyarrow knows"),
        ("/proc/nobody/writes/here", "can be written to"),
        ("s3://none/jobs{query}", "there is no bucket none"),
        ("s3://name:word@bucket/jobs{query}", "no secret .* a password.*AWS_ACCESS_KEY_ID"),
        ("s3://name:wo/rd+word@bucket/jobs{query}", "no secret .* a password"),
        ("s3://bucket/jobs{query}&secret_key=word", "no secret .* secret_key"),
        ("abfs://c@account.example/p?sig=word", "no secret .* sig"),
        ("s3://[bad/x", "a URI that pyarrow knows"),
    ],
)
def test_storage_that_no_job_could_train_on_is_refused(where: str, said: str, bucket: str):
    where = where.format(query="?" + bucket.partition("?")[2])
    with pytest.raises(ConfigError, match=said) as refusal:
        serve(ServeOptions(storage=where, ray_address="http://127.0.0.1:9"))
    assert "word" not in str(refusal.value).replace("password", "")


# -- one service to a store ------------------------------------------------------------------------


def test_a_second_service_is_kept_away_and_one_that_was_killed_is_followed(store: Storage):
    with leased(store, 0.4), pytest.raises(ConfigError, match="only one service"), leased(store):
        pass
    started = time.monotonic()
    with leased(store):  # at once: the first has ended properly
        assert time.monotonic() - started < LEASE_S
    store.write("service.lease", b"killed 7\n")
    with leased(store, 0.4):
        pass
    assert store.files("") == []


def test_a_service_whose_storage_was_taken_ends(store: Storage):
    lost = threading.Event()
    with leased(store, 0.4, lost.set):
        store.write("service.lease", b"another 1\n")
        assert lost.wait(10)
    assert store.read("service.lease") == b"another 1\n"


def test_a_service_that_cannot_renew_ends(store: Storage, monkeypatch: pytest.MonkeyPatch):
    """Whoever waits may have taken its storage meanwhile."""
    lost = threading.Event()
    with leased(store, 0.4, lost.set):
        monkeypatch.setattr(Storage, "read", lambda *_: (_ for _ in ()).throw(OSError("away")))
        assert lost.wait(10)


# -- a run directory in a store --------------------------------------------------------------------


@pytest.fixture
def mirror(store: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mirror:
    found = Mirror(tmp_path / "work", store.uri())
    found.folder.mkdir()
    for name, value in found.environment().items():
        monkeypatch.setenv(name, value)
    return found


def copier(mirror: Mirror) -> Copier:
    def is_fetched(name: str) -> bool:
        return not name.startswith("attempts/")

    return Copier(mirror, fetched=is_fetched, not_written=("job.json",))


def test_what_is_written_in_the_folder_is_in_the_store(mirror: Mirror, store: Storage):
    store.write("job.json", b"asked for")
    store.write("log.txt", b"first try\n")
    store.write("attempts/0001.json", b"first")
    one = copier(mirror)
    one.fetch()
    assert {p.name for p in mirror.folder.iterdir()} == {"job.json", "log.txt"}
    (mirror.folder / "job.json").write_text("never written")
    with (mirror.folder / "log.txt").open("a") as log:
        log.write("second try\n")
    (mirror.folder / "run").mkdir()
    (mirror.folder / "run" / ".metrics").touch()
    (mirror.folder / "run" / "link").symlink_to("/etc/passwd")
    (mirror.folder / "run" / "metrics.jsonl").write_text("1\n")
    one.copy()
    assert store.read("log.txt") == b"first try\nsecond try\n"
    names = ["attempts/0001.json", "job.json", "log.txt", "run/metrics.jsonl"]
    assert [name for name, _ in store.files("")] == names
    assert store.read("job.json") == b"asked for"
    shutil.rmtree(mirror.folder)
    one.settle()  # somebody has tidied up, which says nothing of the run
    assert [name for name, _ in store.files("")] == names
    mirror.remove(mirror.folder / "run")
    assert [name for name, _ in store.files("")] == names[:-1]


def test_a_checkpoint_is_in_the_store_with_its_manifest_and_all_that_was_written_before(
    mirror: Mirror, store: Storage, monkeypatch: pytest.MonkeyPatch
):
    """As the machine of another stage sees it, which has none of the folder's files."""
    plan = tiny_plan(num_stages=1)
    run = RunDirectory(mirror.folder / "run")
    state = run_reference(plan).state()
    parts = []
    for epoch in (1, 2):
        folder = run.checkpoints / f"epoch_{epoch:04d}"
        parts = [write_part(folder, "stage_000.safetensors", state)]
        assert not folder.exists()
        folder.parent.mkdir(parents=True, exist_ok=True)
        run.metrics_file.write_text('{"epoch": 1}\n' * epoch)
        data = {"mean": [0.0], "std": [1.0]}
        publish(folder, epoch=epoch, plan=plan, parts=parts, data=data)
    write_part(run.checkpoints / "epoch_0003", "stage_000.safetensors", state)
    prune(run.checkpoints, 1)  # deletes nothing while the store has no newer one
    assert len(list(run.checkpoints.glob("*/manifest.json"))) == 2

    one, taken = copier(mirror), []
    write = Storage.write
    monkeypatch.setattr(Storage, "write", lambda s, n, c: (taken.append(n), write(s, n, c)))
    one.copy()
    manifests = [f"run/checkpoints/epoch_{epoch:04d}/manifest.json" for epoch in (1, 2)]
    assert taken == ["run/metrics.jsonl", *reversed(manifests)]

    other = copier(Mirror(mirror.folder.with_name("other"), mirror.uri))
    other.fetch()
    assert store.names("run/checkpoints") == ["epoch_0001", "epoch_0002"]  # the third never was
    assert not list(other.mirror.folder.rglob("*.safetensors"))
    for name, value in other.mirror.environment().items():
        monkeypatch.setenv(name, value)
    newest = find_checkpoint(other.mirror.folder / "run")
    assert differing(load_tensors(read_manifest(newest)), state) == []

    prune(other.mirror.folder / "run" / "checkpoints", 1)
    assert [n for n, _ in store.files("run/checkpoints")] == [
        "epoch_0002/manifest.json",
        "epoch_0002/stage_000.safetensors",
    ]
    store.write("run/checkpoints/epoch_0002/stage_000.safetensors", b"torn")
    with pytest.raises(CheckpointError, match="must be as they were written"):
        load_tensors(read_manifest(newest))
    store.remove_file("run/checkpoints/epoch_0002/stage_000.safetensors")
    with pytest.raises(CheckpointError, match="must be as they were written"):
        load_tensors(read_manifest(newest))


def test_a_store_that_does_not_answer_loses_nothing(
    mirror: Mirror, store: Storage, monkeypatch: pytest.MonkeyPatch
):
    failures = iter(range(3))
    upload = Storage.upload

    def fail(self: Storage, source: Path, name: str) -> None:
        if next(failures, None) is not None:
            raise OSError("timed out")
        upload(self, source, name)

    monkeypatch.setattr(Storage, "upload", fail)
    monkeypatch.setattr(mirrors, "_PERIOD_S", 0.01)
    monkeypatch.setattr(mirrors, "_PAUSES_S", (0.0,) * 3)
    (mirror.folder / "log.txt").write_text("kept")
    one = copier(mirror)
    one.start()
    one.settle()
    assert store.read("log.txt") == b"kept"
    (mirror.folder / "log.txt").write_text("more")
    monkeypatch.setattr(Storage, "upload", lambda *_: (_ for _ in ()).throw(OSError("for ever")))
    with pytest.raises(OSError, match="for ever"):
        one.settle()


def test_a_search_needs_a_folder(store: Storage, tmp_path: Path):
    service = Service(tmp_path / "jobs", ScriptedCluster((2, 0)))
    service.manager.store = JobStore(store)
    with pytest.raises(ConfigError, match="a search must have storage that is a folder"):
        service.manager.submit(search_request(), "ada")


def test_a_checkpoint_that_is_pruned_while_it_is_copied_is_gone(
    mirror: Mirror, store: Storage, monkeypatch: pytest.MonkeyPatch
):
    manifest = mirror.folder / "run" / "checkpoints" / "epoch_0001" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{}")
    write = Storage.write

    def pruned_meanwhile(self: Storage, name: str, content: bytes) -> None:
        manifest.unlink()
        write(self, name, content)

    monkeypatch.setattr(Storage, "write", pruned_meanwhile)
    copier(mirror).copy()
    assert store.files("") == []


def test_a_bucket_that_is_gone_is_no_success(mirror: Mirror, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mirrors, "_PAUSES_S", ())
    (mirror.folder / "log.txt").write_text("kept")
    monkeypatch.setattr(Storage, "upload", lambda *_: (_ for _ in ()).throw(FileNotFoundError()))
    with pytest.raises(OSError, match=r"log\.txt"):
        copier(mirror).settle()


def test_a_part_is_written_and_read_when_the_store_answers_again(
    mirror: Mirror, store: Storage, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(mirrors, "_PAUSES_S", (0.0, 0.0))
    for name in ("upload", "download"):
        monkeypatch.setattr(Storage, name, failing_twice(getattr(Storage, name)))
    folder, tensors = mirror.folder / "run" / "checkpoints" / "epoch_0001", {"a": torch.ones(3)}
    part = write_part(folder, "stage_000.safetensors", tensors)
    assert torch.equal(load_parts(folder, [part])["a"], tensors["a"])


def failing_twice(action: Callable[..., None]) -> Callable[..., None]:
    failures = iter(range(2))

    def act(*arguments: object) -> None:
        if next(failures, None) is not None:
            raise OSError("away")
        action(*arguments)

    return act


def test_a_late_driver_touches_nothing_of_its_successor(store: Storage):
    late = {"state": "running", "at": "2026-01-01T00:00:00Z", "reason": "", "attempt": 2}
    store.write("status.json", json.dumps({"history": [late]}).encode())
    store.write("run/checkpoints/epoch_0001/stage_000.safetensors", b"not published yet")
    before = store.files("")
    assert entry._run_mirrored(store, 1) == 3
    assert store.files("") == before
