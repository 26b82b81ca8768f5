"""Network namespaces, each a machine of its own as far as Ray can see."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

_NUM_NETWORKS = 250


@dataclass(frozen=True)
class Node:
    """A place for processes: a network namespace, or this process's own where there is none."""

    address: str = "127.0.0.1"
    gateway: str = "127.0.0.1"
    """The address of this process as it is seen there."""
    namespace: str | None = None

    @property
    def inside(self) -> tuple[str, ...]:
        """What to put before a command so that it runs there."""
        return () if self.namespace is None else ("ip", "netns", "exec", self.namespace)

    def clear(self) -> None:
        """Kill all that runs in the namespace; nothing that Ray starts leaves it."""
        # Until there are none: some may just have been started.
        while self.namespace is not None and (pids := _ip("netns", "pids", self.namespace)):
            for pid in map(int, pids.split()):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)


@contextmanager
def namespaces() -> Iterator[tuple[Node, Node]]:
    """Yield two that reach each other, and that this process reaches.

    Whatever still runs inside after the block is killed.
    """
    network = f"198.18.{os.getpid() % _NUM_NETWORKS}"  # RFC 2544: for tests, routed nowhere
    bridge = f"lam{os.getpid()}"
    with ExitStack() as stack:
        _ip("link", "add", bridge, "type", "bridge")
        stack.callback(_ip, "link", "del", bridge)
        _ip("addr", "add", f"{network}.1/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        one, other = (
            stack.enter_context(_namespace(f"{bridge}-{n}", bridge, network, n)) for n in (2, 3)
        )
        yield one, other


def why_no_namespaces() -> str:
    """Return why this process may not make any; empty where it may."""
    if shutil.which("ip") is None:
        return "there is no command `ip`"
    name = f"lam{os.getpid()}"
    try:
        _ip("netns", "add", name)
        _ip("link", "add", name, "type", "bridge")
    except subprocess.CalledProcessError as error:
        return str(error.stderr).strip()
    finally:
        for kind in ("link", "netns"):
            with suppress(subprocess.CalledProcessError):
                _ip(kind, "del", name)
    return ""


@contextmanager
def _namespace(name: str, bridge: str, network: str, number: int) -> Iterator[Node]:
    _ip("netns", "add", name)
    try:
        _ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("link", "set", name, "master", bridge, "up")
        _ip("-n", name, "addr", "add", f"{network}.{number}/24", "dev", "eth0")
        for link in ("eth0", "lo"):
            _ip("-n", name, "link", "set", link, "up")
        node = Node(f"{network}.{number}", f"{network}.1", name)
        try:
            yield node
        finally:
            node.clear()
    finally:
        _ip("netns", "del", name)


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
    return done.stdout
