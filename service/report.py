"""One HTML file that shows a run, or several, and needs nothing but a browser."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from laminar.config import Config
from laminar.config_file import dump_config
from laminar.errors import ConfigError
from laminar.run_directory import RunDirectory
from service import figures

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width">
<style>
 body {{ font: 15px/1.5 system-ui, sans-serif; color: #222; margin: 2rem auto; max-width: 1240px;
        padding: 0 1rem; }}
 h1 {{ font-size: 1.5rem; margin: 0 }} h2 {{ font-size: 1.1rem; margin: 2.2rem 0 .2rem }}
 p {{ color: #555; margin: .2rem 0 .4rem; max-width: 60rem }}
 .cards {{ display: flex; flex-wrap: wrap; gap: .6rem; margin: 1rem 0 }}
 .card {{ border: 1px solid #ddd; border-radius: 8px; padding: .5rem .9rem }}
 .card b {{ display: block; font-size: 1.25rem }} .card span {{ color: #666; font-size: .85rem }}
 pre {{ background: #f6f6f6; padding: 1rem; border-radius: 8px; overflow-x: auto }}
 summary {{ cursor: pointer; margin-top: 2rem }}
</style><script>{plotly}</script></head><body>
<h1>{title}</h1><p>{subtitle}</p>
{body}
</body></html>
"""

_TEXTS = {
    "curves": ("Loss and accuracy", "Behind the curves: the phase that each stretch was in."),
    "phase_seconds": ("Seconds per phase", "As the coordinator saw them, by epoch."),
    "stage_seconds": (
        "What the seconds of each stage went into",
        "Sums over the whole run. On a GPU the seconds of a kernel count where the stage next "
        "waits for it.",
    ),
    "timelines": (
        "Timeline",
        "What each stage did when, for a few batches in the middle of a phase: F and B with the "
        "number of the micro-batch. Zoom by dragging; choose epoch and phase in the menu.",
    ),
    "exactness": (
        "Exactness of the gradients",
        "One batch in the middle of the parallel phase an epoch: the gradient g that each stage "
        "applied against g*, the exact gradient of that batch at every stage's weights just before "
        "it applied the batch. A cosine of 1 and an error of 0 are ordinary backprop.",
    ),
    "violations": (
        "Constraint violation",
        "One micro-batch of the parallel phase an epoch. λ is what the next stage worked on, x "
        "what would be sent for the same input at the weights that the gradient is applied to: "
        "what lateness leaves after look-ahead, and zero in the correction phase. The filter error "
        "is what pooling and casting lose of the output y. p is the gradient of a sample's loss "
        "with respect to y: a stationary point of the penalty method with rho = 1 is |p| away.",
    ),
    "confusion": (
        "Confusion matrix",
        "How many test images of each class (row) were taken for which (column); colours by row.",
    ),
    "cut_bytes": (
        "Bytes over each cut",
        "Training and evaluation, payload without headers: inside actor calls (inline) and through "
        "the object store.",
    ),
}


def write_report(run: RunDirectory, path: Path) -> None:
    """Write the report of a run.

    Args:
        run: With at least one finished epoch.
        path: Where to.

    Raises:
        ConfigError: The folder is no run, has no finished epoch, or the file cannot be written.
    """
    config, metrics = run.open_config(), run.read_metrics()
    timeline = run.read_timeline()
    if not metrics:
        raise ConfigError(
            "a report needs a run with at least one finished epoch",
            got=f"no metrics in {run.path}",
            fix="train it for longer: `laminar resume` goes on",
        )
    shown = {
        "curves": figures.curves(metrics),
        "confusion": figures.confusion(run.read_confusion()),
        "phase_seconds": figures.phase_seconds(metrics),
        "stage_seconds": figures.stage_seconds(timeline) if timeline else None,
        "timelines": figures.timelines(timeline),
        "exactness": figures.exactness(metrics),
        "violations": figures.violations(timeline),
        "cut_bytes": figures.cut_bytes(timeline),
    }
    sections = [_section(*_TEXTS[name], figure) for name, figure in shown.items() if figure]
    sections.insert(0, _cards(config, metrics))
    sections.append(_details("Configuration", dump_config(config)))
    if run.environment_file.is_file():
        sections.append(_details("Environment", run.environment_file.read_text()))
    _write(path, f"{run.path.name}", describe_config(config), sections)


def write_overlay(runs: dict[str, Sequence[dict[str, Any]]], path: Path) -> None:
    """Write the curves of several runs, by name, over each other."""
    section = _section("Test loss and accuracy", "", figures.overlay(dict(runs)))
    _write(path, "Comparison of runs", ", ".join(runs), [section])


def describe_config(config: Config) -> str:
    """Return network, data set, stages and filters in one line."""
    filters = sorted({f"{f.pool}x{f.pool} {f.cast}" for f in config.filter_list()})
    stages = f"{config.num_stages} stage" + ("s" if config.num_stages > 1 else "")
    parts = [config.model.name, config.data.name, stages]
    return " · ".join(parts + (["filter " + ", ".join(filters)] if filters else []))


def _cards(config: Config, metrics: Sequence[dict[str, Any]]) -> str:
    last = metrics[-1]
    best = max(metrics, key=lambda line: line["test_accuracy"])
    seconds = sum(sum(line["seconds"].values()) for line in metrics)
    sent = sum(c["inline_bytes"] + c["store_bytes"] for line in metrics for c in line["cuts"])
    cards = {
        "test accuracy": f"{last['test_accuracy']:.2%}",
        f"best, in epoch {best['epoch']}": f"{best['test_accuracy']:.2%}",
        "epochs": f"{last['epoch']} of {config.epochs}",
        "of the passes parallel": f"{last['parallel_fraction']:.0%}",
        "seconds": f"{seconds:,.0f}",
        "samples/s in the last epoch": f"{last['samples_per_s']:,.0f}",
        "MB over the cuts in training": f"{sent / 1e6:,.0f}",
    }
    texts = (f'<div class="card"><b>{v}</b><span>{k}</span></div>' for k, v in cards.items())
    return f'<div class="cards">{"".join(texts)}</div>'


def _section(title: str, text: str, figure: go.Figure) -> str:
    plot = figure.to_html(
        full_html=False, include_plotlyjs=False, config={"displaylogo": False, "responsive": True}
    )
    return f"<h2>{html.escape(title)}</h2><p>{html.escape(text)}</p>{plot}"


def _details(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary><pre>{html.escape(text)}</pre></details>"


def _write(path: Path, title: str, subtitle: str, sections: Sequence[str]) -> None:
    page = _PAGE.format(
        title=html.escape(title),
        subtitle=html.escape(subtitle),
        plotly=get_plotlyjs(),
        body="\n".join(sections),
    )
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            "the page must be a file that can be written",
            got=error,
            fix="choose another file",
        ) from error
