"""Where ResNet-20's maps are pooled and where it is cut: before the blocks that halve them, or not.

Ten passes over 10,000 images of CIFAR-10 at 16x16. Blocks 4 and 7 have stride 2. Filters inside a
stage act like those of cuts, so that what pooling does is seen in one stage, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.accuracy import rules
from benchmarks.accuracy.cases import Case, table_head
from benchmarks.accuracy.costs import sent_share
from benchmarks.finals import finals, spread

_COMMON = ("model.name=resnet20", "epochs=10")


def _pooled(*boundaries: int) -> tuple[str, ...]:
    """Return one stage with 2x2 pooling, in fp32, before these blocks."""
    kept = ", ".join(f"{{boundary: {b}, pool: 2, cast: fp32}}" for b in boundaries)
    alone = ("num_stages=1", "method=exact", "correction.micro_batches=1", "filters=null")
    return (*alone, f"kept_filters=[{kept}]")


def _cut(method: str) -> tuple[str, ...]:
    """Return three stages cut before blocks 4 and 7, with the filters that go by the cut."""
    stages = ("num_stages=3", "cuts=[4, 7]", "parallel.micro_batches=4", "filters=null")
    return (*stages, f"method={method}")


def _case(words: str, settings: tuple[str, ...]) -> str:
    """Add a case; return its name."""
    name = f"place-{words.lower().replace(',', '').replace('=', '').replace(' ', '-')}"
    label = f"resnet20, 10 passes, {words}"
    CASES[name] = Case("cifar10_16", label, (*_COMMON, *settings), "one process")
    return name


CASES: dict[str, Case] = {}
_RESNET20 = next(t for t in rules.TASKS if t.name == "resnet20-cifar10_16")
PLACES = {
    "one stage, nothing pooled": _RESNET20.serial,
    **{
        words: _case(words, _pooled(*boundaries))
        for words, boundaries in {
            "one stage, pooled before block 4": (4,),
            "one stage, pooled before block 7": (7,),
            "one stage, pooled before blocks 4 and 7": (4, 7),
            "one stage, pooled before blocks 5 and 8": (5, 8),
        }.items()
    },
    "K=3, cuts 3 and 6, exact": _RESNET20.case_of("exact", "by the cut", 3),
    "K=3, cuts 4 and 7, exact": _case("K=3, cuts 4 and 7, exact", _cut("exact")),
    "K=3, cuts 3 and 6, delayed": _RESNET20.case_of("delayed_gradient", "by the cut", 3),
    "K=3, cuts 4 and 7, delayed": _case("K=3, cuts 4 and 7, delayed", _cut("delayed_gradient")),
}
"""Rows of the table, by the name of their case; the cuts 3 and 6 are those of equal cost."""


def rows(results: Path) -> Sequence[str]:
    """Return the lines of the table."""
    found = [*table_head(["ResNet-20, 10 passes", "fp32's bytes", "accuracy"])]
    for words, name in PLACES.items():
        sent = "-"
        if not words.startswith("one stage"):
            sent = f"{sent_share((rules.CASES | CASES)[name].configure(0, {})):.1%}"
        found.append(f"| {words} | {sent} | {spread(finals(results, name))} |")
    return found
