"""A service that listens, its cluster and drivers played by the test."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from service.api.app import create_app
from service.api.auth import Tokens, User
from service.api.context import ApiSettings
from service.api.server import listen
from service.client import LaminarClient
from tests.service.scripted_cluster import ScriptedCluster, Service


class Served(Service):
    """A service with a port; `tick` stays with the test."""

    def __init__(self, folder: Path, tokens: Tokens | None, api: ApiSettings, **settings: Any):
        super().__init__(folder, ScriptedCluster((2, 0)), **settings)
        self.tokens, self.api = tokens, api
        self.url = ""

    @contextmanager
    def listening(self) -> Iterator[None]:
        app = create_app(self.manager, tokens=self.tokens, settings=self.api)
        config = uvicorn.Config(app, log_config=None, access_log=False)
        server = uvicorn.Server(config)
        with listen("127.0.0.1", 0) as listener:
            self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
            thread.start()
            try:
                while not server.started:
                    assert thread.is_alive()
                    time.sleep(0.01)
                yield
            finally:
                app.state.context.is_closing = True
                server.should_exit = True
                thread.join(10)


Serve = Callable[..., Served]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start services; all end with the test."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def start(tokens: Tokens | None = None, **settings: Any) -> Served:
            api = {"poll_s": 0.02, "hosts": ("127.0.0.1", "localhost")}
            for name in list(settings):
                if name in ApiSettings.__dataclass_fields__:
                    api[name] = settings.pop(name)
            served = Served(tmp_path / "jobs", tokens, ApiSettings(**api), **settings)
            stack.enter_context(served.listening())
            return served

        yield start


@pytest.fixture
def service(tmp_path: Path) -> Service:
    """One that does not listen; its cluster has two CPUs."""
    return Service(tmp_path / "jobs", ScriptedCluster((2, 0)))


@pytest.fixture
def served(serve: Serve) -> Served:
    return serve()


@pytest.fixture
def client(served: Served) -> Iterator[LaminarClient]:
    with LaminarClient(served.url) as connected:
        yield connected


@pytest.fixture
def tokens(tmp_path: Path) -> tuple[Tokens, dict[str, str]]:
    """A file of tokens, and the token of each user."""
    file = Tokens(tmp_path / "tokens.json")
    roles = {"reader": "read", "ada": "submit", "bob": "submit", "root": "admin"}
    return file, {
        name: file.create(User.model_validate({"name": name, "role": role}))
        for name, role in roles.items()
    }
