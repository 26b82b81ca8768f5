"""Rules of decoupling with each filter at each number of stages, on several networks and data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.accuracy.cases import Case, cell, table_head

RULES = ("delayed_gradient", "greedy", "auxnet")
FILTERS = {
    "int8": "{pool: 1, cast: int8}",
    "2x2 fp16": "{pool: 2, cast: fp16}",
    "none": "{pool: 1, cast: fp32}",
}
STAGES = (2, 3, 4)


@dataclass(frozen=True)
class Task:
    """What all of a block of the table train."""

    name: str
    words: str
    file: str
    settings: tuple[str, ...]

    def case_of(self, rule: str, filter_: str, num_stages: int) -> str:
        """Return the name of a cell's case."""
        return f"rule-{self.name}-{rule}-{filter_.replace(' ', '-')}-k{num_stages}"

    @property
    def serial(self) -> str:
        """The name of the control."""
        return "map-serial" if self is TASKS[0] else f"rule-{self.name}-serial"


def _task(network: str, data: str, words: str, epochs: int) -> Task:
    name = f"{network}-{data}"
    return Task(name, words, data, (f"model.name={network}", f"epochs={epochs}"))


TASKS = (
    _task("resnet8", "cifar10_16", "ResNet-8, CIFAR-10 (10,000 images at 16x16), 10 passes", 10),
    _task("resnet20", "cifar10_16", "ResNet-20, the same, 10 passes", 10),
    _task("wrn16_2", "cifar10_16", "WRN-16-2, the same, 5 passes", 5),
    _task("resnet20", "mnist", "ResNet-20, MNIST, 1 pass", 1),
    _task("wrn16_2", "mnist", "WRN-16-2, MNIST, 1 pass", 1),
)
CASES: dict[str, Case] = {}
for _t in TASKS:
    CASES[_t.serial] = Case(_t.file, f"{_t.words}, serial", _t.settings, "serial")
    for _cast, _filter in FILTERS.items():
        for _rule in RULES:
            for _k in STAGES:
                CASES[_t.case_of(_rule, _cast, _k)] = Case(
                    _t.file,
                    f"{_t.words}, {_rule}, {_cast}, K={_k}",
                    (
                        *_t.settings,
                        f"num_stages={_k}",
                        f"method={_rule}",
                        f"filters={_filter}",
                        f"parallel.micro_batches={2 if _k == 2 else 4}",
                    ),
                    "one process",
                )


def write_rules(results: Path, page: Path) -> None:
    """Write the table; of a task that has no run yet nothing, and a dash for a missing cell."""
    rows = ["Test accuracy, mean of as many seeds.", ""]
    rows += table_head(["task", "rule", "filter", *(f"K={k}" for k in STAGES)])
    for task in TASKS:
        if not any(results.glob(f"rule-{task.name}-*.jsonl")):
            continue
        serial = cell(results, task.serial)
        rows.append(f"| {task.words} | serial | none | {serial} |" + " |" * (len(STAGES) - 1))
        for rule in RULES:
            for cast in FILTERS:
                cells = [cell(results, task.case_of(rule, cast, k)) for k in STAGES]
                if any(found != "-" for found in cells):
                    rows.append(f"| | {rule} | {cast} | " + " | ".join(cells) + " |")
    page.write_text("\n".join(rows) + "\n")
