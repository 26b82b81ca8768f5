"""Accuracy over the settings of the parallel phase, on 10,000 images of CIFAR-10 at 16x16.

Five maps, a cell for each combination: what lateness costs, whether backward first makes it less,
what curvature wins back, what filters cost that send fewer bytes than int8 at every cut,
layer-parallel and exactly, and where it is best to pool and to cut (`places.py`).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from benchmarks.accuracy import places
from benchmarks.accuracy.cases import Case, table_head
from benchmarks.accuracy.costs import sent_share
from benchmarks.accuracy.study import CASES as STUDY
from benchmarks.accuracy.study import K4_BEST, deep, name_of
from benchmarks.finals import finals, spread

PASSES = 10
LATENESS = {"num_stages": (2, 4), "hop_delay": (1, 2, 4, 8), "micro_batches": (1, 2, 4, 10)}
BACKWARD_FIRST = ((1, 2), (1, 4), (4, 4), (4, 10))
"""d and M at K=4 where both orders are compared."""
CURVATURE = {
    (4, 4, 4): (1, 2, 4, 8),
    (4, 4, 10): (4,),
    (4, 4, 1): (4,),
    (4, 8, 10): (4,),
    (4, 1, 4): (4,),
    (4, 1, 1): (4,),
    (2, 4, 1): (4,),
    (2, 1, 2): (4,),
}
"""Strengths of `parallel.curvature` by K, d and M."""
AS_LONG = 12
"""Passes without that take at K=4 about as long as `PASSES` with it (`costs.free_cost`)."""
_INT8 = "{pool: 1, cast: int8}"
_POOLED = "{pool: 2, cast: int8}"
SMALL_PASSES = 20
SMALL = {
    "int8": (_INT8, _INT8, _INT8),
    "int8, the first cut 2x2": (_POOLED, _INT8, _INT8),
    "int8, the last cut 2x2": (_INT8, _INT8, _POOLED),
    "int8, all but the first 2x2": (_INT8, _POOLED, _POOLED),
    "int8, all 2x2": (_POOLED, _POOLED, _POOLED),
}
"""Filters of the three cuts of K=4, whose tensors are of 4,096, 4,096 and 2,048 values a sample."""
_COMMON = ("model.name=resnet8", f"epochs={PASSES}")


def _late(num_stages: int, delay: int, per_batch: int, order: str = "forward_first") -> str:
    name = f"map-k{num_stages}-d{delay}-m{per_batch}"
    return name if order == "forward_first" else f"{name}-backward-first"


def _curved(num_stages: int, delay: int, per_batch: int, strength: int) -> str:
    name = _late(num_stages, delay, per_batch)
    return f"{name}-curvature-{strength}" if strength else name


def _longer(num_stages: int, delay: int, per_batch: int) -> str:
    return f"{_late(num_stages, delay, per_batch)}-{AS_LONG}-passes"


def _small(words: str, method: str = "delayed_gradient") -> str:
    study = {"int8": "K=4, int8", "int8, all but the first 2x2": K4_BEST}
    if words in study:
        exact = ", exact" if method == "exact" else ""
        return name_of("resnet8", SMALL_PASSES, study[words] + exact)
    kind = "small" if method == "delayed_gradient" else f"small-{method}"
    return f"{kind}-{words.replace(',', '').replace(' ', '-')}"


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
                f"filters={_INT8}",
            )
for _d, _m in BACKWARD_FIRST:
    _same = CASES[_late(4, _d, _m)]
    CASES[_late(4, _d, _m, "backward_first")] = dataclasses.replace(
        _same,
        label=f"{_same.label}, backward first",
        overrides=(*_same.overrides, "parallel.order=backward_first"),
    )
for _place, _strengths in CURVATURE.items():
    _same = CASES[_late(*_place)]
    CASES[_longer(*_place)] = dataclasses.replace(
        _same,
        label=_same.label.replace(f"{PASSES} passes", f"{AS_LONG} passes"),
        overrides=(*_same.overrides, f"epochs={AS_LONG}"),
    )
    for _strength in _strengths:
        CASES[_curved(*_place, _strength)] = dataclasses.replace(
            _same,
            label=f"{_same.label}, curvature {_strength}",
            overrides=(*_same.overrides, f"parallel.curvature={_strength}"),
        )
for _words, _filters in SMALL.items():
    for _method in ("delayed_gradient", "exact"):
        _name = _small(_words, _method)
        CASES[_name] = STUDY.get(_name) or Case(
            "cifar10_16",
            f"resnet8, {SMALL_PASSES} passes, K=4, {_words}, {_method}",
            (
                "model.name=resnet8",
                f"epochs={SMALL_PASSES}",
                *deep(4, f"filters=[{', '.join(_filters)}]", f"method={_method}"),
            ),
            "one process",
        )
CASES |= places.CASES


def write_maps(results: Path, page: Path) -> None:
    """Write the maps if anything of them is there; a cell that no seed has reached is a dash."""
    if not any((results / f"{name}-seed0.jsonl").exists() for name in CASES):
        return
    numbers = LATENESS["micro_batches"]
    serial = finals(results, "map-serial")
    first = spread({seed: serial[seed] for seed in serial if seed == 0})
    rows = [
        f"Serial: {spread(serial)}; {first} with seed 0, which cells of one seed are of. "
        f"{PASSES} passes; mean +- std (seeds)."
    ]
    rows += ["", *table_head(["K", "d", *(f"M={m}" for m in numbers)])]
    for k in LATENESS["num_stages"]:
        for d in LATENESS["hop_delay"]:
            cells = [_cell(results, _late(k, d, m)) for m in numbers]
            rows.append(f"| {k} | {d} | " + " | ".join(cells) + " |")
    rows += ["", *table_head(["K", "d", "M", "forward first", "backward first"])]
    for d, m in BACKWARD_FIRST:
        orders = ("forward_first", "backward_first")
        cells = [_cell(results, _late(4, d, m, order)) for order in orders]
        rows.append(f"| 4 | {d} | {m} | " + " | ".join(cells) + " |")
    strengths = sorted({0, *(each for some in CURVATURE.values() for each in some)})
    heads = [*(f"curvature {c}" for c in strengths), f"0, {AS_LONG} passes"]
    rows += ["", *table_head(["K", "d", "M", *heads])]
    for place in CURVATURE:
        cells = [_cell(results, _curved(*place, c)) for c in strengths]
        cells.append(_cell(results, _longer(*place)))
        rows.append(" | ".join([f"| {place[0]}", *map(str, place[1:]), *cells]) + " |")
    heads = [f"filters at K=4, {SMALL_PASSES} passes", "fp32's bytes", "layer-parallel", "exact"]
    rows += ["", *table_head(heads)]
    for words in SMALL:
        cells = [_cell(results, _small(words, m)) for m in ("delayed_gradient", "exact")]
        sent = sent_share(CASES[_small(words)].configure(0, {}))
        rows.append(f"| {words} | {sent:.1%} | " + " | ".join(cells) + " |")
    rows += ["", *places.rows(results)]
    page.write_text("\n".join(rows) + "\n")


def _cell(results: Path, name: str) -> str:
    return spread(finals(results, name))
