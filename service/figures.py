"""The interactive figures of a report, each made of a run's own lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from service.plot import PHASE_COLORS, phase_bands

Lines = Sequence[dict[str, Any]]

TRAIN, TEST = "#8a8a8a", "#0b5394"
CUT_COLORS = ("#0b5394", "#c2570c", "#2e7d32", "#7b3fa0", "#9c1c4b", "#4d6a75", "#a07800")
PHASES = {
    "parallel": "#5aa9dd",
    "correction": "#eba04d",
    "ledger": "#7fbf9f",
    "evaluation": "#9b8bc4",
    "checkpoint": "#b5b5b5",
}
KINDS = {
    "forward": ("forward", "#2f7fc1"),
    "backward": ("backward", "#174a7c"),
    "update": ("update", "#2e9e6b"),
    "data": ("reading data", "#b79ad6"),
    "send": ("sending", "#f0b429"),
    "wait_forward": ("waiting for a forward message", "#f3b6b0"),
    "wait_adjoint": ("waiting for an adjoint message", "#d96459"),
    "other": ("other", "#dddddd"),
}
_LOG_TICKS = [digit * 10.0**power for power in range(-9, 7) for digit in (1, 2, 5)]
_LOG_AXIS: dict[str, Any] = {
    "type": "log",
    "tickvals": _LOG_TICKS,
    "ticktext": [f"{value:g}" for value in _LOG_TICKS],  # plotly's own leave the zeros out
}
MAX_TIMELINES = 12
MAX_CONFUSED = 100
"""Classes of a confusion matrix that can still be told apart."""


def curves(metrics: Lines) -> go.Figure:
    """Loss and accuracy over the epochs, training and test, over bands of the phases."""
    figure = make_subplots(rows=1, cols=2, subplot_titles=("cross-entropy", "accuracy"))
    epochs = [line["epoch"] for line in metrics]
    for column, what in enumerate(("loss", "accuracy"), 1):
        for split, color in (("train", TRAIN), ("test", TEST)):
            values = [line[f"{split}_{what}"] for line in metrics]
            name = "training" if split == "train" else "test"
            figure.add_scatter(
                x=epochs, y=values, name=name, mode="lines+markers", marker_size=4,
                line_color=color, legendgroup=name, showlegend=column == 1, row=1, col=column,
            )  # fmt: skip
    bands = phase_bands(metrics)
    for column in (1, 2):
        for phase, start, end in bands:
            figure.add_vrect(
                x0=start, x1=end, fillcolor=PHASE_COLORS[phase], line_width=0, layer="below",
                row=1, col=column,
            )  # fmt: skip
    for phase in dict.fromkeys(band[0] for band in bands):
        figure.add_scatter(
            x=[None], y=[None], name=f"{phase} phase", mode="markers",
            marker={"symbol": "square", "size": 12, "color": PHASE_COLORS[phase]},
        )  # fmt: skip
    figure.update_yaxes(row=1, col=1, **_LOG_AXIS)
    figure.update_yaxes(tickformat=".0%", row=1, col=2)
    figure.update_xaxes(title="epoch", range=[bands[0][1], bands[-1][2]])
    return _styled(figure, 380)


def confusion(recorded: dict[str, Any] | None) -> go.Figure | None:
    """Which class was taken for which; None without a record, or with too many classes to see."""
    if recorded is None or not 1 < len(recorded["class_names"]) <= MAX_CONFUSED:
        return None
    matrix, names = recorded["matrix"], recorded["class_names"]
    shares = [[count / max(1, sum(row)) for count in row] for row in matrix]
    is_legible = len(names) <= 20
    heatmap = go.Heatmap(
        z=shares, x=names, y=names, text=matrix, texttemplate="%{text}" if is_legible else None,
        colorscale="Blues", zmin=0, zmax=1, showscale=False,
        hovertemplate="%{y} taken for %{x}: %{text} (%{z:.1%})<extra></extra>",
    )  # fmt: skip
    figure = go.Figure(heatmap)
    figure.update_xaxes(title="taken for", type="category")
    figure.update_yaxes(title="class", type="category", autorange="reversed")
    figure.update_layout(width=640)
    return _styled(figure, 560)


def phase_seconds(metrics: Lines) -> go.Figure:
    """Seconds of each phase, stacked by epoch."""
    figure = go.Figure()
    for phase, color in PHASES.items():
        seconds = [line["seconds"].get(phase, 0.0) for line in metrics]
        if any(seconds):
            epochs = [line["epoch"] for line in metrics]
            figure.add_bar(x=epochs, y=seconds, name=phase, marker_color=color)
    figure.update_layout(barmode="stack", xaxis_title="epoch", yaxis_title="seconds")
    return _styled(figure, 320)


def stage_seconds(timeline: Lines) -> go.Figure:
    """What the seconds of each stage went into, the whole run, a bar for each phase and stage.

    A run that was resumed with another number of stages has bars for the most that it had.
    """
    totals: dict[str, list[dict[str, float]]] = {}
    for phase in (phase for line in timeline for phase in line["phases"]):
        stages = totals.setdefault(phase["phase"], [])
        stages += [{} for _ in phase["stages"][len(stages) :]]
        for total, stage in zip(stages, phase["stages"], strict=False):
            for kind, seconds in stage.items():
                total[kind] = total.get(kind, 0.0) + seconds
    bars = [(p, k, s) for p in PHASES for k, s in enumerate(totals.get(p, []))]
    figure = go.Figure()
    for kind, (name, color) in KINDS.items():
        values = [seconds.get(kind, 0.0) for _, _, seconds in bars]
        if any(values):
            shares = [v / max(1e-9, sum(b[2].values())) for v, b in zip(values, bars, strict=True)]
            figure.add_bar(
                y=[[p for p, _, _ in bars], [f"stage {k}" for _, k, _ in bars]], x=values,
                name=name, orientation="h", marker_color=color, customdata=shares,
                hovertemplate="%{x:.2f} s, %{customdata:.1%}<extra>" + name + "</extra>",
            )  # fmt: skip
    figure.update_layout(barmode="stack", xaxis_title="seconds")
    figure.update_yaxes(autorange="reversed")
    return _styled(figure, 150 + 34 * len(bars))


def timelines(timeline: Lines) -> go.Figure | None:
    """What each stage did when, for a few batches; a menu chooses epoch and phase."""
    traced = [
        (f"{phase['phase']} phase of epoch {line['epoch']}", phase["trace"])
        for line in timeline
        for phase in line["phases"]
        if phase["trace"]
    ]
    if not traced:
        return None
    traced = _evenly(traced, MAX_TIMELINES)
    parallel = [index for index, (label, _) in enumerate(traced) if label.startswith("parallel")]
    active = parallel[-1] if parallel else len(traced) - 1
    figure, owners = go.Figure(), list[int]()
    for index, (_, trace) in enumerate(traced):
        for kind, (name, color) in KINDS.items():
            spans = [
                (k, span) for k, stage in enumerate(trace) for span in stage if span[0] == kind
            ]
            if spans:
                figure.add_bar(
                    y=[f"stage {k}" for k, _ in spans],
                    base=[span[2] for _, span in spans],
                    x=[span[3] - span[2] for _, span in spans],
                    text=[_letter(span) for _, span in spans],
                    textposition="inside", insidetextanchor="middle", orientation="h",
                    name=name, marker={"color": color, "line": {"width": 0.5, "color": "white"}},
                    hovertemplate="%{text} %{base:.2f} ms + %{x:.2f} ms<extra>" + name + "</extra>",
                    visible=index == active,
                )  # fmt: skip
                owners.append(index)
    buttons = [
        {
            "label": label,
            "method": "update",
            "args": [
                {"visible": [owner == index for owner in owners]},
                {"xaxis.range": _common_stretch(trace)},
            ],
        }
        for index, (label, trace) in enumerate(traced)
    ]
    menu = {"buttons": buttons, "active": active, "x": 0, "y": 1.02, "xanchor": "left",
            "yanchor": "bottom"}  # fmt: skip
    figure.update_layout(
        barmode="overlay", xaxis_title="milliseconds", updatemenus=[menu], uniformtext_minsize=8,
        uniformtext_mode="hide",
    )  # fmt: skip
    figure.update_xaxes(range=_common_stretch(traced[active][1]))
    figure.update_yaxes(autorange="reversed")
    return _styled(figure, 200 + 60 * len(traced[active][1]))


def exactness(metrics: Lines) -> go.Figure | None:
    """Cosine and relative error of each stage's gradient against the exact one, over the epochs."""
    entries = [(line["epoch"], line["ledger"]) for line in metrics if line.get("ledger")]
    if not entries:
        return None
    titles = ("cosine ⟨g, g*⟩ / |g| |g*|", "relative error |g - g*| / |g*|")
    figure = make_subplots(rows=1, cols=2, subplot_titles=titles)
    names = [f"stage {k}" for k in range(max(len(entry["stages"]) for _, entry in entries))]
    for number, name in enumerate([*names, "all stages"]):
        # A resumed run may have had other numbers of stages before.
        points = [
            (epoch, entry["stages"][number] if number < len(names) else entry)
            for epoch, entry in entries
            if number == len(names) or number < len(entry["stages"])
        ]
        line = {"color": CUT_COLORS[number % len(CUT_COLORS)]}
        if number == len(names):
            line = {"color": "#222222", "dash": "dot"}
        for column, what in enumerate(("cosine", "relative_error"), 1):
            figure.add_scatter(
                x=[epoch for epoch, _ in points], y=[found[what] for _, found in points],
                name=name, legendgroup=name, mode="lines+markers", marker_size=4, line=line,
                showlegend=column == 1, row=1, col=column,
            )  # fmt: skip
    figure.update_xaxes(title="epoch")
    figure.update_yaxes(rangemode="tozero", row=1, col=2)
    return _styled(figure, 340)


def violations(timeline: Lines) -> go.Figure | None:
    """How far each cut was from its constraint, over the epochs, in the parallel phase."""
    panels = {
        "violation": "constraint violation |x - λ| / |x|",
        "filter_error": "filter error |y - UCy| / |y|",
        "adjoint_ratio": "adjoint |p| / |y|",
    }
    figure = make_subplots(rows=1, cols=3, subplot_titles=tuple(panels.values()))
    series = _by_cut(timeline, lambda phase: phase["phase"] == "parallel", "violation")
    if not series:
        return None
    for number, (boundary, points) in enumerate(series.items()):
        for column, name in enumerate(panels, 1):
            figure.add_scatter(
                x=[epoch for epoch, _ in points], y=[cut[name] for _, cut in points],
                name=f"cut at block {boundary}", legendgroup=str(boundary), mode="lines+markers",
                marker_size=4, line_color=CUT_COLORS[number % len(CUT_COLORS)],
                showlegend=column == 1, row=1, col=column,
            )  # fmt: skip
    figure.update_xaxes(title="epoch")
    figure.update_yaxes(rangemode="tozero", exponentformat="power")
    return _styled(figure, 340)


def cut_bytes(timeline: Lines) -> go.Figure | None:
    """Megabytes over each cut by epoch, both directions, inside actor calls and by the store."""
    series = _by_cut(timeline, lambda phase: True, "forward")
    if not series:
        return None
    titles = [f"cut at block {boundary}" for boundary in series]
    figure = make_subplots(rows=1, cols=len(series), subplot_titles=titles, shared_yaxes=True)
    shades = {
        ("forward", "store_bytes"): ("forward, object store", "#0b5394"),
        ("forward", "inline_bytes"): ("forward, inline", "#8fbbe0"),
        ("adjoint", "store_bytes"): ("adjoint, object store", "#c2570c"),
        ("adjoint", "inline_bytes"): ("adjoint, inline", "#f2bf94"),
    }
    for column, points in enumerate(series.values(), 1):
        for (direction, way), (name, color) in shades.items():
            totals: dict[int, float] = {}
            for epoch, cut in points:
                totals[epoch] = totals.get(epoch, 0.0) + cut[direction][way] / 1e6
            figure.add_bar(
                x=list(totals), y=list(totals.values()), name=name, marker_color=color,
                legendgroup=name, showlegend=column == 1, row=1, col=column,
            )  # fmt: skip
    figure.update_layout(barmode="stack", yaxis_title="MB per epoch")
    figure.update_xaxes(title="epoch")
    return _styled(figure, 340)


def overlay(runs: dict[str, Lines]) -> go.Figure:
    """Test loss and accuracy of several runs over epochs and over seconds."""
    titles = ("test loss", "test accuracy", "test accuracy over seconds")
    figure = make_subplots(rows=1, cols=3, subplot_titles=titles)
    for number, (name, metrics) in enumerate(runs.items()):
        epochs = [line["epoch"] for line in metrics]
        seconds, total = [], 0.0
        for line in metrics:
            total += sum(line["seconds"].values())
            seconds.append(total)
        accuracy = [line["test_accuracy"] for line in metrics]
        loss = [line["test_loss"] for line in metrics]
        for column, (x, y) in enumerate(
            ((epochs, loss), (epochs, accuracy), (seconds, accuracy)), 1
        ):
            figure.add_scatter(
                x=x, y=y, name=name, legendgroup=name, mode="lines+markers", marker_size=4,
                line_color=CUT_COLORS[number % len(CUT_COLORS)], showlegend=column == 1,
                row=1, col=column,
            )  # fmt: skip
    figure.update_yaxes(row=1, col=1, **_LOG_AXIS)
    figure.update_yaxes(tickformat=".1%", row=1, col=2)
    figure.update_yaxes(tickformat=".1%", row=1, col=3)
    figure.update_xaxes(title="epoch")
    figure.update_xaxes(title="seconds", row=1, col=3)
    return _styled(figure, 420)


def _by_cut(
    timeline: Lines, wanted: Callable[[dict[str, Any]], bool], key: str
) -> dict[int, list[tuple[int, dict[str, Any]]]]:
    """Return (epoch, record) of each cut in the wanted phases whose record has a key."""
    found: dict[int, list[tuple[int, dict[str, Any]]]] = {}
    for line in timeline:
        for phase in filter(wanted, line["phases"]):
            for cut in phase["cuts"]:
                if key in cut:
                    found.setdefault(cut["boundary"], []).append((line["epoch"], cut))
    return found


def _letter(span: list[Any]) -> str:
    letters = {"forward": "F", "backward": "B"}
    return f"{letters[span[0]]}{span[1]}" if span[0] in letters else ""


def _common_stretch(trace: Sequence[Sequence[Sequence[Any]]]) -> list[float]:
    """Return where all stages were traced, in milliseconds; everything if they never were."""
    start, end = max(stage[0][2] for stage in trace), min(stage[-1][3] for stage in trace)
    if end <= start:
        start, end = min(stage[0][2] for stage in trace), max(stage[-1][3] for stage in trace)
    return [start, end]


def _evenly(items: list[Any], limit: int) -> list[Any]:
    """Return at most so many, evenly spread, the last one included."""
    if len(items) <= limit:
        return items
    return [items[-1 - i * (len(items) - 1) // (limit - 1)] for i in reversed(range(limit))]


def _styled(figure: go.Figure, height: int) -> go.Figure:
    figure.update_layout(
        template="plotly_white", height=height, margin={"l": 60, "r": 20, "t": 50, "b": 45},
        font={"family": "system-ui, sans-serif", "size": 13}, legend={"traceorder": "normal"},
    )  # fmt: skip
    return figure
