"""Shared storage, through pyarrow's file systems: a folder is the first case, not the only one.

Files appear whole or not at all: written beside and renamed where there are folders, and object
stores publish an object when it is complete.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import parse_qsl

from pyarrow import fs

from laminar.errors import ConfigError

_CHUNK_BYTES = 1 << 22
_PUBLIC_KEYS = ("region", "scheme", "endpoint_override", "user", "replication", "enable_tls")
_OBJECT_STORES = ("s3", "gcs", "abfs")
"""Without folders: there is nothing to make before an object can be written."""


class Storage:
    """A folder of some file system.

    Args:
        filesystem: pyarrow's.
        root: The folder on it.
        where: Path or URI of the folder, as others can open it.
    """

    def __init__(self, filesystem: fs.FileSystem, root: str, where: str) -> None:
        self._fs, self.root, self._where = filesystem, root.rstrip("/"), where
        self._has_folders = filesystem.type_name not in _OBJECT_STORES
        if self._has_folders:
            self._fs.create_dir(self.root, recursive=True)
        else:
            self.root = self.root.lstrip("/")
            self._check_bucket(self.root.partition("/")[0])

    def _check_bucket(self, bucket: str) -> None:
        try:
            info = self._fs.get_file_info(bucket)
        except OSError:  # who may use a part of it may not ask about the whole
            return
        if info.type == fs.FileType.NotFound:
            raise FileNotFoundError(f"there is no bucket {bucket}")

    @classmethod
    def open(cls, where: str) -> Storage:
        """Open a folder, or what a URI such as `s3://bucket/path` names.

        Raises:
            ConfigError: There is nothing of that kind, it cannot be used, or the URI holds a
                secret.
        """
        _check_no_secret(where)
        try:
            if "://" not in where:
                path = str(Path(where).expanduser().resolve())
                return cls(fs.LocalFileSystem(), path, path)
            filesystem, path = fs.FileSystem.from_uri(where)
            is_local = isinstance(filesystem, fs.LocalFileSystem)
            return cls(filesystem, path, path if is_local else where)
        except (OSError, ValueError) as error:
            raise ConfigError(
                "--storage must be a folder that can be written to, or a URI that pyarrow knows",
                got=f"{where}: {error}",
                fix="mend it",
            ) from error

    @property
    def is_local(self) -> bool:
        """Whether it is a folder that this machine sees."""
        return isinstance(self._fs, fs.LocalFileSystem)

    def path(self, name: str) -> str:
        """Return the whole path of a file, for those who read it by themselves."""
        return f"{self.root}/{name}"

    def uri(self, name: str = "") -> str:
        """Return what `open` takes to open a folder within this one."""
        base, mark, query = self._where, "", ""
        if "://" in base:  # a folder's own name may hold a question mark
            base, mark, query = base.partition("?")
        return "/".join(part for part in (base.rstrip("/"), name) if part) + mark + query

    def read(self, name: str) -> bytes | None:
        """Return a file's content, None where there is none."""
        return self.read_from(name, 0, None)

    def read_from(self, name: str, start: int, num_bytes: int | None) -> bytes | None:
        """Return up to so many bytes of a file from `start` on, None where there is no file."""
        try:
            with self._fs.open_input_file(self.path(name)) as file:
                size = file.size()
                if start >= size:
                    return b""
                file.seek(start)
                content: bytes = file.read(size - start if num_bytes is None else num_bytes)
                return content
        except (FileNotFoundError, NotADirectoryError):
            return None

    def size(self, name: str) -> int | None:
        """Return a file's size in bytes, None where there is none."""
        info = self._fs.get_file_info(self.path(name))
        return info.size if info.type == fs.FileType.File else None

    def write(self, name: str, content: bytes) -> None:
        """Write a file whole, on disk when this returns."""
        path = self.path(name)
        if self.is_local:
            write_durably(Path(path), content)
            return
        self._make_parent(name)
        with self._fs.open_output_stream(path) as file:
            file.write(content)

    def _make_parent(self, name: str) -> None:
        if self._has_folders:
            self._fs.create_dir(str(PurePosixPath(self.path(name)).parent), recursive=True)

    def upload(self, source: Path, name: str) -> None:
        """Write a local file, of any size."""
        if source.stat().st_size <= _CHUNK_BYTES:
            self.write(name, source.read_bytes())
            return
        self._make_parent(name)
        try:
            with source.open("rb") as file, self._fs.open_output_stream(self.path(name)) as target:
                shutil.copyfileobj(file, target, _CHUNK_BYTES)
        except BaseException:  # closing a stream publishes what it was given
            with contextlib.suppress(OSError):
                self.remove_file(name)
            raise

    def download(self, name: str, target: Path) -> None:
        """Fetch a file of any size; FileNotFoundError where there is none."""
        with self._fs.open_input_stream(self.path(name)) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, _CHUNK_BYTES)

    def open_file(self, name: str) -> tuple[IO[bytes], int] | None:
        """Open a file; return it and its size, None where there is none."""
        try:
            file = self._fs.open_input_file(self.path(name))
            return file, file.size()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def names(self, folder: str = "") -> list[str]:
        """Return the names of a folder's entries, sorted; none where there is no folder."""
        selector = fs.FileSelector(self.path(folder).rstrip("/"), allow_not_found=True)
        return sorted(info.base_name for info in self._fs.get_file_info(selector))

    def files(self, folder: str) -> list[tuple[str, int]]:
        """Return path within the folder and size of all files under it, sorted."""
        base = PurePosixPath(self.path(folder))
        selector = fs.FileSelector(str(base), allow_not_found=True, recursive=True)
        found: list[Any] = self._fs.get_file_info(selector)
        return sorted(
            (str(PurePosixPath(info.path).relative_to(base)), info.size)
            for info in found
            if info.type == fs.FileType.File
        )

    def remove(self, folder: str) -> None:
        """Delete a folder and all in it, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.delete_dir(self.path(folder))

    def remove_file(self, name: str) -> None:
        """Delete a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.delete_file(self.path(name))


def _check_no_secret(where: str) -> None:
    """Refuse what would be passed on to the cluster, shown on pages and logged."""
    scheme, mark, rest = where.partition("://")
    if not mark:
        return
    address, _, query = rest.partition("?")
    odd = [key for key, _ in parse_qsl(query) if key not in _PUBLIC_KEYS]
    if ":" in address.rpartition("@")[0] or odd:
        raise ConfigError(
            "--storage must hold no secret",
            got=f"{scheme}://... with {odd[0] if odd else 'a password'}",
            expected=f"none but {', '.join(_PUBLIC_KEYS)} behind the question mark",
            fix="leave it out, and set the environment variables of the store (AWS_ACCESS_KEY_ID "
            "and AWS_SECRET_ACCESS_KEY for s3) for the service and for all nodes",
        )


def write_durably(path: Path, content: bytes) -> None:
    """Write a file beside its place, then rename it: there whole, even after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
