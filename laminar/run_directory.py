"""The folder of a run: configuration, metrics, environment, checkpoints, plot."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from laminar.config import Config
from laminar.config_file import dump_config, load_config
from laminar.errors import ConfigError

MANIFEST = "manifest.json"
"""What makes a folder in `checkpoints` a checkpoint."""


class RunDirectory:
    """Paths and files of one run.

    Args:
        path: The folder; `create` makes it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.metrics_file = self.path / "metrics.jsonl"
        self.timeline_file = self.path / "timeline.jsonl"
        self.events = self.path / "tensorboard"
        self.environment_file = self.path / "environment.json"
        self.tracking_file = self.path / "tracking.json"
        self.wandb = self.path / "wandb"
        self.checkpoints = self.path / "checkpoints"
        self.plot_file = self.path / "plot.png"
        self.confusion_file = self.path / "confusion_matrix.json"

    def create(self, config: Config) -> None:
        """Make the folder and write the resolved configuration.

        Raises:
            ConfigError: It already holds something, or cannot be made.
        """
        self.check_is_free()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.config_file.write_text(dump_config(config))
        except OSError as error:
            raise ConfigError(
                "the run's folder must be writable", got=error, fix="choose another --storage-path"
            ) from error

    def rewrite_config(self, config: Config) -> None:
        """Replace the configuration of a run that goes on with another partition, all at once."""
        temporary = self.config_file.with_suffix(".tmp")
        temporary.write_text(dump_config(config))
        temporary.replace(self.config_file)

    def discard(self) -> None:
        """Remove a run that never began, so that its name is free again; keep one that did."""
        if self.read_metrics() or self.checkpoints.exists():
            return
        for file in (
            self.config_file, self.metrics_file, self.timeline_file, self.environment_file,
            self.tracking_file,
        ):  # fmt: skip
            file.unlink(missing_ok=True)
        for folder in (self.events, self.wandb):
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def check_is_free(self) -> None:
        """Raise ConfigError if the folder already holds something, or cannot be made."""
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise ConfigError(
                "a new run needs an empty folder",
                got=f"{self.path} is not empty",
                fix="choose another --name, or continue with `laminar resume`",
            )
        there = next(path for path in (self.path, *self.path.parents) if path.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise ConfigError(
                "the run's folder must be writable",
                got=f"{there} is {'read-only' if there.is_dir() else 'a file'}",
                fix="choose another --storage-path",
            )

    def open_config(self) -> Config:
        """Return the resolved configuration of a run that exists.

        Raises:
            ConfigError: The folder is no run.
        """
        if not self.config_file.is_file():
            raise ConfigError(
                "a run directory must contain config.yaml",
                got=f"none in {self.path}",
                fix="name the folder that `laminar train` printed",
            )
        return load_config(self.config_file)

    def append_metrics(self, metrics: dict[str, Any]) -> None:
        """Add one epoch's line, on disk when this returns."""
        _append(self.metrics_file, metrics)

    def append_timeline(self, timeline: dict[str, Any]) -> None:
        """Add what one epoch's seconds went into, on disk when this returns."""
        _append(self.timeline_file, timeline)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the epochs' metrics; a last line that a crash cut short is left out."""
        return _read(self.metrics_file)

    def read_timeline(self) -> list[dict[str, Any]]:
        """Return the epochs' timelines, as `read_metrics` does; none of a run of before 0.2."""
        return _read(self.timeline_file)

    def truncate_metrics(self, num_epochs: int) -> None:
        """Keep the lines of the first epochs: what a resumed run will do again goes."""
        _truncate(self.metrics_file, num_epochs)
        _truncate(self.timeline_file, num_epochs)

    def write_confusion(
        self, epoch: int, class_names: Sequence[str], matrix: Sequence[Sequence[int]]
    ) -> None:
        """Record which test images were taken for which class, in place of an earlier epoch's.

        Args:
            epoch: Epochs finished.
            class_names: In the order of the labels.
            matrix: Row i, column j: test images of class i that were taken for class j.
        """
        content = {"epoch": epoch, "class_names": list(class_names), "matrix": matrix}
        temporary = self.confusion_file.with_suffix(".tmp")
        temporary.write_text(json.dumps(content) + "\n")
        temporary.replace(self.confusion_file)

    def read_confusion(self) -> dict[str, Any] | None:
        """Return what `write_confusion` recorded; None before the first epoch's end."""
        if not self.confusion_file.is_file():
            return None
        content: dict[str, Any] = json.loads(self.confusion_file.read_text())
        return content

    def write_tracking(self, told: str) -> None:
        """Record, as JSON, what `laminar.tracking` keeps of each tracker."""
        temporary = self.tracking_file.with_suffix(".tmp")
        temporary.write_text(told)
        temporary.replace(self.tracking_file)

    def read_tracking(self) -> str:
        """Return what `write_tracking` recorded; `{}` before."""
        return self.tracking_file.read_text() if self.tracking_file.is_file() else "{}"

    def write_environment(self, stages: list[dict[str, Any]]) -> None:
        """Record what the run runs on; `stages` says what each stage computes with."""
        import torch

        names = ("torch", "torchvision", "ray", "numpy", "pydantic")
        content = {
            "laminar": importlib.metadata.version("laminar-train"),
            "python": sys.version.split()[0],
            **{name: importlib.metadata.version(name) for name in names},
            "platform": platform.platform(),
            "num_cpus": os.cpu_count(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
            "stages": stages,
        }
        self.environment_file.write_text(json.dumps(content, indent=1) + "\n")


def _append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    found = []
    for line in path.read_text().splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return found


def _truncate(path: Path, num_epochs: int) -> None:
    if path.is_file():
        kept = [line for line in _read(path) if line["epoch"] <= num_epochs]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        temporary.replace(path)
