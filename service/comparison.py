"""Runs beside each other: what was set differently, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laminar.config import Config
from laminar.errors import ConfigError
from laminar.run_directory import RunDirectory


@dataclass(frozen=True)
class FinishedRun:
    """A run with at least one finished epoch."""

    name: str
    config: Config
    metrics: Sequence[dict[str, Any]]


def open_runs(paths: Sequence[Path]) -> list[FinishedRun]:
    """Read runs; those of the same folder name are told apart by their paths.

    Raises:
        ConfigError: Fewer than two, a folder that is no run, or a run without a finished epoch.
    """
    if len(paths) < 2:
        raise ConfigError(
            "a comparison needs at least two runs", got=len(paths), fix="name more run directories"
        )
    names = [path.resolve().name for path in paths]
    runs = []
    for path, name in zip(paths, names, strict=True):
        run = RunDirectory(path)
        config, metrics = run.open_config(), run.read_metrics()
        if not metrics:
            raise ConfigError(
                "a run must have a finished epoch to be compared",
                got=f"no metrics in {path}",
                fix="train it for longer: `laminar resume` goes on",
            )
        runs.append(FinishedRun(str(path) if names.count(name) > 1 else name, config, metrics))
    return runs


def differing_settings(configs: Sequence[Config]) -> dict[str, list[str]]:
    """Return the dotted keys whose values differ, with each configuration's value as text."""
    flat = [_flatten(config.model_dump(mode="json")) for config in configs]
    keys = dict.fromkeys(key for one in flat for key in one)
    rows = {key: [one.get(key, "") for one in flat] for key in keys}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def results(run: FinishedRun) -> dict[str, str]:
    """Return what came of a run, by name."""
    last = run.metrics[-1]
    best = max(run.metrics, key=lambda line: line["test_accuracy"])
    seconds = [line["seconds"] for line in run.metrics]
    trained = sum(s["parallel"] + s["correction"] for s in seconds)
    cuts = [cut for line in run.metrics for cut in line["cuts"]]
    return {
        "epochs done": f"{last['epoch']} of {run.config.epochs}",
        "test accuracy": f"{last['test_accuracy']:.4f}",
        "best test accuracy": f"{best['test_accuracy']:.4f} (epoch {best['epoch']})",
        "test loss": f"{last['test_loss']:.4f}",
        "passes parallel": f"{last['parallel_fraction']:.0%}",
        "seconds": f"{sum(sum(s.values()) for s in seconds):,.1f}",
        "seconds of training": f"{trained:,.1f}",
        "MB inline over cuts": f"{sum(cut['inline_bytes'] for cut in cuts) / 1e6:,.1f}",
        "MB through the store": f"{sum(cut['store_bytes'] for cut in cuts) / 1e6:,.1f}",
    }


def _flatten(tree: Any, prefix: str = "") -> dict[str, str]:
    """Return {dotted key: text of the value}; lists count as values of their own."""
    if not isinstance(tree, dict):
        return {prefix: str(tree) if isinstance(tree, float) else _text(tree)}
    found: dict[str, str] = {}
    for key, value in tree.items():
        found |= _flatten(value, f"{prefix}.{key}" if prefix else key)
    return found


def _text(value: Any) -> str:
    """Return a value as short as it can be read; in lists, as phases are, numbers have long tails.

    Of a mapping within a list only the values, and of its booleans the names of those that hold.
    """
    if isinstance(value, list):
        return "[" + ", ".join(_text(entry) for entry in value) + "]"
    if isinstance(value, dict):
        shown = {key: key if entry is True else _text(entry) for key, entry in value.items()}
        return " ".join(text for key, text in shown.items() if value[key] is not False)
    if isinstance(value, float):
        return f"{value:.4g}"
    return "null" if value is None else str(value)
