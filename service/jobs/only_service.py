"""One service to a storage: two would start every job twice."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from laminar.errors import ConfigError
from laminar.storage import Storage

_log = logging.getLogger("laminar.service")

LEASE_S = 20.0
_RENEW_S = 4.0
_LOOK_S = 0.5
_MEETING_S = 1.5
_FILE, _LEASE = ".service.lock", "service.lease"


@contextmanager
def only_service(storage: Storage) -> Iterator[None]:
    """Keep other services from a storage within the block.

    Raises:
        ConfigError: One is there already.
    """
    held = _locked(Path(storage.root)) if storage.is_local else leased(storage)
    with held:
        yield


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = os.open(folder / _FILE, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _taken(str(folder)) from None
        yield
    finally:
        os.close(lock)


@contextmanager
def leased(
    storage: Storage,
    lease_s: float = LEASE_S,
    lost: Callable[[], None] = lambda: os.kill(os.getpid(), signal.SIGTERM),
) -> Iterator[None]:
    """Hold a file that is written anew every few seconds, as object stores have no locks.

    Who finds one waits to see whether it changes, so that no two clocks are compared: a service
    that was killed is followed after `lease_s`, one that ended properly at once.

    Args:
        storage: Where it is.
        lease_s: How long a file must stay as it is to be nobody's.
        lost: Called when somebody else has taken it, or may have: after a pause of this process,
            or of the store.
    """
    name = uuid.uuid4().hex
    _wait_for_silence(storage, lease_s)
    try:
        _write(storage, name, 0)
    except OSError as error:
        raise ConfigError(
            "--storage must be a place that can be written to", got=error, fix="mend it"
        ) from error
    time.sleep(min(_MEETING_S, lease_s))  # for whoever began at the same moment
    if _owner(storage) != name:
        raise _taken(storage.uri())
    is_over = threading.Event()
    arguments = (storage, name, lease_s, is_over, lost)
    thread = threading.Thread(target=_renew, args=arguments, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        with suppress(OSError):
            if _owner(storage) == name:
                storage.remove_file(_LEASE)


def _wait_for_silence(storage: Storage, lease_s: float) -> None:
    first, deadline = storage.read(_LEASE), time.monotonic() + lease_s
    if first is not None:
        _log.info("a service was here; waiting %.0f s to see whether it still is", lease_s)
    while first is not None and time.monotonic() < deadline:
        time.sleep(_LOOK_S)
        found = storage.read(_LEASE)
        if found is None:
            return
        if found != first:
            raise _taken(storage.uri())


def _renew(
    storage: Storage,
    name: str,
    lease_s: float,
    is_over: threading.Event,
    lost: Callable[[], None],
) -> None:
    count, renewed_s = 0, time.monotonic()
    while not is_over.wait(min(_RENEW_S, lease_s / 4)):
        try:
            if _owner(storage) != name:
                _log.error("another service has taken the storage; this one ends")
                return lost()
            if time.monotonic() - renewed_s < lease_s:
                count += 1
                _write(storage, name, count)
                renewed_s = time.monotonic()
        except Exception as error:
            _log.warning("the storage did not answer: %s", error)
        if time.monotonic() - renewed_s >= lease_s:
            _log.error("the storage did not answer for %.0f s; this service ends", lease_s)
            return lost()
    return None


def _write(storage: Storage, name: str, count: int) -> None:
    storage.write(_LEASE, f"{name} {count}\n".encode())


def _owner(storage: Storage) -> str | None:
    content = storage.read(_LEASE)
    return None if content is None else content.decode().partition(" ")[0]


def _taken(where: str) -> ConfigError:
    return ConfigError(
        "only one service may use a storage at a time",
        got=f"another one uses {where}",
        fix="stop it, or give another --storage",
    )
