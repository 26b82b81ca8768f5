"""Hybrids beside their controls on 10,000 images of CIFAR-10 at 16x16, one comparison a row."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path

from scipy import stats

from benchmarks.accuracy.cases import Case, Trainer

CASES: dict[str, Case] = {}


@dataclass(frozen=True)
class Comparison:
    """A layer-parallel run and the serial ones it must be held against, by the names of cases."""

    hybrid: str
    full: str
    """(a) As many passes."""
    exact_only: str
    """(b) Only as many passes as the hybrid has exact ones, annealed to zero."""
    same_time: str
    """(c) Annealed to zero within the hybrid's time."""
    time: str
    """How that time was found."""


def name_of(model: str, passes: int, setting: str) -> str:
    """Return the name of a case."""
    short = setting.lower().replace("=", "").replace(", ", "-").replace(" ", "-")
    return f"{model}_16-{passes}-{short}"


def _case(model: str, passes: int, setting: str, trainer: Trainer, *overrides: str) -> str:
    """Add a case unless it is there; return its name."""
    name = name_of(model, passes, setting)
    settings = (f"model.name={model}", f"epochs={passes}", *overrides)
    CASES[name] = Case("cifar10_16", f"{model}, {passes} passes, {setting}", settings, trainer)
    return name


def _compare(
    model: str, passes: int, setting: str, cost: float, time: str, exact: float, *settings: str
) -> Comparison:
    """Add a hybrid with its controls.

    Args:
        model: Network.
        passes: Of the hybrid over the data.
        setting: Words for the hybrid.
        cost: Its time for one pass, in serial passes.
        time: Where that comes from.
        exact: Share of its passes that are exact.
        settings: Overrides of the hybrid.
    """
    common = tuple(s for s in settings if s.startswith("batch_size="))

    def serial(num: float) -> str:
        return _case(model, math.ceil(round(num, 6)), "serial", "serial", *common)

    return Comparison(
        hybrid=_case(model, passes, setting, "one process", *settings),
        full=serial(passes),
        exact_only=serial(exact * passes),
        same_time=serial(cost * passes),
        time=time,
    )


def _free_cost(num_stages: int, exact: float) -> float:
    """Return the time of a pass on K equal devices in serial passes, exchange free.

    A correction phase of 4 micro-batches takes (4+K-1)/(4K) of a serial pass.
    """
    return (1 - exact) / num_stages + exact * (4 + num_stages - 1) / (4 * num_stages)


# Of one core's serial speed on two cores, benchmarks/speed/table.md: the parallel phase is 1.697
# times as fast, the correction phase 1.364 times.
_K2_COST = 0.9 / 1.697 + 0.1 / 1.364
_MEASURED, _COUNTED = "wall-clock on two cores", "K equal devices, exchange free"


def deep(num_stages: int, *more: str) -> tuple[str, ...]:
    """Return the settings for more than two stages, int8 at all cuts unless `more` has others."""
    return (
        f"num_stages={num_stages}",
        f"parallel.micro_batches={num_stages}",
        "parallel.order=backward_first",
        "phases={warmup: 0.1, correction: 0.05}",
        "filters={pool: 1, cast: int8}",
        *more,
    )


K4_BEST = "K=4, int8, 2x2 behind the first cut"
"""The best filter of K=4 in `map.md`, 14% of fp32's bytes."""
_K4_BEST_FILTERS = "filters=[{pool: 1, cast: int8}, {pool: 2, cast: int8}, {pool: 2, cast: int8}]"

COMPARISONS = [
    *(
        _compare("resnet8", n, "K=2, 2x2 fp16", _K2_COST, _MEASURED, 0.1, "num_stages=2")
        for n in (20, 40)
    ),
    *(
        _compare("resnet8", n, "K=4, int8", _free_cost(4, 0.15), _COUNTED, 0.15, *deep(4))
        for n in (20, 40)
    ),
    *(
        _compare(
            "resnet8", n, K4_BEST, _free_cost(4, 0.15), _COUNTED, 0.15, *deep(4, _K4_BEST_FILTERS)
        )
        for n in (20, 40)
    ),
    _compare(
        "resnet20", 40, "K=8, int8", _free_cost(8, 0.15), _COUNTED, 0.15, *deep(8, "batch_size=96")
    ),
]


def _compare_stored(method: str) -> Comparison:
    """Add a run of 20 passes with auxiliary variables per sample: 11 fresh ones and 9 visits.

    The exact passes have one micro-batch and run one stage after the other.
    """
    settings = (
        "num_stages=2",
        f"method={method}",
        "parallel.feed=stored",
        "correction.micro_batches=1",
        "phases=[{phase: correction, epochs: 2}, {phase: parallel, epochs: 9}]",
    )
    words = f"K=2, stored, {method.replace('_', ' ')}, 2x2 fp16"
    hybrid = _case("resnet8", 11, words, "one process", *settings)
    label = f"resnet8, 11 fresh passes and 9 visits, {words}"
    CASES[hybrid] = dataclasses.replace(CASES[hybrid], label=label)
    return Comparison(
        hybrid=hybrid,
        full=_case("resnet8", 20, "serial", "serial"),
        exact_only=_case("resnet8", 11, "serial", "serial"),
        same_time=_case("resnet8", 16, "serial", "serial"),
        time="11 serial passes, 9 on K equal devices, exchange free",
    )


COMPARISONS += [_compare_stored(method) for method in ("augmented_lagrangian", "penalty")]


def write_study(results: Path, page: Path) -> None:
    """Write the table of all comparisons that have at least one seed."""
    rows = [
        "| hybrid | seeds | accuracy | (a) as many passes | difference, paired, 95% interval "
        "| (b) exact passes only | (c) same time | gains |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in COMPARISONS:
        found = {
            part: _finals(results, getattr(row, part))
            for part in ("hybrid", "full", "exact_only", "same_time")
        }
        if found["hybrid"]:
            rows.append(_row(row, found))
    page.write_text("\n".join(rows) + "\n")


def _row(row: Comparison, found: dict[str, dict[int, float]]) -> str:
    hybrid, full = found["hybrid"], found["full"]
    cells = [CASES[row.hybrid].label, str(len(hybrid)), _spread(hybrid), _spread(full)]
    paired = [100 * (hybrid[seed] - full[seed]) for seed in sorted(hybrid.keys() & full.keys())]
    cells.append(_interval(paired))
    for part in ("exact_only", "same_time"):
        num = CASES[getattr(row, part)].label.split(", ")[1]
        cells.append(f"{num}: {_spread(found[part])}")
    cells[-1] += f" ({row.time})"
    cells.append(_verdict(hybrid, found["exact_only"], found["same_time"]))
    return "| " + " | ".join(cells) + " |"


def _verdict(hybrid: dict[int, float], *controls: dict[int, float]) -> str:
    """Say whether the hybrid is above both controls by more than the larger spread."""
    if any(len(values) < 2 for values in (hybrid, *controls)):
        return "too few seeds"
    spread = max(statistics.stdev(values.values()) for values in (hybrid, *controls))
    mean = statistics.mean(hybrid.values())
    gain = min(mean - statistics.mean(control.values()) for control in controls)
    return "yes" if gain > spread else "**no**"


def _finals(results: Path, name: str) -> dict[int, float]:
    """Return the last test accuracy of each seed."""
    found = {}
    for path in results.glob(f"{name}-seed*.jsonl"):
        last = json.loads(path.read_text().splitlines()[-1])
        found[int(path.stem.rpartition("seed")[2])] = last["test_accuracy"]
    return found


def _spread(values: dict[int, float]) -> str:
    if not values:
        return "-"
    spread = f" +- {statistics.stdev(values.values()):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values.values()):.4f}{spread} ({len(values)})"


def _interval(points: list[float]) -> str:
    """Return mean and 95% interval of paired differences in percentage points, by Student's t."""
    if not points:
        return "-"
    mean = statistics.mean(points)
    if len(points) < 2:
        return f"{mean:+.2f}"
    half = stats.t.ppf(0.975, len(points) - 1) * statistics.stdev(points) / len(points) ** 0.5
    return f"**{mean:+.2f}** [{mean - half:+.2f}, {mean + half:+.2f}]"
