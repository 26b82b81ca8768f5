"""The scripts of `docker/` as processes of the tests: healthy, killed, started again."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import httpx
import psutil

from tests.end_to_end.namespaces import Node

REPOSITORY = Path(__file__).parents[2]
SCRIPTS = REPOSITORY / "docker"
START_S = 240.0


class ScriptProcess:
    """A script of `docker/`, which becomes the process that it starts.

    Args:
        script: Its name.
        log: Where its output goes.
        health: Port and path of its health checks.
        environment: All of it.
        options: Behind the script.
        node: Where to run it.
        hidden: A folder that is another, empty one there.
    """

    def __init__(
        self,
        script: str,
        log: Path,
        health: tuple[str, ...],
        environment: dict[str, str],
        *options: str,
        node: Node = Node(),  # noqa: B008 - frozen
        hidden: Path | None = None,
    ) -> None:
        # Each namespace of `ip netns exec` has mounts of its own.
        hide = ("sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(hidden))
        script = str(SCRIPTS / script)
        self._command = [*node.inside, *(hide if hidden else ()), script, *options]
        self._health = health
        self._environment, self.log, self._node = environment, log, node
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as file:
            self.process = subprocess.Popen(
                self._command,
                env=self._environment,
                cwd=self.log.parent,  # with no Laminar in it, which Python would find first
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                process_group=0,  # out of reach of Ctrl-C, within that of .ci/run
            )

    def start_again(self) -> None:
        """Start what ended; of what it started nothing is left."""
        self._node.clear()
        self.start()

    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def wait(self) -> None:
        """Wait until it is healthy."""
        deadline = time.monotonic() + START_S
        while not self.is_healthy():
            assert self.is_alive(), self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def is_healthy(self) -> bool:
        """Whether its health checks say so; to this process first, which is cheaper."""
        try:
            for check in self._health:
                url = f"http://{self._node.address}:{check}"
                # To verify, httpx reads all certificates that this machine trusts, at each call.
                if not httpx.get(url, timeout=5, verify=False).is_success:
                    return False
        except httpx.HTTPError:
            return False
        ask = [*self._node.inside, str(SCRIPTS / "health.sh")]
        return all(
            subprocess.run([*ask, f"http://127.0.0.1:{check}"], env=self._environment).returncode
            == 0
            for check in self._health
        )

    def kill(self) -> None:
        """As the kernel does when memory is short: no goodbye, and none from its children."""
        if self.process is None:
            return
        family = [psutil.Process(self.process.pid)] if self.process.poll() is None else []
        # Ray's daemons and jobs leave the group.
        family += [child for parent in family for child in parent.children(recursive=True)]
        for member in family:
            with suppress(psutil.Error):
                member.kill()
        self.process.wait()


class ServiceProcess(ScriptProcess):
    """The service, which may be killed and started again on the same storage and port.

    Args:
        folder: For its log, and for storage unless there is another.
        environment: All of it.
        options: Of `laminar serve`.
        storage: A URI.
        has_tokens: Whether it lets in only who has `token`.
    """

    def __init__(
        self,
        folder: Path,
        environment: dict[str, str],
        *options: str,
        storage: str | None = None,
        has_tokens: bool = False,
    ) -> None:
        self.storage, port = folder / "jobs", free_port()
        self.token_file = folder / "first_token" if has_tokens else None
        self.url = f"http://127.0.0.1:{port}"
        settings = {
            "LAMINAR_STORAGE": storage or str(self.storage),
            "LAMINAR_PORT": str(port),
            # Ray's own variable names another cluster; ours must win.
            "RAY_ADDRESS": "192.0.2.1:6379",
        }
        if self.token_file is not None:
            settings["LAMINAR_TOKENS"] = str(folder / "tokens.json")
            settings["LAMINAR_FIRST_TOKEN"] = str(self.token_file)
        super().__init__(
            "service.sh",
            folder / "service.log",
            (f"{port}/healthz",),
            environment | settings,
            *options,
        )

    @property
    def token(self) -> str | None:
        """What lets in, as an admin; None where nothing is needed."""
        return None if self.token_file is None else self.token_file.read_text().strip()

    def terminate(self) -> int:
        """As `docker stop` does."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
