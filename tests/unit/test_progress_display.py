"""The progress display, on a terminal and without one, rendered to a string."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from laminar.progress import DataProgress, EpochEnd, Notice, Progress
from service.progress import ProgressDisplay

METRICS: dict[str, Any] = {
    "epoch": 3,
    "num_batches": 20,
    "phases": [
        {"phase": "correction", "num_batches": 5},
        {"phase": "parallel", "num_batches": 15},
    ],
    "parallel_fraction": 0.9,
    "train_loss": 0.51234,
    "train_accuracy": 0.8125,
    "test_loss": 0.61234,
    "test_accuracy": 0.7951,
    "seconds": {"parallel": 6.0, "correction": 3.0, "evaluation": 1.0, "checkpoint": 0.5},
    "samples_per_s": 1234.5,
}


def console(is_terminal: bool) -> Console:
    # NO_COLOR and TERM of whoever runs the tests must not decide what they see.
    return Console(
        file=io.StringIO(), force_terminal=is_terminal, width=120, _environ={"TERM": "xterm"}
    )


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def progress(**changes: Any) -> Progress:
    values: dict[str, Any] = {
        "epoch": 3,
        "num_epochs": 10,
        "phase": "parallel",
        "num_batches_done": 50,
        "num_batches": 200,
        "samples_per_s": 1500.0,
        "eta_s": 125.0,
        "loss": 0.6543,
        "accuracy": 0.7891,
    }
    return Progress(**{**values, **changes})


def test_a_terminal_shows_where_the_run_stands():
    screen = console(is_terminal=True)
    with ProgressDisplay(screen) as display:
        display(progress())
    shown = text_of(screen)
    for words in ("epoch 3/10", "parallel", "25%", "1,500 samples/s", "ETA 2:05"):
        assert words in shown
    assert "loss 0.654  accuracy 78.9%" in shown


def test_a_terminal_shows_images_being_read():
    screen = console(is_terminal=True)
    with ProgressDisplay(screen) as display:
        display(DataProgress(500, 2000))
    for words in ("reading images", "25%", "500 of 2,000"):
        assert words in text_of(screen)


def test_a_terminal_shows_finished_epochs_in_a_table():
    screen = console(is_terminal=True)
    with ProgressDisplay(screen) as display:
        display(progress())
        display(EpochEnd(METRICS))
    shown = text_of(screen)
    for words in ("train loss", "test acc", "75%", "0.5123", "81.25%", "0.6123", "79.51%", "10.5"):
        assert words in shown


def test_the_table_keeps_the_last_epochs():
    screen = console(is_terminal=True)
    display = ProgressDisplay(screen, is_quiet=True)  # nothing but what is printed below
    for epoch in range(101, 131):
        display(EpochEnd({**METRICS, "epoch": epoch}))
    screen.print(display.render())
    shown = text_of(screen)
    assert "130" in shown
    assert "101" not in shown


@pytest.mark.parametrize(
    "phase", ["starting", "correction", "parallel", "ledger", "evaluation", "checkpoint"]
)
def test_every_phase_has_its_word(phase: str):
    screen = console(is_terminal=True)
    with ProgressDisplay(screen) as display:
        display(progress(phase=phase))
    assert phase in text_of(screen)


def test_hours_are_shown_when_there_are_hours():
    screen = console(is_terminal=True)
    with ProgressDisplay(screen) as display:
        display(progress(eta_s=3725.4))
    assert "ETA 1:02:05" in text_of(screen)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_figures_that_are_not_known_yet_are_left_out(is_terminal: bool):
    screen = console(is_terminal)
    unknown = progress(
        phase="starting",
        num_batches_done=0,
        samples_per_s=None,
        eta_s=None,
        loss=None,
        accuracy=None,
    )
    with ProgressDisplay(screen) as display:
        display(unknown)
    assert "None" not in text_of(screen)
    assert "ETA" not in text_of(screen)


def test_without_a_terminal_there_is_one_plain_line_per_epoch():
    screen = console(is_terminal=False)
    with ProgressDisplay(screen) as display:
        display(progress())
        display(EpochEnd(METRICS))
        display(progress(num_batches_done=60))
    lines = text_of(screen).splitlines()
    assert lines == [
        "epoch 3/10: 75% parallel, train loss 0.5123 accuracy 81.25%, "
        "test loss 0.6123 accuracy 79.51%, 10.5 s, 1,234 samples/s"
    ]


def test_a_plain_line_is_not_wrapped_in_a_narrow_log():
    narrow = Console(file=io.StringIO(), force_terminal=False, width=40)
    with ProgressDisplay(narrow) as display:
        display(progress())
        display(EpochEnd(METRICS))
    assert len(text_of(narrow).splitlines()) == 1


@pytest.mark.parametrize("is_terminal", [True, False])
def test_quiet_shows_nothing(is_terminal: bool):
    screen = console(is_terminal)
    with ProgressDisplay(screen, is_quiet=True) as display:
        display(progress())
        display(EpochEnd(METRICS))
    assert text_of(screen) == ""


@pytest.mark.parametrize("is_terminal", [True, False])
@pytest.mark.parametrize("is_quiet", [True, False])
def test_a_notice_is_shown_whatever_else_is(is_terminal: bool, is_quiet: bool):
    screen = console(is_terminal)
    with ProgressDisplay(screen, is_quiet=is_quiet) as display:
        display(Notice("fc.weight starts fresh [1000]"))
        display(progress())
    assert "note: fc.weight starts fresh [1000]" in text_of(screen)


def test_an_error_inside_passes_through_and_frees_the_terminal():
    screen = console(is_terminal=True)
    with pytest.raises(KeyboardInterrupt), ProgressDisplay(screen):
        raise KeyboardInterrupt
    assert text_of(screen).endswith("\x1b[?25h")  # the cursor is shown again
