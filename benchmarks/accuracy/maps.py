"""Accuracy over the settings of the parallel phase, on 10,000 images of CIFAR-10 at 16x16.

Three maps, a cell for each combination: what lateness costs, whether backward first makes it less,
and what each rule of decoupling gives with each filter.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.accuracy.cases import Case

PASSES = 10
LATENESS = {"num_stages": (2, 4), "hop_delay": (1, 2, 4, 8), "micro_batches": (1, 2, 4, 10)}
BACKWARD_FIRST = ((1, 2), (1, 4), (4, 4), (4, 10))
"""d and M at K=4 where both orders are compared."""
RULES = ("delayed_gradient", "greedy", "auxnet")
FILTERS = {
    "none": "{pool: 1, cast: fp32}",
    "2x2 fp16": "{pool: 2, cast: fp16}",
    "int8": "{pool: 1, cast: int8}",
}
STAGES = (2, 3, 4)
_COMMON = ("model.name=resnet8", f"epochs={PASSES}")


def _late(num_stages: int, delay: int, per_batch: int, order: str = "forward_first") -> str:
    name = f"map-k{num_stages}-d{delay}-m{per_batch}"
    return name if order == "forward_first" else f"{name}-backward-first"


def _ruled(rule: str, cast: str, num_stages: int) -> str:
    return f"rule-{rule}-{cast.replace(' ', '-')}-k{num_stages}"


def _case(label: str, *settings: str) -> Case:
    label = f"resnet8, {PASSES} passes, {label}"
    return Case("cifar10_16", label, (*_COMMON, *settings), "one process")


CASES: dict[str, Case] = {
    "map-serial": Case("cifar10_16", f"resnet8, {PASSES} passes, serial", _COMMON, "serial")
}
for _k in LATENESS["num_stages"]:
    for _d in LATENESS["hop_delay"]:
        for _m in LATENESS["micro_batches"]:
            CASES[_late(_k, _d, _m)] = _case(
                f"K={_k}, d={_d}, M={_m}, int8",
                f"num_stages={_k}",
                f"parallel.hop_delay={_d}",
                f"parallel.micro_batches={_m}",
                f"filters={FILTERS['int8']}",
            )
for _d, _m in BACKWARD_FIRST:
    _same = CASES[_late(4, _d, _m)]
    CASES[_late(4, _d, _m, "backward_first")] = dataclasses.replace(
        _same,
        label=f"{_same.label}, backward first",
        overrides=(*_same.overrides, "parallel.order=backward_first"),
    )
for _rule in RULES:
    for _cast, _filter in FILTERS.items():
        for _k in STAGES:
            CASES[_ruled(_rule, _cast, _k)] = _case(
                f"{_rule}, {_cast}, K={_k}",
                f"num_stages={_k}",
                f"method={_rule}",
                f"filters={_filter}",
                f"parallel.micro_batches={2 if _k == 2 else 4}",
            )


def write_maps(results: Path, page: Path) -> None:
    """Write both maps if anything of them is there; a cell that no seed has reached is a dash."""
    if not any((results / f"{name}-seed0.jsonl").exists() for name in CASES):
        return
    numbers = LATENESS["micro_batches"]
    rows = [f"Serial: {_cell(results, 'map-serial')}. {PASSES} passes; mean of as many seeds."]
    rows += ["", *_head(["K", "d", *(f"M={m}" for m in numbers)])]
    for k in LATENESS["num_stages"]:
        for d in LATENESS["hop_delay"]:
            cells = [_cell(results, _late(k, d, m)) for m in numbers]
            rows.append(f"| {k} | {d} | " + " | ".join(cells) + " |")
    rows += ["", *_head(["K", "d", "M", "forward first", "backward first"])]
    for d, m in BACKWARD_FIRST:
        orders = ("forward_first", "backward_first")
        cells = [_cell(results, _late(4, d, m, order)) for order in orders]
        rows.append(f"| 4 | {d} | {m} | " + " | ".join(cells) + " |")
    rows += ["", *_head(["rule", "filter", *(f"K={k}" for k in STAGES)])]
    for rule in RULES:
        for cast in FILTERS:
            cells = [_cell(results, _ruled(rule, cast, k)) for k in STAGES]
            rows.append(f"| {rule} | {cast} | " + " | ".join(cells) + " |")
    page.write_text("\n".join(rows) + "\n")


def _head(names: Sequence[str]) -> list[str]:
    return ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]


def _cell(results: Path, name: str) -> str:
    finals = [
        json.loads(path.read_text().splitlines()[-1])["test_accuracy"]
        for path in results.glob(f"{name}-seed*.jsonl")
    ]
    return f"{statistics.mean(finals):.4f} ({len(finals)})" if finals else "-"
