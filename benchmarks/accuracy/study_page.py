"""The table of the study: a hybrid and its controls a row."""

from __future__ import annotations

import statistics
from pathlib import Path

from scipy import stats

from benchmarks.accuracy.costs import sent_share
from benchmarks.accuracy.study import CASES, COMPARISONS, SERIAL, Comparison
from benchmarks.finals import finals, spread

_HEAD = """\
10,000 images of CIFAR-10 at 16x16, batch 100 (ResNet-20: 96), crops and flips, SGD with cosine, lr
.05, momentum .9, weight decay 5e-4, but for the rows that name another step size; accuracy on 5,000
test images, mean +- std (seeds). "Wall-clock" is K=2 on two cores against backprop on one of them,
at the speeds of ResNet-20 (benchmarks/speed). At least 85% of the passes are parallel, of the
stored runs 45% or, with two sweeps, 60%, as each of their windows begins with an exact one. A
hybrid gains if it is above (b) and (c), each by more than the larger spread of both. Of fp32's
bytes a filter sends what is said, scales of int8 included, over all cuts together.
"""


def write_study(results: Path, page: Path) -> None:
    """Write the table of all comparisons that have at least one seed."""
    rows = [
        _HEAD,
        "| hybrid | fp32's bytes | accuracy | beside | (a) as many passes | the same seeds "
        "| difference, 95% interval | (b) exact passes only | (c) same time | gains |",
        "|---" * 10 + "|",
    ]
    for row in COMPARISONS:
        found = {
            part: finals(results, getattr(row, part))
            for part in ("hybrid", "full", "exact_only", "same_time")
        }
        if found["hybrid"] and (row.controls == SERIAL or found["full"] or found["exact_only"]):
            rows.append(_row(row, found))
    page.write_text("\n".join(rows) + "\n")


def _row(row: Comparison, found: dict[str, dict[int, float]]) -> str:
    hybrid, full = found["hybrid"], found["full"]
    shared = sorted(hybrid.keys() & full.keys())
    paired = [100 * (hybrid[seed] - full[seed]) for seed in shared]
    case = CASES[row.hybrid]
    sent = sent_share(case.configure(0, {}))
    cells = [case.label, f"{sent:.1%}", spread(hybrid), row.controls, spread(full)]
    cells += [spread({seed: full[seed] for seed in shared}), interval(paired)]
    for part in ("exact_only", "same_time"):
        num = CASES[getattr(row, part)].label.split(", ")[1]
        cells.append(f"{num}: {spread(found[part])}" if found[part] else "-")
    cells[-1] += f" ({row.time})" if found["same_time"] else ""
    cells.append(verdict(hybrid, found["exact_only"], found["same_time"]))
    return "| " + " | ".join(cells) + " |"


def verdict(hybrid: dict[int, float], *controls: dict[int, float]) -> str:
    """Say whether the hybrid is above each control by more than the larger spread of the two."""
    if not all(controls):
        return "-"
    if any(len(values) < 3 for values in (hybrid, *controls)):
        return "too few seeds"
    for control in controls:
        gain = statistics.mean(hybrid.values()) - statistics.mean(control.values())
        if gain <= max(statistics.stdev(values.values()) for values in (hybrid, control)):
            return "**no**"
    return "yes"


def interval(points: list[float]) -> str:
    """Return mean and 95% interval of paired differences in percentage points, by Student's t."""
    if not points:
        return "-"
    mean = statistics.mean(points)
    if len(points) < 2:
        return f"{mean:+.2f}"
    half = stats.t.ppf(0.975, len(points) - 1) * statistics.stdev(points) / len(points) ** 0.5
    return f"**{mean:+.2f}** [{mean - half:+.2f}, {mean + half:+.2f}]"
