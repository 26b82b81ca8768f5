"""How jobs are treated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """How jobs are treated."""

    data_roots: tuple[Path, ...] = ()
    """Folders that jobs may read from."""
    max_active_per_user: int = 8
    max_queued_per_user: int = 1000
    stop_grace_s: float = 60.0
    """For a driver to stop by itself before the cluster kills it."""
