"""The study's costs, controls and statistics; every case of the accuracy benchmarks is a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.accuracy import costs, rules, study, study_page
from benchmarks.accuracy.run import CASES

ROOTS = {"cifar10": "somewhere", "mnist": "somewhere"}


def test_every_case_is_a_configuration():
    for case in CASES.values():
        assert case.configure(7, ROOTS).seed == 7


def test_a_cost_is_that_of_the_slowest_device():
    """K=4: the parallel phase a quarter, the correction phase 7 slots of 4 quarters."""
    assert costs.free_cost(4, exact=0.0) == 1 / 4
    assert costs.free_cost(4, exact=1.0) == 7 / 16
    assert costs.free_cost(1, exact=0.3) == 1.0
    # Of 13 parts the last stage has 4, the others 3 each and a third more of them to compute.
    assert costs.free_cost(4, exact=0.0, forwards=2) == pytest.approx(4 / 13)
    assert costs.free_cost(4, exact=1.0, forwards=2) == pytest.approx(4 / 13 * 7 / 4)


def test_controls_differ_from_their_hybrid_in_nothing_else():
    """Passes apart: the same network, batch and optimiser, through the same filters or none."""
    alike = ("model", "optimizer", "batch_size", "data", "schedule", "loss", "seed")
    for row in study.COMPARISONS:
        hybrid = CASES[row.hybrid].configure(0, ROOTS)
        for name in (row.full, row.exact_only, row.same_time):
            control = CASES[name].configure(0, ROOTS)
            assert [getattr(control, k) for k in alike] == [getattr(hybrid, k) for k in alike]
            if row.controls == study.SAME_FILTERS:
                assert control.method == "exact"
                assert control.filter_list() == hybrid.filter_list()
                assert control.num_stages == hybrid.num_stages
            else:
                assert study.CASES[name].trainer == "serial"


def test_the_interval_is_students():
    """Of 1, 2, 3: mean 2, deviation 1, t(.975, 2) = 4.3027."""
    assert study_page.interval([1.0, 2.0, 3.0]) == "**+2.00** [-0.48, +4.48]"
    assert study_page.interval([-0.5]) == "-0.50"
    assert study_page.interval([]) == "-"


@pytest.mark.parametrize(
    ("hybrid", "only", "same_time", "verdict"),
    [
        ([0.60, 0.61, 0.62], [0.50, 0.51, 0.52], [0.58, 0.59, 0.58], "yes"),
        ([0.60, 0.61, 0.62], [0.50, 0.51, 0.52], [0.61, 0.60, 0.60], "**no**"),
        # Each control by its own spread: that of the first says nothing of the second.
        ([0.60, 0.61, 0.62], [0.10, 0.30, 0.50], [0.58, 0.59, 0.58], "yes"),
        ([0.60, 0.61, 0.62], [0.10, 0.60, 0.90], [0.58, 0.59, 0.58], "**no**"),
        ([0.60, 0.61], [0.50, 0.51, 0.52], [0.58, 0.59, 0.58], "too few seeds"),
        ([0.60, 0.61, 0.62], [], [0.58, 0.59, 0.58], "-"),
    ],
)
def test_a_gain_is_more_than_the_spread(hybrid, only, same_time, verdict):
    found = [dict(enumerate(values)) for values in (hybrid, only, same_time)]
    assert study_page.verdict(*found) == verdict


@pytest.mark.parametrize(("accuracy", "gains_nothing"), [(0.6, False), (0.4, True)])
def test_the_rules_say_what_gains_nothing(tmp_path: Path, accuracy: float, gains_nothing: bool):
    """Greedy at K=2 beside one pass (.3) and the seven of its time (.5), three seeds."""
    task = next(t for t in rules.TASKS if t.name == "resnet20-cifar10_16")
    runs = {task.case_of("greedy", "int8", 2): accuracy, task.shorter(1): 0.3, task.shorter(7): 0.5}
    for name, final in runs.items():
        for seed in range(3):
            line = json.dumps({"test_accuracy": final + 0.01 * seed})
            (tmp_path / f"{name}-seed{seed}.jsonl").write_text(f"{line}\n")
    rules.write_rules(tmp_path, tmp_path / "rules.md")
    (row,) = (x for x in (tmp_path / "rules.md").read_text().splitlines() if "| greedy |" in x)
    assert ("**no**" in row.split("|")[4]) == gains_nothing


def test_differences_are_of_the_same_seeds(tmp_path: Path):
    row = study.COMPARISONS[0]
    for name, seeds in ((row.hybrid, {0: 0.6, 1: 0.7}), (row.full, {1: 0.65, 2: 0.9})):
        for seed, accuracy in seeds.items():
            line = json.dumps({"test_accuracy": accuracy})
            (tmp_path / f"{name}-seed{seed}.jsonl").write_text(f"{line}\n")
    study_page.write_study(tmp_path, tmp_path / "study.md")
    (line,) = (x for x in (tmp_path / "study.md").read_text().splitlines() if "resnet8" in x)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1] == "12.5%"
    assert cells[4].startswith("0.7750")
    assert cells[5:7] == ["0.6500 (1)", "+5.00"]
