"""A run directory that lies in an object store, where machines share no folder.

Driver and coordinator work in a folder of the machine they are both on, and a thread of the driver
copies to the store what they write there. Stages are anywhere: they write their parts of a
checkpoint straight to the store and read them from it. All processes of the run are told by an
environment variable.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from laminar.storage import Storage

_log = logging.getLogger("laminar")

_VARIABLE = "LAMINAR_MIRROR"
_PART = ".safetensors"
_MANIFEST = "manifest.json"
_PERIOD_S = 1.0
_BYTES_PER_S = 1e6
"""Of one file: object stores cannot append, so a log that grows is written whole each time."""
_LAST_TRIES_S = (1.0, 2.0, 5.0, 10.0, 20.0, 20.0)


@dataclass(frozen=True)
class Mirror:
    """A folder and what it is in the store."""

    folder: Path
    """On the driver's machine; elsewhere only a name."""
    uri: str

    @classmethod
    def of(cls, path: Path) -> Mirror | None:
        """Return the one that a path lies in, None where there is none."""
        said = os.environ.get(_VARIABLE)
        if said is None:
            return None
        found = json.loads(said)
        mirror = cls(Path(found["folder"]), found["uri"])
        return mirror if path.is_relative_to(mirror.folder) else None

    def environment(self) -> dict[str, str]:
        """Return what tells a process of it."""
        return {_VARIABLE: json.dumps({"folder": str(self.folder), "uri": self.uri})}

    @property
    def storage(self) -> Storage:
        """The folder in the store."""
        return _opened(self.uri)

    def upload(self, source: Path, path: Path) -> None:
        """Write a file to the place in the store that a path in the folder has."""
        self.storage.upload(source, path.relative_to(self.folder).as_posix())

    def download(self, path: Path, target: Path) -> None:
        """Fetch what a path in the folder has in the store; FileNotFoundError where nothing is."""
        self.storage.download(path.relative_to(self.folder).as_posix(), target)

    def remove(self, folder: Path) -> None:
        """Delete in the store what a folder has there; of a checkpoint the manifest first."""
        name = folder.relative_to(self.folder).as_posix()
        self.storage.remove_file(f"{name}/{_MANIFEST}")
        self.storage.remove(name)


@functools.cache
def _opened(uri: str) -> Storage:
    from laminar.storage import Storage  # and pyarrow, which others do without

    return Storage.open(uri)


@dataclass
class Copier:
    """Fetches a mirror's folder, then copies to the store what is written there.

    It deletes nothing: what is gone from a temporary folder may have been tidied away.
    """

    mirror: Mirror
    fetched: Callable[[str], bool]
    """Whether a file is wanted in the folder."""
    kept: Sequence[str]
    """Files of the store that are never written."""
    _copied: dict[str, tuple[int, int]] = field(default_factory=dict)
    """What the store holds, by time and size as it was here."""
    _copied_s: dict[str, float] = field(default_factory=dict)
    _is_settling: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def fetch(self) -> None:
        """Fill the folder; delete in the store the parts of checkpoints that never came to be."""
        storage, names = self.mirror.storage, [name for name, _ in self.mirror.storage.files("")]
        published = {str(PurePosixPath(name).parent) for name in names if _is_manifest(name)}
        parts = [name for name in names if name.endswith(_PART)]
        for folder in {str(PurePosixPath(name).parent) for name in parts} - published:
            storage.remove(folder)
        for name in names:
            if not name.endswith(_PART) and self.fetched(name):
                target = self.mirror.folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                storage.download(name, target)
        self._copied = dict(self._scan())

    def start(self) -> None:
        """Copy from now on, about once a second."""
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)
        self._thread.start()

    def settle(self) -> None:
        """Copy what is left, and no more by itself.

        Raises:
            OSError: The store did not take it, again and again.
        """
        self._is_settling.set()
        if self._thread is not None:
            self._thread.join()
        for pause_s in _LAST_TRIES_S:
            try:
                return self.copy(is_whole=True)
            except OSError as error:
                _log.warning("the storage did not answer: %s", error)
                time.sleep(pause_s)
        return self.copy(is_whole=True)

    def _run(self) -> None:
        while not self._is_settling.wait(_PERIOD_S):
            try:
                self.copy()
            except OSError as error:  # a later round makes up for it
                _log.warning("the storage did not answer: %s", error)

    def copy(self, *, is_whole: bool = False) -> None:
        """Copy what has changed; unless whole, large files now and then.

        A checkpoint is there with its manifest. So manifests come last, as they are before anything
        else is copied: what was written before them is in the store then.
        """
        storage, found = self.mirror.storage, dict(self._scan())
        changed = [name for name, state in found.items() if self._copied.get(name) != state]
        manifests = dict(self._read_all(n for n in changed if _is_manifest(n)))
        is_whole = is_whole or bool(manifests)
        for name in changed:
            path = self.mirror.folder / name
            if not _is_manifest(name) and (is_whole or self._is_due(name, found[name][1])):
                try:
                    storage.upload(path, name)
                except FileNotFoundError:
                    if path.exists():
                        raise
                else:
                    self._note(name, found[name])
        for name, content in manifests.items():
            storage.write(name, content)
            self._note(name, found[name])
            if not (self.mirror.folder / name).exists():  # pruned since
                storage.remove_file(name)

    def _note(self, name: str, state: tuple[int, int]) -> None:
        self._copied[name], self._copied_s[name] = state, time.monotonic()

    def _is_due(self, name: str, num_bytes: int) -> bool:
        since_s = time.monotonic() - self._copied_s.get(name, 0.0)
        return since_s >= num_bytes / _BYTES_PER_S

    def _read_all(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                yield name, (self.mirror.folder / name).read_bytes()

    def _scan(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Yield name, time and size of the files to copy; temporary ones are not among them."""
        for folder, _, names in os.walk(self.mirror.folder):
            for name in names:
                path = Path(folder, name)
                relative = path.relative_to(self.mirror.folder).as_posix()
                if name.startswith(".") or name.endswith((".tmp", _PART)) or relative in self.kept:
                    continue
                with contextlib.suppress(FileNotFoundError):
                    if not path.is_symlink():
                        info = path.stat()
                        yield relative, (info.st_mtime_ns, info.st_size)


def _is_manifest(name: str) -> bool:
    return PurePosixPath(name).name == _MANIFEST
