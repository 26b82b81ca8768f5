"""The client, where the service or the way to it is not as it should be."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from service.client import LaminarClient, ServiceError
from tests.service.conftest import Served
from tests.service.scripted_cluster import request


def test_the_client_says_what_is_wrong_with_the_service(tmp_path: Path):
    with LaminarClient("http://127.0.0.1:1") as client, pytest.raises(ServiceError) as refused:
        client.job("x")
    assert "start `laminar serve`" in str(refused.value)
    with pytest.raises(ServiceError, match="must be a URL"):
        LaminarClient("127.0.0.1:8484")
    other = httpx.MockTransport(lambda request: httpx.Response(200, json={"hello": 1}))
    with (
        LaminarClient("http://x", transport=other) as client,
        pytest.raises(ServiceError, match="a Laminar service of this version"),
    ):
        client.job("x")


def test_the_client_sends_again_what_was_lost_under_the_same_key(tmp_path: Path):
    keys: list[str] = []

    def answer(received: httpx.Request) -> httpx.Response:
        keys.append(received.headers["Idempotency-Key"])
        if len(keys) < 3:
            raise httpx.ReadError("reset")
        return httpx.Response(503 if len(keys) == 3 else 404, json={"detail": "gone"})

    with (
        LaminarClient("http://x", transport=httpx.MockTransport(answer)) as client,
        pytest.raises(ServiceError, match="gone"),
    ):
        client.submit(request())
    assert len(keys) == 4
    assert len(set(keys)) == 1


@pytest.mark.parametrize("status", [502, 503, 504])
@pytest.mark.parametrize("how", ["wait", "follow"])
def test_a_service_that_is_started_again_behind_a_proxy_is_waited_for(
    served: Served, how: str, status: int, monkeypatch: pytest.MonkeyPatch
):
    """The proxy answers in its place, and would have the client come again in an hour."""
    job_id = served.submit()
    log = served.folder / job_id / "log.txt"
    log.write_text("one\ntwo\n")
    served.manager.stop(job_id)
    monkeypatch.setattr("service.connection._PAUSE_S", 0.0)
    away = iter(range(20))

    class Proxy(httpx.HTTPTransport):
        def handle_request(self, received: httpx.Request) -> httpx.Response:
            if next(away, None) is not None:
                return httpx.Response(status, headers={"Retry-After": "3600"}, text="<html>")
            return super().handle_request(received)

    with LaminarClient(served.url, transport=Proxy()) as client:
        if how == "wait":
            assert client.wait(job_id).state == "stopped"
        else:
            assert list(client.follow_logs(job_id)) == ["one", "two"]


def test_a_service_that_stays_away_is_told_after_so_many_tries(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("service.connection._PAUSE_S", 0.0)
    away = httpx.MockTransport(lambda request: httpx.Response(503, json={"detail": "no backend"}))
    with LaminarClient("http://x", transport=away) as client:
        for ask in (client.wait, lambda job: list(client.follow_logs(job))):
            with pytest.raises(ServiceError, match="no backend") as refused:
                ask("job")
            assert refused.value.status == 503


@pytest.mark.parametrize("path", ["../evil", "/etc/evil", "a/../../evil"])
def test_the_client_writes_nothing_outside_of_its_folder(path: str, tmp_path: Path):
    def answer(received: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=[{"path": path, "num_bytes": 1}])

    with (
        LaminarClient("http://x", transport=httpx.MockTransport(answer)) as client,
        pytest.raises(ServiceError, match="must be inside it"),
    ):
        client.download_run("job", tmp_path / "run")
    assert not list(tmp_path.rglob("evil*"))
