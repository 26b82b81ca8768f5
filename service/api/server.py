"""`laminar serve`: the service as a process."""

from __future__ import annotations

import ipaddress
import logging
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn

from laminar.errors import ConfigError, UserError
from laminar.storage import Storage
from service.api.app import create_app
from service.api.auth import Tokens
from service.api.context import ApiSettings, Context
from service.jobs.cluster import RayJobs
from service.jobs.estimate import Planner, PlannerBusy
from service.jobs.manager import JobManager
from service.jobs.only_service import only_service
from service.jobs.settings import Settings
from service.jobs.store import JobStore

_log = logging.getLogger("laminar.service")

_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]", "::1")
_GOODBYE_S = 5
_BACKLOG = 512


@dataclass(frozen=True)
class ServeOptions:
    """What `laminar serve` is told."""

    storage: str
    ray_address: str
    host: str = "127.0.0.1"
    port: int = 8484
    tokens: Path | None = None
    host_names: tuple[str, ...] = ()
    data_roots: tuple[Path, ...] = ()
    cluster_python: str = "python"
    ship_code: bool = False
    max_active_per_user: int = 8
    max_queued_per_user: int = 1000


class _Server(uvicorn.Server):
    """Lets live streams end when the service is told to, not when their jobs do."""

    def __init__(self, config: uvicorn.Config, context: Context) -> None:
        super().__init__(config)
        self._context = context

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._context.is_closing = True
        super().handle_exit(sig, frame)


def serve(options: ServeOptions) -> None:
    """Serve until SIGTERM or SIGINT; jobs go on without the service.

    Raises:
        UserError: The options do not fit, or another service uses the storage.
    """
    tokens = _check_access(options)
    roots = tuple(_check_root(root) for root in options.data_roots)
    storage = Storage.open(options.storage)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    cluster = RayJobs(
        options.ray_address, python=options.cluster_python, ship_code=options.ship_code
    )
    with only_service(storage), _listening(options) as listener:
        store, planner = JobStore(storage), Planner()
        for name in store.unreadable:
            _log.warning("the folder %s looks like a job and cannot be read", name)
        limits = Settings(
            data_roots=roots,
            max_active_per_user=options.max_active_per_user,
            max_queued_per_user=options.max_queued_per_user,
        )
        hosts = () if "*" in options.host_names else (*_LOOPBACK_NAMES, *options.host_names)
        app = create_app(
            JobManager(store, cluster, planner, limits),
            tokens=tokens,
            settings=ApiSettings(hosts=hosts),
            dispatch_s=1.0,
        )
        threading.Thread(target=_warm_up, args=(planner,), daemon=True).start()
        _log.info("%d jobs in %s", len(store.ids()), storage.uri())
        _log.info("listening on http://%s:%d", options.host, listener.getsockname()[1])
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # a rate limit by a header that anybody can write is none
            timeout_graceful_shutdown=_GOODBYE_S,
        )
        # When it has said goodbye uvicorn raises the signal again, which must not end us here.
        signal.signal(signal.SIGTERM, lambda number, frame: None)
        try:
            _Server(config, app.state.context).run(sockets=[listener])
        finally:
            planner.close()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_access(options: ServeOptions) -> Tokens | None:
    """Refuse to let in strangers.

    Raises:
        ConfigError: Others can reach the address, and there is no token.
    """
    tokens = None if options.tokens is None else Tokens(options.tokens)
    if tokens is not None and not tokens.read():
        raise ConfigError(
            "--tokens must be a file with a token at least",
            got=f"none in {options.tokens}",
            fix=f"laminar token create --file {options.tokens} --user NAME --role admin",
        )
    if tokens is None and not is_loopback(options.host):
        raise ConfigError(
            "an address that others can reach must be served with --tokens",
            got=f"--host {options.host} without tokens",
            fix="make a token with `laminar token create`, or leave --host out for this machine",
        )
    return tokens


def _check_root(root: Path) -> Path:
    found = root.expanduser().resolve()
    if not found.is_dir() or found == Path(found.anchor):
        raise ConfigError(
            "--data-root must be a folder below the root of the file system",
            got=root,
            fix="name the folder that holds the data sets",
        )
    return found


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    It says that it is of TCP, unlike those of `socket.create_server`: asyncio sends at once,
    without waiting for acknowledgements, only where it knows that; each answer took 40 ms more.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


@contextmanager
def _listening(options: ServeOptions) -> Iterator[socket.socket]:
    try:
        listener = listen(options.host, options.port)
    except OSError as error:
        raise ConfigError(
            "--host and --port must be free to listen on",
            got=f"{options.host}:{options.port}: {error.strerror}",
            fix="choose another port",
        ) from error
    with listener:
        yield listener


def _warm_up(planner: Planner) -> None:
    try:
        planner.warm_up()
    except UserError:
        _log.exception("the planner cannot plan the default configuration")
    except PlannerBusy as error:
        _log.info("the planner is not warm: %s", error)
