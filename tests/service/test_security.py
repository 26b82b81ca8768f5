"""Hostile input: what is refused, and that nothing leads out."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.service.asking import is_problem
from tests.service.conftest import Serve, Served
from tests.service.scripted_cluster import request

BODY = request().model_dump(mode="json")


def post(served: Served, body: Any, **named: Any) -> httpx.Response:
    return httpx.post(f"{served.url}/v1/jobs", json=body, **named)


def with_config(**changes: Any) -> dict[str, Any]:
    return {**BODY, "config": {**BODY["config"], **changes}}


# -- a job is data -------------------------------------------------------------------------------

OUTSIDE = "must be inside a folder that the service allows"
HOSTILE_JOBS: list[tuple[str, dict[str, Any], int, str]] = [
    ("absolute root", with_config(data={"name": "mnist", "root": "/etc"}), 422, OUTSIDE),
    ("parent root", with_config(data={"name": "mnist", "root": "../.."}), 422, OUTSIDE),
    ("sibling root", with_config(data={"name": "mnist", "root": "../data_secret"}), 422, OUTSIDE),
    ("home root", with_config(data={"name": "cifar10", "root": "~root"}), 201, ""),
    ("linked root", with_config(data={"name": "mnist", "root": "link"}), 422, OUTSIDE),
    ("null byte", with_config(data={"name": "mnist", "root": "a\0b"}), 422, OUTSIDE),
    ("long path", with_config(data={"name": "mnist", "root": "a/" * 9000}), 422, OUTSIDE),
    ("empty root", with_config(data={"name": "mnist", "root": ""}), 422, OUTSIDE),
    (
        "split outside",
        with_config(data={"name": "image_folder", "root": "set", "train_split": "../.."}),
        422,
        OUTSIDE,
    ),
    (
        "cache anywhere",
        with_config(data={"name": "image_folder", "root": "set", "cache_dir": "/var/tmp"}),
        422,
        "data.cache_dir must be left out",
    ),
    ("weights", with_config(model={"weights": "/root/.ssh/id_rsa"}), 422, OUTSIDE),
    ("linked weights", with_config(model={"weights": "link/passwd"}), 422, OUTSIDE),
    ("own network", with_config(model={"name": "custom"}), 422, "data and never code"),
    ("own data", with_config(data={"name": "custom"}), 422, "data and never code"),
    ("own loss", with_config(loss={"name": "custom"}), 422, "data and never code"),
    ("module", with_config(model={"name": "os.system"}), 422, "must name a network"),
    ("command", {**BODY, "entrypoint": "rm -rf /"}, 422, "Extra inputs"),
    ("environment", {**BODY, "runtime_env": {"pip": ["evil"]}}, 422, "Extra inputs"),
    ("kind", {**BODY, "kind": "shell"}, 422, "kind"),
    ("owner", {**BODY, "owner": "root"}, 422, "Extra inputs"),
    ("id", {**BODY, "id": "../../x"}, 422, "Extra inputs"),
    ("name of terminal codes", {**BODY, "name": "\x1b[2Jx"}, 422, "name"),
    ("name of HTML", {**BODY, "name": "<script>alert(1)</script>"}, 422, "name"),
    ("name with a line", {**BODY, "name": "a\n"}, 422, "name"),
    ("name without end", {**BODY, "name": "a" * 5000}, 422, "name"),
    ("epochs without end", with_config(epochs=10**9), 422, "epochs must be <="),
    ("images without end", with_config(data={"name": "synthetic", "num_train": 10**12}), 422, "<="),
    ("not a number", with_config(optimizer={"lr": "NaN"}), 422, "lr"),
    ("priority", {**BODY, "priority": 10**6}, 422, "priority"),
    ("retries", {**BODY, "max_retries": -1}, 422, "max_retries"),
    ("list", [], 422, "body"),
    ("null", None, 422, "body"),
    ("config of a list", {**BODY, "config": []}, 422, "config"),
]


@pytest.fixture
def fenced(serve: Serve, tmp_path: Path) -> Served:
    """A service that allows one folder, with a link out of it, beside one it does not allow."""
    root = tmp_path / "data"
    (root / "set").mkdir(parents=True)
    (root / "link").symlink_to("/etc")
    (tmp_path / "data_secret").mkdir()
    return serve(data_roots=(root,))


@pytest.mark.parametrize(("name", "body", "status", "words"), HOSTILE_JOBS)
def test_a_job_is_data_never_code(fenced: Served, name: str, body: Any, status: int, words: str):
    answer = post(fenced, body)
    assert answer.status_code == status, answer.text
    if status == 201:  # a folder of that odd name, in the allowed one; never somebody's home
        root = answer.json()["config"]["data"]["root"]
        assert root == str(fenced.settings.data_roots[0] / "~root")
    else:
        assert is_problem(answer)
        assert words in answer.json()["detail"]
        assert fenced.store.ids() == []


def test_without_a_data_root_no_file_can_be_named(served: Served):
    answer = post(served, with_config(data={"name": "mnist", "root": "x"}))
    assert (answer.status_code, "--data-root" in answer.json()["detail"]) == (422, True)


RAW_BODIES: list[tuple[str, bytes, dict[str, str], int]] = [
    ("no JSON", b"{", {}, 400),
    ("nothing", b"", {}, 422),
    ("deep", b"[" * 100_000, {}, 400),
    ("huge number", b'{"priority":' + b"9" * 5000 + b"}", {}, 400),
    ("infinite", b'{"config":{"optimizer":{"lr":1e999}}}', {}, 422),
    ("bad text", b'{"name":"\xff\xfe"}', {}, 400),
    ("half a character", b'{"name":"\\ud800"}', {}, 422),
    ("a form", b"config=1", {"Content-Type": "application/x-www-form-urlencoded"}, 422),
    ("a pickle", b"\x80\x04cos\nsystem\n.", {"Content-Type": "application/octet-stream"}, 422),
    ("too large", b" " * 300_000, {}, 413),
    ("bad key", b"{}", {"Idempotency-Key": "k" * 500}, 422),
]


@pytest.mark.parametrize(("name", "content", "headers", "status"), RAW_BODIES)
def test_what_is_no_job_is_refused(
    served: Served, name: str, content: bytes, headers: dict[str, str], status: int
):
    headers = {"Content-Type": "application/json"} | headers
    answer = httpx.post(f"{served.url}/v1/jobs", content=content, headers=headers)
    assert answer.status_code == status, answer.text
    assert is_problem(answer)
    assert served.store.ids() == []


def test_a_body_that_never_says_how_long_it_is_is_cut_off(served: Served):
    def endless():
        for _ in range(64):
            yield b" " * 8192

    answer = httpx.post(
        f"{served.url}/v1/jobs", content=endless(), headers={"Content-Type": "application/json"}
    )
    assert (answer.status_code, is_problem(answer)) == (413, True)


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("limit=0", 422),
        ("limit=1000000", 422),
        ("limit=x", 422),
        ("state=dead", 422),
        ("cursor=%00", 400),
        ("cursor=Li4vLi4", 400),
        (f"cursor={'a' * 1000}", 422),
    ],
)
def test_queries_are_checked(served: Served, query: str, status: int):
    answer = httpx.get(f"{served.url}/v1/jobs?{query}")
    assert (answer.status_code, is_problem(answer)) == (status, True)


# -- files -----------------------------------------------------------------------------------

ESCAPES = (
    "../job.json", "..%2Fjob.json", "%2e%2e/job.json", "checkpoints/../../job.json",
    "/etc/passwd", "%2Fetc%2Fpasswd", "./metrics.jsonl", "checkpoints//x", "link", "folder_link/a",
    "pipe", "checkpoints", "%00", "a%00b", "..%5Cjob.json", "%252e%252e/job.json", "/" * 200,
)  # fmt: skip


def raw_get(served: Served, path: str) -> bytes:
    """Send a path as it is; every client would tidy it up."""
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 10) as connection:
        lines = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n"
        connection.sendall(lines.encode())
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize("path", ESCAPES)
def test_no_artifact_leads_out_of_its_run(served: Served, path: str, tmp_path: Path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/a").write_text("secret")
    job_id = served.submit()
    run = served.run(job_id)
    (run / "checkpoints").mkdir(parents=True)
    (run / "metrics.jsonl").write_text("{}\n")
    (run / "link").symlink_to(tmp_path / "outside/a")
    (run / "folder_link").symlink_to(tmp_path / "outside")
    os.mkfifo(run / "pipe")
    answer = raw_get(served, f"/v1/jobs/{job_id}/artifacts/{path}")
    status = int(answer.split(b" ", 2)[1])
    assert status in (400, 404), answer
    assert b"secret" not in answer
    assert b"idempotency" not in answer
    good = raw_get(served, f"/v1/jobs/{job_id}/artifacts/metrics.jsonl")
    assert good.endswith(b"\r\n\r\n{}\n")
    listed = httpx.get(f"{served.url}/v1/jobs/{job_id}/artifacts").json()
    assert [a["path"] for a in listed] == ["metrics.jsonl"]


def test_what_a_run_holds_is_never_run_by_a_browser(served: Served):
    job_id = served.submit()
    served.run(job_id).mkdir()
    (served.run(job_id) / "report.html").write_text("<script>alert(1)</script>")
    headers = httpx.get(f"{served.url}/v1/jobs/{job_id}/artifacts/report.html").headers
    assert headers["content-type"] == "application/octet-stream"
    assert headers["content-disposition"].startswith("attachment")
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("job_id", ["..", "%2e%2e", "job-0", "x" * 300, "..%2f..", "%00"])
def test_a_job_of_no_such_name_is_404_or_422(served: Served, job_id: str):
    for path in ("", "/logs", "/metrics", "/artifacts", "/artifacts/x", "/logs/events"):
        answer = raw_get(served, f"/v1/jobs/{job_id}{path}")
        assert int(answer.split(b" ", 2)[1]) in (404, 422), answer
