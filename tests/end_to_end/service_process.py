"""A Ray head and a service as processes, started by the commands that people use."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import psutil

from tests.end_to_end.shell import LAMINAR

RAY = str(Path(sys.executable).with_name("ray"))
REPOSITORY = Path(__file__).parents[2]
START_S = 240.0

ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(REPOSITORY),
    "OMP_NUM_THREADS": "1",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        with suppress(httpx.HTTPError):
            if httpx.get(url, timeout=5).status_code == 200:
                return
        time.sleep(0.1)
    raise AssertionError(f"{url} never answered\n{log.read_text()}")


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that it started: Ray's daemons and jobs leave its group."""
    family = [psutil.Process(process.pid)] if process.poll() is None else []
    family += [child for parent in family for child in parent.children(recursive=True)]
    for member in family:
        with suppress(psutil.Error):
            member.kill()
    process.wait()


@contextmanager
def ray_head(folder: Path, num_cpus: int = 2) -> Iterator[str]:
    """A cluster of one node, with its dashboard; yields the dashboard's address.

    Ray gives up on a dashboard that is not up within twenty seconds, which it is not on a machine
    that is busy with other tests: then a second head gets a second chance.
    """
    with ExitStack() as stack:
        try:
            address = stack.enter_context(_ray_head(folder, num_cpus))
        except AssertionError:
            address = stack.enter_context(_ray_head(folder, num_cpus))
        yield address


@contextmanager
def _ray_head(folder: Path, num_cpus: int) -> Iterator[str]:
    dashboard, log = free_port(), folder / "ray.log"
    arguments = [
        *("start", "--head", "--block", f"--port={free_port()}", f"--num-cpus={num_cpus}"),
        *("--include-dashboard=true", f"--dashboard-port={dashboard}"),
        *(f"--dashboard-agent-listen-port={free_port()}", "--object-store-memory=200000000"),
        "--disable-usage-stats",
    ]
    # Unix sockets live there, whose paths must be short.
    with tempfile.TemporaryDirectory(prefix="lr", dir="/tmp", ignore_cleanup_errors=True) as temp:
        with log.open("wb") as file:
            process = subprocess.Popen(
                [RAY, *arguments, f"--temp-dir={temp}"],
                env=ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        try:
            wait_for(f"http://127.0.0.1:{dashboard}/api/version", process, log)
            yield f"http://127.0.0.1:{dashboard}"
        finally:
            end(process)


class ServiceProcess:
    """`laminar serve`, which may be killed and started again on the same storage and port."""

    def __init__(self, folder: Path, ray_address: str, *options: str) -> None:
        self.folder, self.port, self.log = folder, free_port(), folder / "service.log"
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [
            *(LAMINAR, "serve", "--storage", str(folder / "jobs"), "--ray-address", ray_address),
            *("--port", str(self.port), "--cluster-python", sys.executable, *options),
        ]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as file:
            self.process = subprocess.Popen(
                self._command,
                # Ray's own variable names another cluster; --ray-address must win.
                env={**ENVIRONMENT, "RAY_ADDRESS": "192.0.2.1:6379"},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        wait_for(f"{self.url}/healthz", self.process, self.log)

    def kill(self) -> None:
        """As the kernel does when memory is short: no goodbye."""
        assert self.process is not None
        end(self.process)

    def terminate(self) -> int:
        """As `docker stop` does."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    @contextmanager
    def running(self) -> Iterator[ServiceProcess]:
        self.start()
        try:
            yield self
        finally:
            self.kill()
