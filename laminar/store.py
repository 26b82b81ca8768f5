"""What a stage keeps of every micro-batch of a window, in memory or in files."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from laminar.errors import ConfigError
from laminar.filters import Message


def check_scratch(folder: str | None) -> None:
    """Raise ConfigError unless files can be made there, as far as this machine can know."""
    if folder is not None and not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(
            "stored.scratch_dir must be a folder that can be written",
            got=folder,
            fix="make it, or leave it out for the system's temporary folder",
        )


class Store:
    """Tensors by (name, micro-batch), all micro-batches of a name alike.

    The first `put` of a name makes room for all its micro-batches: in memory as long as the room
    so far stays within the limit, else in a file that the system pages in and out. Such a file has
    no name any more once it is mapped, so that it goes with the store, however that ends.

    Args:
        num_micro: Micro-batches.
        memory_limit: Bytes.
        folder: Where the files are made; None is the system's temporary folder.
    """

    def __init__(self, num_micro: int, memory_limit: float, folder: str | None = None) -> None:
        self._num_micro, self._limit, self._folder = num_micro, memory_limit, folder
        self._parts: dict[str, list[Tensor]] = {}
        self.memory_bytes, self.file_bytes = 0, 0

    def put(self, name: str, micro: int, message: Message) -> None:
        """Copy what crossed a cut, or any tensors, into its place, on the CPU.

        Raises:
            OSError: The folder has no room for the file.
        """
        if name not in self._parts:
            self._parts[name] = [self._room(part) for part in message]
        for room, part in zip(self._parts[name], message, strict=True):
            room[micro].copy_(part)

    def get(self, name: str, micro: int) -> Message:
        """Return what was put there; aliases it."""
        return tuple(part[micro] for part in self._parts[name])

    def drop(self, name: str) -> None:
        """Forget a name; what it took stays counted, for nothing is put after it."""
        del self._parts[name]

    def _room(self, part: Tensor) -> Tensor:
        shape = (self._num_micro, *part.shape)
        num_bytes = self._num_micro * part.nbytes
        if self.memory_bytes + num_bytes <= self._limit:
            self.memory_bytes += num_bytes
            return torch.empty(shape, dtype=part.dtype)
        self.file_bytes += num_bytes
        with tempfile.TemporaryDirectory(prefix="laminar-", dir=self._folder) as folder:
            path = Path(folder) / "store"
            with path.open("wb") as file:
                # A full disk must be an error here, not a crash at some later write.
                os.posix_fallocate(file.fileno(), 0, num_bytes)
            size = num_bytes // part.element_size()
            return torch.from_file(str(path), shared=True, size=size, dtype=part.dtype).view(shape)
