"""Rules of decoupling with each filter at each number of stages, on several networks and data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.accuracy.cases import Case, table_head
from benchmarks.accuracy.costs import K2_COST, free_cost, whole
from benchmarks.accuracy.study_page import verdict
from benchmarks.finals import finals, spread

RULES = {
    "delayed_gradient": ("method=delayed_gradient",),
    "curvature": ("method=delayed_gradient", "parallel.curvature=4"),
    "greedy": ("method=greedy",),
    "auxnet": ("method=auxnet",),
    "exact": ("method=exact",),
}
FILTERS = {
    "int8": "{pool: 1, cast: int8}",
    "2x2 fp16": "{pool: 2, cast: fp16}",
    "none": "{pool: 1, cast: fp32}",
    "by the cut": "null",
}
STAGES = (2, 3, 4)
_EXACT = 0.1
"""Share of exact passes by the default plan, which all of them follow."""


@dataclass(frozen=True)
class Task:
    """What all of a block of the table train."""

    network: str
    data: str
    words: str
    passes: int

    @property
    def name(self) -> str:
        """In the names of its cases."""
        return f"{self.network}-{self.data}"

    @property
    def settings(self) -> tuple[str, ...]:
        """Of the configuration, but for its passes."""
        limit = ("data.max_train=10000",) if self.data == "mnist" else ()
        return (f"model.name={self.network}", *limit)

    def case_of(self, rule: str, filter_: str, num_stages: int) -> str:
        """Return the name of a cell's case."""
        return f"rule-{self.name}-{rule}-{filter_.replace(' ', '-')}-k{num_stages}"

    @property
    def serial(self) -> str:
        """The name of control (a), as many passes."""
        return "map-serial" if self is TASKS[0] else f"rule-{self.name}-serial"

    def exact_only(self, num_stages: int) -> int:
        """Return the passes of control (b), 0 where they are as many as (a)'s."""
        return self._whole(_EXACT)

    def same_time(self, num_stages: int, forwards: int = 1) -> int:
        """Return the passes of control (c), 0 where they are as many as (a)'s."""
        cost = free_cost(num_stages, _EXACT, forwards)
        if num_stages == 2:
            cost *= K2_COST / free_cost(2, _EXACT)
        return self._whole(cost)

    def curvatures_time(self, num_stages: int) -> int:
        """Return the same for stages whose late forwards run twice."""
        return self.same_time(num_stages, forwards=2)

    def _whole(self, share: float) -> int:
        found = whole(share * self.passes)
        return found if found < self.passes else 0

    def shorter(self, passes: int) -> str:
        """Return the name of serial training with fewer passes."""
        return f"{self.serial}-{passes}-passes"


TASKS = (
    Task("resnet8", "cifar10_16", "ResNet-8, CIFAR-10 (10,000 images at 16x16), 10 passes", 10),
    Task("resnet20", "cifar10_16", "ResNet-20, the same, 10 passes", 10),
    Task("wrn16_2", "cifar10_16", "WRN-16-2, the same, 3 passes", 3),
    Task("resnet20", "mnist", "ResNet-20, MNIST (10,000 images), 4 passes", 4),
    Task("wrn16_2", "mnist", "WRN-16-2, the same, 2 passes", 2),
)
_CONTROLS: dict[str, Callable[[Task, int], int]] = {
    "serial, exact passes only": Task.exact_only,
    "serial, same time": Task.same_time,
    "serial, curvature's time": Task.curvatures_time,
}


def _cases(task: Task) -> dict[str, Case]:
    passes = (*task.settings, f"epochs={task.passes}")
    found = {task.serial: Case(task.data, f"{task.words}, serial", passes, "serial")}
    for k in STAGES:
        for num in filter(None, (control(task, k) for control in _CONTROLS.values())):
            label = f"{task.words}, serial, {num} passes only"
            settings = (*task.settings, f"epochs={num}")
            found[task.shorter(num)] = Case(task.data, label, settings, "serial")
    for cast, filter_ in FILTERS.items():
        for rule, settings in RULES.items():
            for k in STAGES:
                found[task.case_of(rule, cast, k)] = Case(
                    task.data,
                    f"{task.words}, {rule}, {cast}, K={k}",
                    (
                        *passes,
                        f"num_stages={k}",
                        *settings,
                        f"filters={filter_}",
                        f"parallel.micro_batches={2 if k == 2 else 4}",
                    ),
                    "one process",
                )
    return found


CASES = {name: case for task in TASKS for name, case in _cases(task).items()}

_HEAD = """\
Test accuracy, mean +- std (seeds), of one seed with seed 0. "Same time" is by wall-clock on two
cores for K=2, by K equal devices with free exchange for more (`study.md`). **no**: of three seeds
or more, and not above the exact passes only and the same time, each by more than the larger spread
of both; it has gained nothing. (`exact` takes longer than that time: it is there to compare with.)
"""


def write_rules(results: Path, page: Path) -> None:
    """Write the table; of a task that has no run yet nothing, and a dash for a missing cell."""
    rows = [_HEAD, *table_head(["task", "rule", "filter", *(f"K={k}" for k in STAGES)])]
    for task in TASKS:
        if any(results.glob(f"rule-{task.name}-*.jsonl")):
            rows += _block(results, task)
    page.write_text("\n".join(rows) + "\n")


def _block(results: Path, task: Task) -> list[str]:
    serial = finals(results, task.serial)
    seed_0 = f"seed 0: {serial[0]:.4f}" if 0 in serial else "-"
    rows = [f"| {task.words} | serial | none | {spread(serial)} | {seed_0} | |"]

    def add(rule: str, cast: str, cells: list[str]) -> None:
        if any(not found.endswith("-") for found in cells):
            rows.append(f"| | {rule} | {cast} | " + " | ".join(cells) + " |")

    for words, control in _CONTROLS.items():
        nums = [control(task, k) for k in STAGES]
        shorter = [spread(finals(results, task.shorter(num))) if num else "-" for num in nums]
        add(words, "none", [f"{n}: {s}" if n else s for n, s in zip(nums, shorter, strict=True)])
    for rule in RULES:
        for cast in FILTERS:
            add(rule, cast, [_cell(results, task, rule, cast, k) for k in STAGES])
    return rows


def _cell(results: Path, task: Task, rule: str, cast: str, num_stages: int) -> str:
    found = finals(results, task.case_of(rule, cast, num_stages))
    same_time = task.curvatures_time if rule == "curvature" else task.same_time
    controls = [
        finals(results, task.shorter(num) if num else task.serial)
        for num in (task.exact_only(num_stages), same_time(num_stages))
    ]
    gains_nothing = verdict(found, *controls) == "**no**"
    return f"{spread(found)} **no**" if gains_nothing else spread(found)
