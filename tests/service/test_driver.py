"""What the driver of a job writes, heeds and refuses."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from laminar.errors import ConfigError
from laminar.storage import Storage
from service.jobs import entry
from service.jobs.models import AttemptReport, JobStatus
from service.jobs.searches import confined_search
from service.jobs.settings import Settings
from tests.service.scripted_cluster import (
    Service,
    request,
    search_request,
)
from tests.tiny import tiny_config


def test_the_driver_writes_what_the_service_reads(tmp_path: Path):
    from laminar import progress as events

    reporter = entry.Reporter(tmp_path, 1)
    path = tmp_path / "attempts/0001.json"

    def told() -> AttemptReport:
        return AttemptReport.model_validate_json(path.read_bytes())

    reporter.starting()
    assert told().phase == "starting"
    figures = {"samples_per_s": 1.0, "eta_s": 2.0, "loss": 3.0, "accuracy": 0.5}
    reporter(events.Progress(1, 2, "starting", 0, 10, None, None, None, None))
    assert told().phase == "starting"
    reporter(events.Progress(1, 2, "parallel", 1, 10, **figures))
    reporter(events.Progress(1, 2, "parallel", 2, 10, **figures))  # within a second: not written
    assert (told().phase, told().progress.num_batches_done) == ("running", 1)
    reporter.ended("stopped", "asked for")
    assert (told().outcome, told().progress.num_batches_done) == ("stopped", 2)


def test_the_driver_heeds_a_stop_and_gives_way_to_a_later_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    exits: list[int] = []

    def leave(code: int) -> None:
        exits.append(code)
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(entry, "_WATCH_S", 0.0)
    status = {"state": "stopping", "at": "2026-01-01T00:00:00Z", "reason": "", "attempt": 1}
    (tmp_path / "status.json").write_text(json.dumps({"history": [status]}))
    calls: list[int] = []
    home = Storage.open(str(tmp_path))

    def give_up() -> None:
        """The driver lets go, and meanwhile the service starts another."""
        calls.append(1)
        later = json.dumps({"history": [status | {"attempt": 2}]})
        (tmp_path / "status.json").write_text(later)

    with pytest.raises(SystemExit):
        entry.watch(home, 1, give_up)
    (tmp_path / "status.json").unlink()
    with pytest.raises(SystemExit):
        entry.watch(home, 2, lambda: calls.append(2))
    assert (calls, exits) == ([1], [3, 4])


def test_a_run_directory_is_trained_by_what_its_folder_says(service: Service):
    """A configuration whose file has been moved since is refused by the driver, not read."""
    root = service.folder.parent / "data"
    root.mkdir()
    service.settings = Settings(data_roots=(root,))
    service.restart()
    config = tiny_config().model_copy(update={"data": {"name": "mnist", "root": "set"}})
    (root / "set").mkdir()
    body = config.model_dump(mode="json", warnings=False)
    job, _ = service.manager.submit(request(config=body), "ada")
    assert job.config.data.root == str(root / "set")
    (root / "set").rename(root / "other")
    (root / "set").symlink_to("/etc")
    service.tick()
    status = service.store.status(job.id)
    assert isinstance(status, JobStatus)
    spec = service.store.spec(job.id)
    with pytest.raises(ConfigError, match=r"data\.root must lead where it led"):
        entry.check(spec)


@pytest.mark.parametrize("kind", ["train", "search"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_that_leads_out_of_its_data_set_by_now_is_refused(
    service: Service, split: str, kind: str
):
    """One that is a link within it may stay one."""
    root = service.folder.parent / "data"
    for name in ("set/2026_train", "set/val", "elsewhere"):
        (root / name).mkdir(parents=True)
    (root / "set/train").symlink_to("2026_train")
    service.settings = Settings(data_roots=(root,))
    service.restart()
    data = {"name": "image_folder", "root": "set", "train_split": "train", "test_split": "val"}
    if kind == "search":
        tree = {"data": data, "search": {"num_trials": 1}}
        asked: Any = search_request(confined_search(tree, [root]))
        spec = service.store.spec(service.submit()).model_copy(update={"request": asked})
    else:
        config = tiny_config().model_dump(mode="json") | {"data": data}
        spec = service.store.spec(service.manager.submit(request(config=config), "ada")[0].id)
    entry.check(spec)
    (root / "set" / split).rename(root / "set/old")
    (root / "set" / split).symlink_to(root / "elsewhere")
    key = {"train": "train_split", "val": "test_split"}[split]
    with pytest.raises(ConfigError, match=rf"data\.{key} must be inside a folder"):
        entry.check(spec)
