"""A Ray cluster of two nodes and a service, started by the scripts that deployments use."""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests import object_store
from tests.end_to_end.namespaces import Node, namespaces, why_no_namespaces
from tests.end_to_end.processes import (
    REPOSITORY,
    START_S,
    ScriptProcess,
    ServiceProcess,
    free_port,
)

BIN = Path(sys.executable).parent
_NODE_HEALTH = "52365/api/local_raylet_healthz"


@dataclass(frozen=True)
class Deployment:
    """A service that answers, of a cluster whose head does."""

    service: ServiceProcess
    nodes: tuple[ScriptProcess, ...]
    """The head first."""
    why_one_machine: str
    """Why the nodes share this one's network; empty where each has its own."""
    address: str
    """Of this machine, as the nodes see it."""
    environment: dict[str, str]
    """Of services."""
    ray_files: Path
    """Where Ray has its sockets and logs, of all nodes."""

    @property
    def num_nodes(self) -> int:
        return len(self.nodes)

    @contextmanager
    def another_service(
        self, folder: Path, storage: str, *options: str, code: Path = REPOSITORY
    ) -> Iterator[ServiceProcess]:
        """Run a second service of the same cluster, with the Laminar of a folder."""
        environment = {**self.environment, "PYTHONPATH": str(code)}
        service = ServiceProcess(folder, environment, *options, storage=storage)
        try:
            service.start()
            service.wait()
            yield service
        finally:
            service.kill()

    def wait_for_nodes(self) -> None:
        """Wait until all are healthy; a test that needs only the head goes on meanwhile."""
        _wait(self.nodes)

    def lose_cluster(self) -> None:
        """Kill the head, and the worker, which without it ends some time; start them again."""
        for node in self.nodes:
            node.kill()
        self.wait_for_nodes()


@contextmanager
def deployment(
    folder: Path, *options: str, num_cpus: int = 2, has_tokens: bool = False
) -> Iterator[Deployment]:
    """Start a head, a worker and a service side by side; end them, and all that they started.

    The nodes are in network namespaces of their own; the worker may still be starting. Where
    namespaces are not allowed both are in that of this process, on ports of their own. Ray talks
    to those alone who have its token.

    Args:
        folder: For storage, logs and the token; must be empty.
        options: Of `laminar serve`.
        num_cpus: That Ray may give away, half of them on each node.
        has_tokens: Whether the service lets in only who has its token.
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
            nodes, dashboard = _two_raylets(folder, environment, num_cpus)
        else:
            places = stack.enter_context(namespaces())
            nodes, dashboard = _two_nodes(places, folder, environment, num_cpus)
            address = places[0].gateway
        environment = {**environment, "LAMINAR_RAY_ADDRESS": dashboard}
        service = ServiceProcess(folder, environment, *options, has_tokens=has_tokens)
        for process in (*nodes, service):
            stack.callback(process.kill)
        service.start()  # it waits for a cluster
        head, *workers = nodes
        _wait([head])
        for worker in workers:  # which give up where there is no head yet
            worker.start()
        service.wait()
        yield Deployment(service, tuple(nodes), why, address, environment, Path(temp))


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


def _two_raylets(
    folder: Path, environment: dict[str, str], num_cpus: int
) -> tuple[list[ScriptProcess], str]:
    """Return head and worker of one machine, and the address of the dashboard.

    On ports that nobody else has here; those of Ray's workers it looks for itself then.
    """
    dashboard, port = free_port(), free_port()
    agents = [free_port(), free_port()]
    settings = {**environment, "LAMINAR_NUM_CPUS": str(num_cpus // 2)}
    options = ("--min-worker-port=0", "--max-worker-port=0")
    of_head = {"LAMINAR_RAY_PORT": str(port), "LAMINAR_DASHBOARD_PORT": str(dashboard)}
    of_worker = {"LAMINAR_HEAD": f"127.0.0.1:{port}"}
    checks = [f"{agent}/api/local_raylet_healthz" for agent in agents]
    return [
        ScriptProcess(
            f"{name}.sh",
            folder / f"{name}.log",
            health,
            settings | own,
            *options,
            f"--dashboard-agent-listen-port={agent}",
        )
        for name, own, health, agent in (
            ("head", of_head, (f"{dashboard}/api/gcs_healthz", checks[0]), agents[0]),
            ("worker", of_worker, (checks[1],), agents[1]),
        )
    ], f"http://127.0.0.1:{dashboard}"
