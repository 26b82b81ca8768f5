"""One cluster of two nodes, and one service, for all tests that need some."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from service.client import LaminarClient
from tests.end_to_end.deployment import Deployment, deployment


@pytest.fixture(scope="session")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployment(tmp_path_factory.mktemp("deployed"), has_tokens=True) as found:
        yield found
        assert found.service.terminate() == 0


@pytest.fixture
def client(deployed: Deployment) -> Iterator[LaminarClient]:
    with LaminarClient(deployed.service.url, deployed.service.token) as found:
        yield found
