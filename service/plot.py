"""The picture of a run: loss, accuracy, and which phase each stretch of training was in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from laminar.config import Config

PHASE_COLORS = {"parallel": "#cfe8f7", "correction": "#fbdcb5"}
_TRAIN, _TEST = "#7a7a7a", "#0b5394"

Band = tuple[str, float, float]
"""Phase, first epoch, last epoch; epoch e of the metrics spans e-1 .. e."""


def phase_bands(metrics: Sequence[dict[str, Any]]) -> list[Band]:
    """Return the phases of a run in order, neighbours of the same phase joined."""
    bands: list[Band] = []
    for line in metrics:
        at = line["epoch"] - 1.0
        for part in line["phases"]:
            end = at + part["num_batches"] / line["num_batches"]
            if bands and bands[-1][0] == part["phase"]:
                bands[-1] = (part["phase"], bands[-1][1], end)
            else:
                bands.append((part["phase"], at, end))
            at = end
    return bands


def plot_run(metrics: Sequence[dict[str, Any]], config: Config, path: str | Path) -> None:
    """Write a PNG with two panels over the epochs: loss and accuracy, training and test.

    Args:
        metrics: Lines of metrics.jsonl, at least one.
        config: The run's resolved configuration, for the title.
        path: Where to.
    """
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    loss, accuracy = figure.subplots(1, 2, sharex=True)
    bands = phase_bands(metrics)
    _panel(loss, metrics, bands, "loss", "cross-entropy")
    loss.set_yscale("log")
    _panel(accuracy, metrics, bands, "accuracy", "accuracy")
    final = metrics[-1]["test_accuracy"]
    accuracy.annotate(
        f"{final:.2%}",
        (metrics[-1]["epoch"], final),
        xytext=(-4, -14),
        textcoords="offset points",
        ha="right",
        color=_TEST,
        weight="bold",
    )
    handles: list[Artist] = [
        Line2D([], [], color=_TRAIN, label="training"),
        Line2D([], [], color=_TEST, label="test"),
    ]
    used = {band[0] for band in bands}
    handles += [
        Patch(color=color, label=f"{phase} phase")
        for phase, color in PHASE_COLORS.items()
        if phase in used
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(_title(config, metrics[-1]), fontsize=11)
    figure.savefig(path, dpi=120)


def _panel(
    axis: Axes, metrics: Sequence[dict[str, Any]], bands: Sequence[Band], what: str, label: str
) -> None:
    for phase, start, end in bands:
        axis.axvspan(start, end, color=PHASE_COLORS[phase], linewidth=0)
    epochs = [line["epoch"] for line in metrics]
    marker = "o" if len(epochs) < 3 else ""
    for split, color in (("train", _TRAIN), ("test", _TEST)):
        axis.plot(epochs, [m[f"{split}_{what}"] for m in metrics], color=color, marker=marker)
    axis.set(xlabel="epoch", ylabel=label, xlim=(bands[0][1], bands[-1][2]))
    axis.grid(color="white", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _title(config: Config, last: dict[str, Any]) -> str:
    all_filters = (*config.filter_list(), *config.kept_filters)
    filters = sorted({f"{f.pool}x{f.pool} {f.cast}" for f in all_filters})
    stages = f"{config.num_stages} stage" + ("s" if config.num_stages > 1 else "")
    parts = [config.model.name, config.data.name, stages]
    if filters:
        parts.append("filter " + ", ".join(filters))
    parts.append(f"{last['parallel_fraction']:.0%} of the passes parallel")
    return " · ".join(parts)
