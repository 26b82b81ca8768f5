"""`laminar report` and `laminar compare`: pages that load nothing, tables of what differs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from laminar.config import Config, FilterConfig
from laminar.run_directory import RunDirectory
from service import figures
from service.comparison import differing_settings
from service.report import write_report

Laminar = Callable[..., tuple[int, str, str]]


def metrics_line(epoch: int, offset: float = 0.0) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "num_batches": 10,
        "phases": [
            {"phase": "correction", "num_batches": 3},
            {"phase": "parallel", "num_batches": 7},
        ],
        "parallel_fraction": 0.7,
        "lr": 0.1 / epoch,
        "train_loss": 2.0 / epoch,
        "train_accuracy": 1 - 0.8 / epoch,
        "test_loss": 2.2 / epoch,
        "test_accuracy": 1 - 0.9 / epoch - offset,
        "seconds": {"parallel": 7.0, "correction": 3.0, "evaluation": 0.5, "checkpoint": 0.1},
        "samples_per_s": 64.0,
        "cuts": [{"boundary": 4, "inline_bytes": 2_000_000, "store_bytes": 3_000_000}],
        "ledger": None
        if epoch == 1
        else {
            "batch": 6,
            "cosine": 0.85,
            "relative_error": 0.5,
            "stages": [
                {"cosine": 1 - 0.2 * k, "relative_error": 0.1 * epoch, "norm": 1, "exact_norm": 2}
                for k in (1, 0)
            ],
            "cuts": [{"boundary": 4, "violation": 0.1 * epoch}],
        },
    }


def timeline_line(epoch: int) -> dict[str, Any]:
    def phase(name: str, is_traced: bool) -> dict[str, Any]:
        probe = {"violation": 0.1 * epoch, "filter_error": 0.2, "adjoint_ratio": 0.3}
        trace = [
            [["forward", 4, 0.0, 2.0], ["send", 4, 2.0, 2.5], ["backward", 3, 2.5, 6.0]],
            [["wait_forward", 4, 1.0, 2.5], ["forward", 4, 2.5, 4.0], ["update", -1, 4.0, 7.0]],
        ]
        return {
            "phase": name,
            "num_batches": 5,
            "seconds": 5.0,
            "stages": [
                {"forward": 1.0, "backward": 2.0, "other": 2.0},
                {"forward": 2.5, "wait_forward": 1.5, "other": 1.0},
            ],
            "cuts": [
                {
                    "boundary": 4,
                    "forward": {"inline_bytes": 10**6, "store_bytes": 0},
                    "adjoint": {"inline_bytes": 0, "store_bytes": 2 * 10**6},
                    **(probe if is_traced else {}),
                }
            ],
            "trace": trace if is_traced else None,
        }

    phases = [phase("correction", True), phase("parallel", True), phase("evaluation", False)]
    return {"epoch": epoch, "phases": phases}


METRICS = [metrics_line(epoch) for epoch in (1, 2, 3)]
TIMELINE = [timeline_line(epoch) for epoch in (1, 2, 3)]


def make_run(path: Path, config: Config | None = None, offset: float = 0.0) -> RunDirectory:
    run = RunDirectory(path)
    run.create(config or Config(epochs=3, filters=FilterConfig(pool=2, cast="fp16")))
    for epoch in (1, 2, 3):
        run.append_metrics(metrics_line(epoch, offset))
        run.append_timeline(timeline_line(epoch))
    run.write_confusion(3, ["ant", "bee"], [[3, 1], [0, 4]])
    return run


def values(found: Any) -> list[float]:
    """Plotly keeps sequences as tuples or arrays."""
    return [float(value) for value in found]


# -- figures ---------------------------------------------------------------------------------


def test_curves_are_the_metrics_over_bands_of_phases():
    figure = figures.curves(METRICS)
    drawn = {(t.name, t.yaxis): values(t.y) for t in figure.data if t.y[0] is not None}
    assert drawn["training", "y"] == [line["train_loss"] for line in METRICS]
    assert drawn["test", "y2"] == [line["test_accuracy"] for line in METRICS]
    bands = [(s.x0, s.x1) for s in figure.layout.shapes if s.xref == "x"]
    assert bands == [pytest.approx(b) for b in ((0, 0.3), (0.3, 1), (1, 1.3), (1.3, 2), (2, 2.3),
                                                (2.3, 3))]  # fmt: skip


def test_seconds_are_stacked_by_phase():
    figure = figures.phase_seconds(METRICS)
    assert {t.name: values(t.y) for t in figure.data} == {
        "parallel": [7.0] * 3,
        "correction": [3.0] * 3,
        "evaluation": [0.5] * 3,
        "checkpoint": [0.1] * 3,
    }


def test_seconds_of_stages_are_sums_over_the_run():
    figure = figures.stage_seconds(TIMELINE)
    by_name = {t.name: t for t in figure.data}
    assert values(by_name["forward"].x) == [3, 7.5] * 3  # two stages in each of three phases
    assert values(by_name["waiting for a forward message"].x) == [0, 4.5] * 3
    assert "update" not in by_name, "what took no time needs no legend"


def test_a_run_may_have_had_other_numbers_of_stages():
    three, one = timeline_line(2), timeline_line(3)
    for phase in three["phases"]:
        phase["stages"] = [*phase["stages"], {"forward": 0.5}]
    for phase in one["phases"]:
        phase["stages"] = phase["stages"][:1]
    figure = figures.stage_seconds([timeline_line(1), three, one])
    forward = next(t for t in figure.data if t.name == "forward")
    assert values(forward.x) == [3, 5, 0.5] * 3


def test_timelines_show_one_phase_of_one_epoch_and_a_menu_of_all():
    figure = figures.timelines(TIMELINE)
    assert figure is not None
    (menu,) = figure.layout.updatemenus
    assert [b.label for b in menu.buttons][:2] == [
        "correction phase of epoch 1", "parallel phase of epoch 1",
    ]  # fmt: skip
    assert len(menu.buttons) == 6
    shown = [t for t in figure.data if t.visible]
    assert {t.name for t in shown} == {
        "forward", "backward", "update", "sending", "waiting for a forward message",
    }  # fmt: skip
    forward = next(t for t in shown if t.name == "forward")
    assert list(forward.y) == ["stage 0", "stage 1"]
    assert (values(forward.base), values(forward.x)) == ([0, 2.5], [2, 1.5])
    assert list(forward.text) == ["F4", "F4"]
    assert figure.layout.xaxis.range == (1.0, 6.0), "where both stages were traced"
    for number, button in enumerate(menu.buttons):
        visible = button.args[0]["visible"]
        assert sum(visible) == 5
        assert visible[5 * number : 5 * number + 5] == [True] * 5


def test_a_long_run_has_few_timelines_and_the_last_is_among_them():
    figure = figures.timelines([timeline_line(epoch) for epoch in range(1, 101)])
    assert figure is not None
    labels = [b.label for b in figure.layout.updatemenus[0].buttons]
    assert len(labels) == len(set(labels)) == figures.MAX_TIMELINES
    assert labels[0] == "correction phase of epoch 1"
    assert labels[-1] == "parallel phase of epoch 100"


def test_violations_and_bytes_are_those_of_the_cuts():
    figure = figures.violations(TIMELINE)
    assert figure is not None
    assert [values(t.y) for t in figure.data] == [
        pytest.approx([0.1, 0.2, 0.3]), [0.2] * 3, [0.3] * 3,
    ]  # fmt: skip
    figure = figures.cut_bytes(TIMELINE)
    assert figure is not None
    assert {t.name: values(t.y) for t in figure.data} == {
        "forward, object store": [0] * 3,
        "forward, inline": [3] * 3,
        "adjoint, object store": [6] * 3,
        "adjoint, inline": [0] * 3,
    }


def test_exactness_is_shown_for_the_epochs_that_have_it():
    figure = figures.exactness(METRICS)
    assert figure is not None
    assert [(t.name, values(t.x), values(t.y)) for t in figure.data] == [
        ("stage 0", [2, 3], [0.8, 0.8]),
        ("stage 0", [2, 3], pytest.approx([0.2, 0.3])),
        ("stage 1", [2, 3], [1, 1]),
        ("stage 1", [2, 3], pytest.approx([0.2, 0.3])),
        ("all stages", [2, 3], [0.85, 0.85]),
        ("all stages", [2, 3], [0.5, 0.5]),
    ]
    assert figures.exactness(METRICS[:1]) is None
    assert figures.exactness([{"epoch": 1}]) is None, "a run of an older version"


def test_the_confusion_matrix_is_coloured_by_row():
    recorded = {"class_names": ["ant", "bee"], "matrix": [[3, 1], [0, 0]]}
    figure = figures.confusion(recorded)
    assert figure is not None
    (heatmap,) = figure.data
    assert [values(row) for row in heatmap.z] == [[0.75, 0.25], [0, 0]]
    assert [values(row) for row in heatmap.text] == [[3, 1], [0, 0]]
    assert (list(heatmap.x), list(heatmap.y)) == (["ant", "bee"], ["ant", "bee"])
    many = {"class_names": [str(n) for n in range(1000)], "matrix": []}
    assert figures.confusion(None) is figures.confusion(many) is None


def test_one_stage_has_neither_cuts_nor_violations():
    line = {
        "epoch": 1,
        "phases": [{"phase": "parallel", "stages": [{"forward": 1.0}], "cuts": [], "trace": None}],
    }
    assert figures.timelines([line]) is figures.violations([line]) is figures.cut_bytes([line])
    assert len(figures.stage_seconds([line]).data) == 1


# -- the page --------------------------------------------------------------------------------


def test_a_report_is_one_file_that_loads_nothing(tmp_path: Path, laminar: Laminar):
    run = make_run(tmp_path / "run <b>")
    code, out, err = laminar("report", run.path)
    assert (code, err) == (0, "")
    path = run.path / "report.html"
    assert out == f"{path}\n"
    page = path.read_text()
    assert re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=", page) == []
    assert "run &lt;b&gt;" in page
    for words in ("70.00%", "resnet20 · digits · 2 stages · filter 2x2 fp16", "3 of 3", "15"):
        assert words in page
    titles = re.findall(r"<h2>([^<]*)</h2>", page)
    assert titles == [
        "Loss and accuracy", "Confusion matrix", "Seconds per phase",
        "What the seconds of each stage went into",
        "Timeline", "Exactness of the gradients", "Constraint violation", "Bytes over each cut",
    ]  # fmt: skip
    assert page.count("Plotly.newPlot(") - page.split("</style>")[0].count("Plotly.newPlot(") >= 8


def test_a_run_without_a_timeline_still_has_a_report(tmp_path: Path):
    run = make_run(tmp_path / "run")
    run.timeline_file.unlink()
    run.confusion_file.unlink()
    write_report(run, tmp_path / "report.html")
    titles = re.findall(r"<h2>([^<]*)</h2>", (tmp_path / "report.html").read_text())
    assert titles == ["Loss and accuracy", "Seconds per phase", "Exactness of the gradients"]


# -- compare ---------------------------------------------------------------------------------


def test_only_settings_that_differ_are_listed():
    one = Config.model_validate({"num_stages": 1, "optimizer": {"lr": 0.1}})
    two = Config.model_validate(
        {"optimizer": {"lr": 0.2}, "data": {"name": "digits", "flip": True}}
    )
    assert differing_settings([one, two]) == {
        "num_stages": ["1", "2"],
        "data.flip": ["False", "True"],
        "optimizer.lr": ["0.1", "0.2"],
    }
    assert differing_settings([one, one]) == {}
    near = [Config.model_validate({"ema": {"decay": decay}}) for decay in (0.9999, 0.99991)]
    assert differing_settings(near) == {"ema.decay": ["0.9999", "0.99991"]}
    filters = [{"pool": 2, "cast": "fp16"}, {"cast": "int8", "parallel_only": True}]
    three = Config.model_validate({"num_stages": 3, "filters": filters})
    same = Config.model_validate({"num_stages": 3, "filters": {"pool": 2, "cast": "fp16"}})
    found = differing_settings([same, three])
    assert found["filters"] == ["", "[2 fp16, 1 int8 parallel_only]"]
    assert found["filters.pool"] == ["2", ""]


def test_a_comparison_is_a_table(tmp_path: Path, laminar: Laminar):
    make_run(tmp_path / "one")
    make_run(tmp_path / "two", Config.model_validate({"epochs": 3, "seed": 5}), offset=0.05)
    html = tmp_path / "both.html"
    code, out, err = laminar("compare", tmp_path / "one", tmp_path / "two", "--html", html)
    assert (code, err) == (0, "")
    rows = {row[:22].strip(): row[22:].split() for row in out.splitlines()}
    assert rows["seed"] == ["0", "5"]
    assert rows["test accuracy"] == ["0.7000", "0.6500"]
    assert rows["seconds"] == ["31.8", "31.8"]
    assert rows["seconds of training"] == ["30.0", "30.0"]
    assert rows["MB inline over cuts"] == ["6.0", "6.0"]
    assert rows["MB through the store"] == ["9.0", "9.0"]
    assert rows["epochs done"] == ["3", "of", "3", "3", "of", "3"]
    assert "batch_size" not in rows
    page = html.read_text()
    assert "one, two" in page
    assert json.dumps("two") in page


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path, laminar: Laminar):
    for folder in ("a", "b"):
        make_run(tmp_path / folder / "run")
    _, out, _ = laminar("compare", tmp_path / "a/run", tmp_path / "b/run")
    assert out.splitlines()[0].split() == [str(tmp_path / "a/run"), str(tmp_path / "b/run")]


def test_an_overlay_shows_every_run_over_epochs_and_seconds():
    figure = figures.overlay({"one": METRICS, "two": METRICS[:2]})
    over_seconds = [t for t in figure.data if t.xaxis == "x3"]
    assert [values(t.x) for t in over_seconds] == [
        pytest.approx([10.6, 21.2, 31.8]), pytest.approx([10.6, 21.2]),
    ]  # fmt: skip
    assert {t.name for t in figure.data} == {"one", "two"}
