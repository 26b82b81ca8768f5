"""The cluster as jobs see it, and Ray's, over its dashboard's HTTP port alone.

The service never joins the cluster: it stays up when the head goes, and holds none of its room.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from laminar.errors import ResourceError
from service.jobs.models import NodeInfo, Versions

if TYPE_CHECKING:
    from service.jobs.ray_client import TimedClient

DriverState = Literal["pending", "running", "ended", "absent"]
"""`absent`: the cluster does not know it, because it was never submitted or the head was lost."""

PACKAGES = ("laminar", "actors", "service", "tuning")
"""What `ship_code` sends to the cluster."""

PROBE_MARK = "LAMINAR_VERSIONS "
_PROBE_S = 120.0
_ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"


class ClusterUnreachable(Exception):  # noqa: N818 - a state of the world
    """The cluster does not answer; what was asked for may or may not have happened."""


class SubmissionRefused(Exception):  # noqa: N818
    """The cluster answers, and will not run it."""


@dataclass(frozen=True)
class ClusterState:
    """What the cluster has and what of it is in use."""

    nodes: tuple[NodeInfo, ...]
    cpus_used: float
    gpus_used: float


class Cluster(Protocol):
    """What the service needs of a cluster. Every method may raise ClusterUnreachable."""

    def state(self) -> ClusterState:
        """Return its living nodes, and what is in use."""

    def session(self) -> str:
        """Return the name of its head's life: drivers of another one are gone for good."""

    def versions(self) -> Versions | None:
        """Return what runs there, or None while that is being found out."""

    def submit(self, submission_id: str, home: str, attempt: int) -> None:
        """Start a driver of the job whose home this is, unless one was started under this name.

        Raises:
            SubmissionRefused: It will never run.
        """

    def driver(self, submission_id: str) -> tuple[DriverState, str]:
        """Return where a driver stands, and what the cluster says of it."""

    def stop(self, submission_id: str) -> None:
        """Kill a driver, if it lives."""

    def forget(self, submission_id: str) -> None:
        """Let the cluster forget a driver that has ended."""


class RayJobs:
    """A Ray cluster, through its Jobs API.

    Where `RAY_AUTH_MODE` is `token`, Ray's own client takes the token from `RAY_AUTH_TOKEN`,
    `RAY_AUTH_TOKEN_PATH` or `~/.ray/auth_token` and sends it with every request.

    Args:
        address: Of its dashboard, `http://HOST:8265`.
        python: The Python of the cluster's nodes.
        ship_code: Send this machine's Laminar along with every job, where no image holds it.
    """

    def __init__(self, address: str, *, python: str = "python", ship_code: bool = False) -> None:
        if not address.startswith(("http://", "https://")):
            raise ResourceError(
                "--ray-address must be that of the cluster's dashboard",
                got=address,
                fix="write http://HOST:8265",
            )
        self._address, self._python = address.rstrip("/"), python
        self._runtime_env = {"py_modules": _own_packages()} if ship_code else {}
        self._client: TimedClient | None = None
        self._lock = threading.Lock()
        self._session, self._probe, self._probed_at = "", "", 0.0
        self._versions: Versions | None = None

    def state(self) -> ClusterState:
        """Return the living nodes, from Ray's state API, and what is in use."""
        query = "?limit=10000&detail=1&filter_keys=state&filter_predicates=%3D&filter_values=ALIVE"
        listed = self._get(f"/api/v0/nodes{query}")["data"]["result"]["result"]
        nodes = tuple(_node(node.get("resources_total") or {}) for node in listed)
        status = self._get("/api/cluster_status")["data"].get("clusterStatus") or {}
        usage = (status.get("loadMetricsReport") or {}).get("usage") or {}
        used = {kind: float((usage.get(kind) or [0.0])[0]) for kind in ("CPU", "GPU")}
        return ClusterState(nodes, used["CPU"], used["GPU"])

    def session(self) -> str:
        """Return Ray's name for the session, which every start of a head makes anew."""
        return str(self._get("/api/version").get("session_name"))

    def versions(self) -> Versions | None:
        """Ask once in the life of a head: a job that prints them, as only a process there knows."""
        session = self.session()
        if session != self._session:
            self._session, self._versions = session, None
            self._probe = f"laminar-probe-{uuid.uuid4().hex[:12]}"
            self._probed_at = time.monotonic()
            self._run(self._probe, f"{shlex.quote(self._python)} -P -m service.jobs.probe")
        if self._versions is None and self._probe:
            self._versions = self._read_probe()
        return self._versions

    def _read_probe(self) -> Versions | None:
        state, message = self.driver(self._probe)
        if state == "ended":
            output: str = self._call("get_job_logs", self._probe)
            for line in output.splitlines():
                if line.startswith(PROBE_MARK):
                    self.forget(self._probe)
                    return Versions.model_validate(json.loads(line.removeprefix(PROBE_MARK)))
            self._probe = ""
            raise SubmissionRefused(f"{message} {output}".strip()[-500:])
        if time.monotonic() - self._probed_at > _PROBE_S:
            self._session = ""
        return None

    def submit(self, submission_id: str, home: str, attempt: int) -> None:
        """Start `python -P -m service.jobs.entry HOME ATTEMPT`, unless it was started before."""
        # -P: shipped code comes before what lies in the folder that Ray was started in.
        command = [self._python, "-P", "-m", "service.jobs.entry", home, str(attempt)]
        self._run(submission_id, shlex.join(command))

    def _run(self, submission_id: str, command: str) -> None:
        try:
            self._call(
                "submit_job",
                entrypoint=command,
                submission_id=submission_id,
                runtime_env=dict(self._runtime_env),
            )
        except RuntimeError as error:
            # Ray answers a name that it has seen with an error 500 of many lines.
            if self.driver(submission_id)[0] == "absent":
                raise SubmissionRefused(_last_line(error)) from error

    def driver(self, submission_id: str) -> tuple[DriverState, str]:
        """Return where Ray says a driver is."""
        try:
            info = self._call("get_job_info", submission_id)
        except RuntimeError as error:
            if "does not exist" in str(error):
                return "absent", "the cluster does not know it"
            raise ClusterUnreachable(_last_line(error)) from error
        states: dict[str, DriverState] = {"PENDING": "pending", "RUNNING": "running"}
        return states.get(str(info.status), "ended"), str(info.message or "")

    def stop(self, submission_id: str) -> None:
        """Let Ray terminate a driver, and kill it a few seconds later."""
        try:
            self._call("stop_job", submission_id)
        except RuntimeError as error:
            if "does not exist" not in str(error):
                raise ClusterUnreachable(_last_line(error)) from error

    def forget(self, submission_id: str) -> None:
        """Let Ray forget a driver; one that still ends is forgotten some other time, or never."""
        try:
            self._call("delete_job", submission_id)
        except RuntimeError:
            return

    def _call(self, method: str, *arguments: Any, **named: Any) -> Any:
        with self._reached() as client:
            return getattr(client, method)(*arguments, **named)

    def _get(self, path: str) -> dict[str, Any]:
        with self._reached() as client:
            # Ray's client has the headers of its authentication; it has no public way to get.
            answer = client._do_request("GET", path)
            answer.raise_for_status()
            found: dict[str, Any] = answer.json()
            return found

    @contextlib.contextmanager
    def _reached(self) -> Iterator[TimedClient]:
        """Turn what goes wrong on the way into ClusterUnreachable; answers of Ray's pass."""
        import requests
        from ray.exceptions import AuthenticationError

        try:
            yield self._connected()
        except AuthenticationError as error:
            self._client = None
            raise ClusterUnreachable("the cluster does not take the token of Ray's") from error
        except (ConnectionError, requests.exceptions.RequestException) as error:
            self._client = None
            raise ClusterUnreachable(_last_line(error)) from error

    def _connected(self) -> TimedClient:
        with self._lock:
            if self._client is None:
                from service.jobs.ray_client import TimedClient

                try:
                    with _only(self._address):
                        self._client = TimedClient(self._address)
                except RuntimeError as error:
                    raise ConnectionError(_last_line(error)) from error
            return self._client


@contextlib.contextmanager
def _only(address: str) -> Iterator[None]:
    """Let Ray's client take this address: variables of Ray's would win over its argument."""
    before = os.environ.get(_ADDRESS_VARIABLE)
    os.environ[_ADDRESS_VARIABLE] = address
    try:
        yield
    finally:
        if before is None:
            del os.environ[_ADDRESS_VARIABLE]
        else:
            os.environ[_ADDRESS_VARIABLE] = before


def _node(resources: dict[str, float]) -> NodeInfo:
    return NodeInfo(cpus=resources.get("CPU", 0.0), gpus=resources.get("GPU", 0.0))


def _own_packages() -> list[str]:
    """Return the folders of Laminar's packages on this machine."""
    here = Path(__file__).parents[2]
    return [str(here / name) for name in PACKAGES]


def _last_line(error: Exception) -> str:
    lines: Sequence[str] = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
