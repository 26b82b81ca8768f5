"""Who gets in, as whom, how often, and what strangers learn."""

from __future__ import annotations

import json
import logging
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
from tests.service.asking import bearer, is_problem
from tests.service.conftest import Serve, Served
from tests.service.scripted_cluster import request

BODY = request().model_dump(mode="json")


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
