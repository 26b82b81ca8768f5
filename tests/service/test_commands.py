"""The commands that speak to a service, in this process, against one that listens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from service.api.auth import Tokens
from tests.service.conftest import Serve, Served
from tests.tiny import tiny_config, tiny_plan, write_run

Laminar = Callable[..., tuple[int, str, str]]


@pytest.fixture
def here(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Served:
    """A working folder with a configuration, where the service is known by the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAMINAR_SERVICE", served.url)
    Path("tiny.yaml").write_text(yaml.safe_dump(tiny_config().model_dump(mode="json")))
    return served


def test_a_job_from_submission_to_deletion(here: Served, laminar: Laminar):
    code, out, err = laminar(
        *("submit", "tiny.yaml", "--set", "epochs=3", "--name", "first", "--priority", 4)
    )
    assert (code, err) == (0, "")
    job_id, estimate = out.splitlines()
    assert estimate.startswith("estimate: 2 workers, ")
    assert here.store.spec(job_id).request.config.epochs == 3
    here.tick()
    here.say(job_id, "running")
    here.tick()
    code, out, _ = laminar("list")
    assert (code, [word for word in ("first", "running", "1/2", "ago") if word not in out]) == (
        0,
        [],
    )
    code, out, _ = laminar("status", job_id)
    assert "progress  epoch 1/2, batch 3/10, loss 1.5000" in out
    assert "admitted: room for" in out
    (here.folder / job_id / "log.txt").write_text("one\ntwo\n")
    assert laminar("logs", job_id, "--tail", 1)[:2] == (0, "two\n")
    assert laminar("stop", job_id)[:2] == (0, f"{job_id} is stopping\n")
    here.say(job_id, "ended", "stopped")
    here.tick()
    assert laminar("logs", "-f", job_id)[:2] == (0, "one\ntwo\n")
    assert laminar("resume", job_id)[:2] == (0, f"{job_id} is queued\n")
    assert laminar("list", "--state", "failed")[0] == 0
    code, _, err = laminar("delete", job_id)
    assert (code, "only a job that has ended" in err) == (2, True)
    laminar("stop", job_id)
    assert laminar("delete", job_id)[:2] == (0, f"{job_id} is deleted\n")
    assert here.store.ids() == []


def test_the_same_key_submits_once(here: Served, laminar: Laminar):
    first, second = (laminar("submit", "tiny.yaml", "--key", "k", "--json")[1] for _ in range(2))
    assert json.loads(first)["id"] == json.loads(second)["id"]
    assert len(here.store.ids()) == 1
    assert laminar("submit", "tiny.yaml", "--dry-run")[1].startswith("estimate: ")
    assert len(here.store.ids()) == 1


def test_the_cluster_is_shown(here: Served, laminar: Laminar):
    assert "does not answer" in laminar("status")[1]
    here.tick()
    out = laminar("status")[1]
    assert "reachable, 1 nodes" in out
    assert "0 of 2 in use" in out


def test_a_fetched_run_can_be_evaluated(here: Served, laminar: Laminar):
    job_id = here.submit()
    write_run(here.run(job_id), tiny_plan(3))
    assert laminar("artifacts", "get", job_id)[0] == 0
    code, out, _ = laminar("evaluate", f"runs/{job_id}")
    assert (code, json.loads(out)["num_samples"]) == (0, 15)
    assert "config.yaml" in laminar("artifacts", "list", job_id)[1]


def test_a_folder_of_a_jobs_name_is_a_run(here: Served, laminar: Laminar):
    job_id = here.submit()
    Path(job_id).mkdir()
    code, _, err = laminar("resume", job_id, "--set", "resources.cpus_per_stage=1")
    assert (code, "a run directory must contain config.yaml" in err) == (2, True)
    assert here.state(job_id) == "queued"


def test_a_token_is_made_once_and_opens(
    serve: Serve, laminar: Laminar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    code, out, _ = laminar("token", "create", "--file", "t.json", "--user", "ada")
    token = out.strip()
    assert (code, token[:4]) == (0, "lam_")
    assert "ada" in laminar("token", "list", "--file", "t.json")[1]
    served = serve(Tokens(tmp_path / "t.json"))
    monkeypatch.setenv("LAMINAR_SERVICE", served.url)
    code, _, err = laminar("list")
    assert (code, "set LAMINAR_TOKEN" in err) == (2, True)
    monkeypatch.setenv("LAMINAR_TOKEN", token)
    assert laminar("list")[0] == 0
    (stored,) = Tokens(tmp_path / "t.json").read()
    assert laminar("token", "revoke", "--file", "t.json", stored.id)[0] == 0
    assert laminar("list")[0] == 2
