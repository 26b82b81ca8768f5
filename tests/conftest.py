"""One small Ray for the whole session, and one thread per process for exactness."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

NUM_CPUS, NUM_LOGICAL_GPUS = 2, 2


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ray_session():
    """A Ray with two CPUs and two logical GPUs, which exist for placement only."""
    import ray

    from actors.family import Family

    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    family = Family()
    with family.marked(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(
            num_cpus=NUM_CPUS,
            num_gpus=NUM_LOGICAL_GPUS,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=200 * 10**6,
        )
    yield ray
    family.remember()
    ray.shutdown()
    family.end()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless Chromium that this machine has, driven by playwright; without one, a skip."""
    import shutil

    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no Chromium is installed, which is Debian's package chromium")
    with sync_playwright() as driver:
        # Its sandbox wants user namespaces, which containers seldom allow.
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def repository() -> Path:
    return Path(__file__).parent.parent


@pytest.fixture
def shared_data(repository: Path) -> Path:
    """Real data beside the repository; tests that need it skip where it is absent."""
    path = repository.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("../shared/data is not here")
    return path


@pytest.fixture
def laminar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run the entry point as a shell would, in this process; return exit code, stdout, stderr."""
    from service.cli import main

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["laminar", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call
