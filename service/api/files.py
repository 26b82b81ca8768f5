"""Files of a job's run directory: no name leads out of it, neither by `..` nor by a link."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from laminar.run_directory import MANIFEST
from laminar.storage import Storage
from service.jobs.models import Artifact, Checkpoint
from service.jobs.store import RUN

_CHUNK_BYTES = 1 << 20
_MOST_PARTS = 32


def open_artifact(storage: Storage, job_id: str, path: str) -> tuple[IO[bytes], int] | None:
    """Open a file of a run directory.

    Args:
        storage: The jobs' storage.
        job_id: Of a job that exists.
        path: Within its run directory, as a stranger wrote it.

    Returns:
        The open file and its size, None where there is no such file or it is not a plain one.
    """
    parts = path.split("/")
    if len(parts) > _MOST_PARTS or any(not p or p in (".", "..") or "\0" in p for p in parts):
        return None
    if storage.is_local:
        return _open_beneath(Path(storage.path(job_id)), [RUN, *parts])
    return storage.open_file(f"{job_id}/{RUN}/{path}")  # object stores have neither links nor `..`


def _open_beneath(root: Path, parts: list[str]) -> tuple[IO[bytes], int] | None:
    """Walk down from a folder, following no link on the way, whoever changes what meanwhile."""
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in parts[:-1]:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = inner
        # Without blocking: a named pipe would keep us here for ever.
        found = os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except (OSError, ValueError):
        return None
    finally:
        os.close(folder)
    info = os.fstat(found)
    if not stat.S_ISREG(info.st_mode):
        os.close(found)
        return None
    return os.fdopen(found, "rb"), info.st_size


def chunks(file: IO[bytes], num_bytes: int) -> Iterator[bytes]:
    """Read so many bytes, and close the file at the end; what is appended meanwhile stays out."""
    with file:
        while num_bytes > 0 and (chunk := file.read(min(_CHUNK_BYTES, num_bytes))):
            num_bytes -= len(chunk)
            yield chunk


def list_artifacts(storage: Storage, job_id: str) -> list[Artifact]:
    """Return the files of a run directory that `open_artifact` would open, sorted."""
    base = f"{job_id}/{RUN}"
    if not storage.is_local:
        return [Artifact(path=path, num_bytes=size) for path, size in storage.files(base)]
    root, found = Path(storage.path(base)), []
    for folder, _, names in os.walk(root, followlinks=False):
        for name in names:
            path = Path(folder, name)
            try:
                info = path.lstat()
            except OSError:
                continue  # pruned meanwhile
            if stat.S_ISREG(info.st_mode) and not name.startswith("."):
                relative = path.relative_to(root).as_posix()
                found.append(Artifact(path=relative, num_bytes=info.st_size))
    return sorted(found, key=lambda artifact: artifact.path)


def list_checkpoints(storage: Storage, job_id: str) -> list[Checkpoint]:
    """Return the published checkpoints of a job, oldest first."""
    found = []
    base = f"{job_id}/{RUN}/checkpoints"
    for name in storage.names(base):
        content = storage.read(f"{base}/{name}/{MANIFEST}")
        if content is None:
            continue  # being written, or being deleted
        try:
            manifest = json.loads(content)
            parts = [(str(p["name"]), int(p["num_bytes"])) for p in manifest["parts"]]
            epoch = int(manifest["epoch"])
        except (KeyError, TypeError, ValueError):
            continue
        files = (MANIFEST, *(part for part, _ in parts))
        found.append(
            Checkpoint(
                name=name,
                epoch=epoch,
                num_bytes=sum(size for _, size in parts),
                files=tuple(f"checkpoints/{name}/{file}" for file in files),
            )
        )
    return found
