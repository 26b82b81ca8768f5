"""A Ray cluster of two nodes and a service, started by the scripts that deployments use."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from tests import object_store
from tests.end_to_end.namespaces import Node, namespaces, why_no_namespaces

BIN = Path(sys.executable).parent
REPOSITORY = Path(__file__).parents[2]
SCRIPTS = REPOSITORY / "docker"
START_S = 240.0
_NODE_HEALTH = "52365/api/local_raylet_healthz"


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
    """

    def __init__(
        self, folder: Path, environment: dict[str, str], *options: str, storage: str | None = None
    ) -> None:
        self.storage, port = folder / "jobs", free_port()
        self.url = f"http://127.0.0.1:{port}"
        settings = {
            "LAMINAR_STORAGE": storage or str(self.storage),
            "LAMINAR_PORT": str(port),
            # Ray's own variable names another cluster; ours must win.
            "RAY_ADDRESS": "192.0.2.1:6379",
        }
        super().__init__(
            "service.sh",
            folder / "service.log",
            (f"{port}/healthz",),
            environment | settings,
            *options,
        )

    def terminate(self) -> int:
        """As `docker stop` does."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@dataclass(frozen=True)
class Deployment:
    """A service that answers, of a cluster whose head does."""

    service: ServiceProcess
    nodes: tuple[ScriptProcess, ...]
    """The head first."""
    why_one_node: str
    """Why there is only one; empty where there are two."""
    address: str
    """Of this machine, as the nodes see it."""
    environment: dict[str, str]
    """Of services."""

    @property
    def num_nodes(self) -> int:
        return len(self.nodes)

    @contextmanager
    def another_service(self, folder: Path, storage: str) -> Iterator[ServiceProcess]:
        """Run a second service of the same cluster."""
        service = ServiceProcess(folder, self.environment, storage=storage)
        try:
            service.start()
            service.wait()
            yield service
        finally:
            service.kill()

    def wait_for_nodes(self) -> None:
        """Wait until all are healthy; a test that needs only the head goes on meanwhile."""
        _wait(self.nodes)


@contextmanager
def deployment(folder: Path, *options: str, num_cpus: int = 2) -> Iterator[Deployment]:
    """Start a head, a worker and a service side by side; end them, and all that they started.

    The nodes are in network namespaces of their own; the worker may still be starting. Where
    namespaces are not allowed there is only the head, with all the CPUs. Ray talks to those alone
    who have its token.

    Args:
        folder: For storage, logs and the token; must be empty.
        options: Of `laminar serve`.
        num_cpus: That Ray may give away, on all nodes.
    """
    token = folder / "ray_token"
    token.write_text(secrets.token_hex(32))
    why = why_no_namespaces()
    with (
        # Unix sockets live there, whose paths must be short.
        tempfile.TemporaryDirectory(prefix="lr", dir="/tmp", ignore_cleanup_errors=True) as temp,
        ExitStack() as stack,
    ):
        environment = {
            **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": "1",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "LAMINAR_TEMP_DIR": temp,
            "LAMINAR_OBJECT_STORE_BYTES": "200000000",
            **object_store.ENVIRONMENT,
        }
        address = "127.0.0.1"
        if why:
            nodes, dashboard = _one_node(folder, environment, num_cpus)
        else:
            places = stack.enter_context(namespaces())
            nodes, dashboard = _two_nodes(places, folder, environment, num_cpus)
            address = places[0].gateway
        environment = {**environment, "LAMINAR_RAY_ADDRESS": dashboard}
        service = ServiceProcess(folder, environment, *options)
        for process in (*nodes, service):
            stack.callback(process.kill)
        service.start()  # it waits for a cluster
        head, *workers = nodes
        _wait([head])
        for worker in workers:  # which give up where there is no head yet
            worker.start()
        service.wait()
        yield Deployment(service, tuple(nodes), why, address, environment)


def _wait(nodes: Sequence[ScriptProcess]) -> None:
    """Wait until all are healthy, and start again what ends meanwhile, as compose does.

    Ray ends a node that is not up within thirty seconds, as on a busy machine, and a worker ends
    with its head.
    """
    deadline = time.monotonic() + START_S
    while not all(node.is_alive() and node.is_healthy() for node in nodes):
        for node in nodes:
            assert time.monotonic() < deadline, node.log.read_text()
            if not node.is_alive():
                node.start_again()
            if not node.is_healthy():
                break
        time.sleep(0.1)


def _two_nodes(
    places: tuple[Node, Node], folder: Path, environment: dict[str, str], num_cpus: int
) -> tuple[list[ScriptProcess], str]:
    """Return head and worker as compose has them, and the address of the dashboard."""
    head, worker = places
    cpus = {"LAMINAR_NUM_CPUS": str(num_cpus // 2)}
    of_head = folder / "tmp_of_head"  # where drivers work, if they share no folder with stages
    of_head.mkdir()
    return [
        ScriptProcess(
            "head.sh",
            folder / "head.log",
            ("8265/api/gcs_healthz", _NODE_HEALTH),  # the first answers before it is a node
            {
                **environment,
                **cpus,
                "TMPDIR": str(of_head),
                "LAMINAR_NODE_IP": head.address,
                "LAMINAR_DASHBOARD_HOST": "0.0.0.0",
            },
            node=head,
        ),
        ScriptProcess(
            "worker.sh",
            folder / "worker.log",
            (_NODE_HEALTH,),
            {
                **environment,
                **cpus,
                "LAMINAR_NODE_IP": worker.address,
                "LAMINAR_HEAD": f"{head.address}:6379",
            },
            node=worker,
            hidden=of_head,
        ),
    ], f"http://{head.address}:8265"


def _one_node(
    folder: Path, environment: dict[str, str], num_cpus: int
) -> tuple[list[ScriptProcess], str]:
    """Return a head on ports that nobody else on this machine has, and its dashboard's address."""
    dashboard = free_port()
    settings = {
        "LAMINAR_NUM_CPUS": str(num_cpus),
        "LAMINAR_RAY_PORT": str(free_port()),
        "LAMINAR_DASHBOARD_PORT": str(dashboard),
    }
    head = ScriptProcess(
        "head.sh",
        folder / "head.log",
        (f"{dashboard}/api/gcs_healthz",),
        environment | settings,
        f"--dashboard-agent-listen-port={free_port()}",
    )
    return [head], f"http://127.0.0.1:{dashboard}"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
