"""Hostile input: who gets in, what is refused, and that nothing leads out."""

from __future__ import annotations

import json
import logging
import os
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

from laminar.errors import ConfigError, ResourceError
from laminar.storage import Storage
from service.api.auth import Tokens, User, hash_token
from service.api.guard import RateLimiter
from service.api.server import ServeOptions, is_loopback
from service.api.server import serve as serve_forever
from service.jobs.only_service import only_service
from tests.service.conftest import Serve, Served
from tests.service.scripted_cluster import request

BODY = request().model_dump(mode="json")


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def post(served: Served, body: Any, **named: Any) -> httpx.Response:
    return httpx.post(f"{served.url}/v1/jobs", json=body, **named)


def with_config(**changes: Any) -> dict[str, Any]:
    return {**BODY, "config": {**BODY["config"], **changes}}


def is_problem(answer: httpx.Response) -> bool:
    found = answer.json()
    is_json = answer.headers["content-type"] == "application/problem+json"
    return is_json and found["status"] == answer.status_code and bool(found["detail"])


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


# -- who gets in -----------------------------------------------------------------------------


def test_roles_rule_what_may_be_done(serve: Serve, tokens: tuple[Tokens, dict[str, str]]):
    file, secret = tokens
    served = serve(file)

    def ask(user: str | None, method: str, path: str, **named: Any) -> int:
        headers = bearer(secret[user]) if user else {}
        return httpx.request(method, served.url + path, headers=headers, **named).status_code

    assert ask(None, "GET", "/v1/jobs") == 401
    assert ask(None, "POST", "/v1/jobs", json=BODY) == 401
    assert ask(None, "GET", "/metrics") == 401
    assert ask(None, "GET", "/healthz") == 200
    assert ask("reader", "GET", "/v1/jobs") == 200
    assert ask("reader", "POST", "/v1/jobs", json=BODY) == 403
    assert ask("ada", "POST", "/v1/jobs", json=BODY) == 201
    (job_id,) = served.store.ids()
    assert served.store.spec(job_id).owner == "ada"
    for method, path in (("POST", "/stop"), ("POST", "/resume"), ("DELETE", "")):
        assert ask(None, method, f"/v1/jobs/{job_id}{path}") == 401
        assert ask("reader", method, f"/v1/jobs/{job_id}{path}") == 403
        assert ask("bob", method, f"/v1/jobs/{job_id}{path}") == 403
    assert ask("bob", "GET", f"/v1/jobs/{job_id}") == 200
    assert ask("ada", "POST", f"/v1/jobs/{job_id}/stop") == 202
    assert ask("root", "POST", f"/v1/jobs/{job_id}/resume") == 202


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer x", "Basic cm9vdDpyb290", "Bearer \xff", "lam_x"]
)
def test_what_is_no_token_opens_nothing(
    serve: Serve, tokens: tuple[Tokens, dict[str, str]], header: str
):
    answer = httpx.get(
        f"{serve(tokens[0]).url}/v1/jobs", headers={"Authorization": header.encode("latin-1")}
    )
    assert (answer.status_code, is_problem(answer)) == (401, True)
    assert answer.headers["www-authenticate"] == "Bearer"


def test_a_token_is_kept_as_a_hash_and_can_be_revoked_while_it_is_served(
    serve: Serve, tokens: tuple[Tokens, dict[str, str]], caplog: pytest.LogCaptureFixture
):
    file, secret = tokens
    caplog.set_level(logging.DEBUG)
    served = serve(file)
    content = file.path.read_text()
    assert file.path.stat().st_mode & 0o777 == 0o600
    for token in secret.values():
        assert len(token) >= 40
        assert token not in content
        assert hash_token(token) in content
    url = f"{served.url}/v1/me"
    assert httpx.get(url, headers=bearer(secret["ada"])).json()["name"] == "ada"
    identifier = next(t.id for t in file.read() if t.user.name == "ada")
    Tokens(file.path).revoke(identifier)
    assert httpx.get(url, headers=bearer(secret["ada"])).status_code == 401
    assert httpx.get(url, headers=bearer(secret["bob"])).status_code == 200
    assert not any(token in caplog.text for token in secret.values())
    with pytest.raises(ConfigError, match="must be in the file"):
        file.revoke(identifier)


@pytest.mark.parametrize("path", ["logs/events", "metrics/events"])
def test_revoking_a_token_ends_its_streams(
    serve: Serve, tokens: tuple[Tokens, dict[str, str]], path: str
):
    file, secret = tokens
    served = serve(file)
    job_id = served.submit()
    log = served.folder / job_id / "log.txt"
    log.write_text("before\n")
    url = f"{served.url}/v1/jobs/{job_id}/{path}"
    with (
        httpx.stream("GET", url, headers=bearer(secret["reader"]), timeout=20) as gone,
        httpx.stream("GET", url, headers=bearer(secret["bob"]), timeout=20) as kept,
    ):
        lines, others = gone.iter_lines(), kept.iter_lines()
        assert next(lines).startswith("event: ")
        Tokens(file.path).revoke(next(t.id for t in file.read() if t.user.name == "reader"))
        rest = [line for line in lines if line.startswith(("event", "data"))]
        assert rest[-2:] == ["event: end", 'data: {"state": "queued"}']  # as at a service's end
        assert httpx.get(url, headers=bearer(secret["reader"])).status_code == 401
        served.manager.stop(job_id)
        found = [line for line in others if line.startswith(("event", "data"))]
        assert found[-2:] == ["event: end", 'data: {"state": "stopped"}']


def test_a_person_has_a_share_of_the_streams(serve: Serve, tokens: tuple[Tokens, dict[str, str]]):
    file, secret = tokens
    served = serve(file, max_streams_per_user=1)
    job_id = served.submit()
    url = f"{served.url}/v1/jobs/{job_id}/logs/events"
    with httpx.stream("GET", url, headers=bearer(secret["ada"])) as first:
        assert first.status_code == 200
        refused = httpx.get(url, headers=bearer(secret["ada"]))
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "30")
        assert "ada has 1 live streams" in refused.json()["detail"]
        with httpx.stream("GET", url, headers=bearer(secret["bob"])) as second:
            assert second.status_code == 200
            served.manager.stop(job_id)


def test_a_file_of_tokens_that_others_can_write_is_refused(tmp_path: Path):
    file = Tokens(tmp_path / "tokens.json")
    file.create(User(name="ada", role="admin"))
    file.path.chmod(0o622)
    with pytest.raises(ConfigError, match="writable by its owner only"):
        Tokens(file.path)
    file.path.chmod(0o600)
    file.path.write_text('{"tokens": [{"secret": "hunter2"}]}')
    with pytest.raises(ConfigError) as refused:
        Tokens(file.path)
    assert "hunter2" not in str(refused.value)


def test_other_addresses_than_loopback_need_a_token(tmp_path: Path):
    options = {"storage": str(tmp_path / "jobs"), "ray_address": "http://127.0.0.1:1"}
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        assert not is_loopback(host)
        with pytest.raises(ConfigError, match="must be served with --tokens"):
            serve_forever(ServeOptions(**options, host=host))
        with pytest.raises(ConfigError, match="with a token at least"):
            serve_forever(ServeOptions(**options, host=host, tokens=tmp_path / "none.json"))
    for host in ("127.0.0.1", "127.0.0.53", "::1", "localhost"):
        assert is_loopback(host)
    with pytest.raises(ResourceError, match="dashboard"):
        serve_forever(ServeOptions(storage=options["storage"], ray_address="127.0.0.1:6379"))
    with pytest.raises(ConfigError, match="below the root"):
        serve_forever(ServeOptions(**options, data_roots=(Path("/"),)))
    (tmp_path / "jobs").mkdir(exist_ok=True)
    storage = Storage.open(options["storage"])
    with only_service(storage), pytest.raises(ConfigError, match="one service"):
        serve_forever(ServeOptions(**options))


# -- browsers and floods -----------------------------------------------------------------------


def test_pages_of_others_cannot_use_a_browser_against_the_service(served: Served):
    job_id = served.submit()
    url = f"{served.url}/v1/jobs/{job_id}/stop"
    assert httpx.post(url, headers={"Origin": "http://evil.example"}).status_code == 403
    assert httpx.post(url, headers={"Origin": "null"}).status_code == 403
    # A name of theirs that resolves to this machine.
    assert httpx.get(f"{served.url}/v1/jobs", headers={"Host": "evil.example"}).status_code == 400
    assert served.state(job_id) == "queued"
    assert httpx.post(url, headers={"Origin": served.url}).status_code == 202
    answer = httpx.get(f"{served.url}/v1/jobs", headers={"Origin": "http://evil.example"})
    assert "access-control-allow-origin" not in answer.headers


def test_probes_need_no_name_and_nothing_else_goes_without(served: Served):
    """A kubelet asks for POD_IP:PORT."""
    served.tick()
    by_address = {"Host": "10.1.2.3:8484"}
    for path in ("healthz", "readyz"):
        assert httpx.get(f"{served.url}/{path}", headers=by_address).text == "ok\n"
    for path in ("", "metrics", "v1/jobs", "v1/me", "healthz/", "openapi.json", "static/app.js"):
        assert httpx.get(f"{served.url}/{path}", headers=by_address).status_code == 400


def test_floods_are_slowed_down(serve: Serve, tokens: tuple[Tokens, dict[str, str]]):
    file, secret = tokens
    served = serve(file, requests_per_s=0.01, burst=3)
    url = f"{served.url}/v1/me"
    codes = [httpx.get(url, headers=bearer("guess")).status_code for _ in range(5)]
    assert codes == [401] * 3 + [429] * 2
    codes = [httpx.get(url, headers=bearer(secret["ada"])).status_code for _ in range(5)]
    assert codes == [200] * 3 + [429] * 2  # neither do strangers use up what is hers
    answer = httpx.get(url, headers=bearer(secret["ada"]))
    assert int(answer.headers["retry-after"]) > 50


FLOODS: list[tuple[str, str, dict[str, Any], int]] = [
    ("no JSON", "v1/jobs", {"content": b"{", "method": "POST"}, 400),
    ("too large", "v1/jobs", {"content": b" " * 300_000, "method": "POST"}, 413),
    ("no such route", "nowhere", {}, 404),
    ("a file of the page", "static/app.js", {}, 200),
    ("the API's description", "openapi.json", {}, 200),
]


@pytest.mark.parametrize(("name", "path", "named", "status"), FLOODS)
def test_whatever_is_asked_for_counts(
    serve: Serve,
    tokens: tuple[Tokens, dict[str, str]],
    name: str,
    path: str,
    named: dict[str, Any],
    status: int,
):
    served = serve(tokens[0], requests_per_s=0.01, burst=3)
    named = {"method": "GET", "headers": {"Content-Type": "application/json"}} | named
    answers = [httpx.request(url=f"{served.url}/{path}", **named) for _ in range(5)]
    assert [a.status_code for a in answers] == [status] * 3 + [429] * 2
    assert is_problem(answers[-1])
    assert answers[-1].headers["x-content-type-options"] == "nosniff"
    for probe in ("healthz", "healthz", "healthz", "healthz"):
        assert httpx.get(f"{served.url}/{probe}").status_code == 200
    root = bearer(tokens[1]["root"])  # a person is counted apart from strangers
    metrics = httpx.get(f"{served.url}/metrics", headers=root).text
    assert 'route="unknown",status="429"} 2.0' in metrics


def test_the_bucket_refills():
    limiter = RateLimiter(per_s=2, burst=3)
    assert [limiter.wait_s("a", at=0) for _ in range(4)] == [0, 0, 0, 0.5]
    assert limiter.wait_s("b", at=0) == 0
    assert limiter.wait_s("a", at=0.25) == 0.25
    assert limiter.wait_s("a", at=0.5) == 0
    assert [limiter.wait_s("a", at=100) for _ in range(4)] == [0, 0, 0, 0.5]


def test_an_error_of_our_own_says_nothing_to_strangers(
    served: Served, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object) -> None:
        raise RuntimeError("the password is hunter2")

    monkeypatch.setattr(served.manager, "cluster", fail)
    answer = httpx.get(f"{served.url}/v1/cluster")
    assert answer.status_code == 500
    assert "hunter2" not in answer.text
    assert json.loads(answer.text)["title"] == "Internal Server Error"
