"""The plot: a PNG of the size it should have, with bands where the phases were."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
from matplotlib.figure import Figure

from laminar.config import Config, FilterConfig
from service.plot import PHASE_COLORS, phase_bands, plot_run


def line(epoch: int, *phases: tuple[str, int]) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "num_batches": sum(count for _, count in phases),
        "phases": [{"phase": phase, "num_batches": count} for phase, count in phases],
        "parallel_fraction": 0.75,
        "train_loss": 2.0 / epoch,
        "train_accuracy": 1 - 0.8 / epoch,
        "test_loss": 2.2 / epoch,
        "test_accuracy": 1 - 0.9 / epoch,
    }


RUN = [
    line(1, ("correction", 3), ("parallel", 7)),
    line(2, ("parallel", 10)),
    line(3, ("parallel", 5), ("correction", 5)),
]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved, to look at what is in them."""
    figures: list[Figure] = []
    save = Figure.savefig

    def keep(self: Figure, *args: Any, **kwargs: Any) -> None:
        figures.append(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def test_bands_are_the_phases_in_epochs():
    bands = phase_bands(RUN)
    assert [band[0] for band in bands] == ["correction", "parallel", "correction"]
    assert [band[1] for band in bands] == pytest.approx([0, 0.3, 2.5])
    assert [band[2] for band in bands] == pytest.approx([0.3, 2.5, 3])


def test_a_resumed_run_may_lack_its_first_epochs():
    assert phase_bands(RUN[1:2]) == [("parallel", 1.0, 2.0)]


def test_the_file_is_a_png_of_the_expected_size(tmp_path: Path):
    path = tmp_path / "plot.png"
    plot_run(RUN, Config(), path)
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    height, width, _ = matplotlib.image.imread(path).shape
    assert (width, height) == (1200, 528)


def test_both_panels_show_both_curves_over_the_bands(tmp_path: Path, drawn: list[Figure]):
    plot_run(RUN, Config(), tmp_path / "plot.png")
    loss, accuracy = drawn[0].axes
    for axis, what in ((loss, "loss"), (accuracy, "accuracy")):
        curves = [list(curve.get_ydata()) for curve in axis.lines]
        assert curves == [[m[f"{split}_{what}"] for m in RUN] for split in ("train", "test")]
        assert [list(curve.get_xdata()) for curve in axis.lines] == [[1, 2, 3]] * 2
        bands = phase_bands(RUN)
        assert [patch.get_x() for patch in axis.patches] == pytest.approx([b[1] for b in bands])
        widths = [patch.get_width() for patch in axis.patches]
        assert widths == pytest.approx([b[2] - b[1] for b in bands])
        assert axis.get_xlim() == (0, 3)


def test_words_say_what_was_trained_and_how_well(tmp_path: Path, drawn: list[Figure]):
    config = Config(num_stages=3, filters=FilterConfig(pool=2, cast="int8"))
    plot_run(RUN, config, tmp_path / "plot.png")
    title = drawn[0].get_suptitle()
    for words in ("resnet20", "digits", "3 stages", "2x2 int8", "75%"):
        assert words in title
    assert [text.get_text() for text in drawn[0].axes[1].texts] == ["70.00%"]
    legend = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert legend == ["training", "test", *(f"{phase} phase" for phase in PHASE_COLORS)]


def test_the_legend_names_only_phases_that_happened(tmp_path: Path, drawn: list[Figure]):
    plot_run(RUN[1:2], Config(num_stages=1), tmp_path / "plot.png")
    legend = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert legend == ["training", "test", "parallel phase"]
    assert "1 stage ·" in drawn[0].get_suptitle()


def test_one_epoch_is_drawn_as_points(tmp_path: Path, drawn: list[Figure]):
    plot_run(RUN[:1], Config(), tmp_path / "plot.png")
    assert {curve.get_marker() for axis in drawn[0].axes for curve in axis.lines} == {"o"}


def test_there_is_no_global_state(tmp_path: Path):
    # pyplot keeps every figure of a process, and wants a display in some of its backends.
    had_pyplot = "matplotlib.pyplot" in sys.modules
    plot_run(RUN, Config(), tmp_path / "plot.png")
    assert had_pyplot or "matplotlib.pyplot" not in sys.modules
