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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from laminar.errors import ConfigError
from laminar.run_directory import MANIFEST

if TYPE_CHECKING:
    from laminar.storage import Storage

_log = logging.getLogger("laminar")

_VARIABLE = "LAMINAR_MIRROR"
_PART = ".safetensors"
_PERIOD_S = 1.0
_BYTES_PER_S = 1e6
"""Of one file: object stores cannot append, so a log that grows is written whole each time."""
_PAUSES_S = (1.0, 2.0, 5.0, 10.0)
"""Between tries of what must not fail because a store is away for a moment."""


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

    def name(self, path: Path) -> str:
        """Return what a path in the folder is called in the store."""
        return path.relative_to(self.folder).as_posix()

    def upload(self, source: Path, path: Path) -> None:
        """Write a file to the place in the store that a path in the folder has."""
        _insist(lambda: self.storage.upload(source, self.name(path)))

    def download(self, path: Path, target: Path) -> None:
        """Fetch what a path in the folder has in the store; FileNotFoundError where nothing is."""
        _insist(lambda: self.storage.download(self.name(path), target))

    def has(self, path: Path) -> bool:
        """Whether a file is in the store."""
        return self.storage.size(self.name(path)) is not None

    def remove(self, folder: Path) -> None:
        """Delete what a folder has in the store; of a checkpoint, the manifest first."""
        self.storage.remove_file(self.name(folder / MANIFEST))
        self.storage.remove(self.name(folder))


@functools.cache
def _opened(uri: str) -> Storage:
    from laminar.storage import Storage  # and pyarrow, which others do without

    try:
        return Storage.open(uri)
    except ConfigError as error:  # it could be opened when the job was taken
        raise OSError(str(error)) from error


def _insist(action: Callable[[], None]) -> None:
    """Do something, again and again while the store does not answer, for half a minute or so."""
    for pause_s in _PAUSES_S:
        try:
            return action()
        except FileNotFoundError:
            raise
        except OSError as error:
            _log.warning("the storage did not answer: %s", error)
            time.sleep(pause_s)
    return action()


@dataclass
class Copier:
    """Fetches a mirror's folder, then copies to the store what is written there.

    What is gone from the folder stays in the store: it is a temporary one, and may be tidied.
    """

    mirror: Mirror
    fetched: Callable[[str], bool]
    """Whether a file is wanted in the folder."""
    not_written: Sequence[str]
    """Files of the store that are others' to write."""
    _copied: dict[str, tuple[int, int]] = field(default_factory=dict)
    """What the store holds, by time and size as it was here."""
    _copied_s: dict[str, float] = field(default_factory=dict)
    _is_settling: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def fetch(self) -> None:
        """Fill the folder; delete in the store the parts of checkpoints that never came to be."""
        storage = self.mirror.storage
        names = [name for name, _ in storage.files("") if ".." not in name.split("/")]
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
        _insist(lambda: self.copy(is_whole=True))

    def _run(self) -> None:
        while not self._is_settling.wait(_PERIOD_S):
            try:
                self.copy()
            except Exception as error:  # whatever it is, a later round makes up for it
                _log.warning("not all could be copied to the storage: %s", error)

    def copy(self, *, is_whole: bool = False) -> None:
        """Copy what has changed; unless whole, large files now and then.

        A checkpoint is there with its manifest. So manifests are read before the folder is looked
        through, and written last: what was written before them is in the store then.

        Raises:
            OSError: Something could not be copied; no manifest was, then.
        """
        manifests = dict(self._changed_manifests())
        is_whole = is_whole or bool(manifests)
        failures = [
            error
            for name, state in list(self._scan())
            if not _is_manifest(name) and (is_whole or self._is_due(name, state[1]))
            if (error := self._copy_file(name, state)) is not None
        ]
        if failures:
            raise failures[0]
        # The newest first: with it alone the run can go on.
        for name, (content, state) in sorted(manifests.items(), reverse=True):
            path = self.mirror.folder / name
            if path.exists():
                self.mirror.storage.write(name, content)
                self._note(name, state)
            if not path.exists():  # pruned meanwhile
                self.mirror.storage.remove_file(name)

    def _copy_file(self, name: str, state: tuple[int, int]) -> OSError | None:
        """Copy a file if it has changed; return what went wrong, for others must not wait."""
        path = self.mirror.folder / name
        if self._copied.get(name) == state:
            return None
        try:
            self.mirror.storage.upload(path, name)
        except (OSError, ValueError) as error:  # the latter of names that pyarrow cannot take
            return OSError(f"{name!r}: {error}") if path.exists() else None
        self._note(name, state)
        return None

    def _changed_manifests(self) -> Iterator[tuple[str, tuple[bytes, tuple[int, int]]]]:
        for name, state in list(self._scan()):
            if _is_manifest(name) and self._copied.get(name) != state:
                with contextlib.suppress(FileNotFoundError):
                    yield name, ((self.mirror.folder / name).read_bytes(), state)

    def _note(self, name: str, state: tuple[int, int]) -> None:
        self._copied[name], self._copied_s[name] = state, time.monotonic()

    def _is_due(self, name: str, num_bytes: int) -> bool:
        since_s = time.monotonic() - self._copied_s.get(name, 0.0)
        return since_s >= num_bytes / _BYTES_PER_S

    def _scan(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Yield name, time and size of the files to copy; temporary ones are not among them."""
        for folder, _, names in os.walk(self.mirror.folder):
            for name in names:
                path = Path(folder, name)
                relative = path.relative_to(self.mirror.folder).as_posix()
                is_temporary = name.startswith(".") or name.endswith(".tmp")
                if is_temporary or name.endswith(_PART) or relative in self.not_written:
                    continue
                with contextlib.suppress(FileNotFoundError):
                    if not path.is_symlink():
                        info = path.stat()
                        yield relative, (info.st_mtime_ns, info.st_size)


def _is_manifest(name: str) -> bool:
    return PurePosixPath(name).name == MANIFEST
