"""Where ResNet-20's maps are pooled and where it is cut: before the blocks that halve them, or not.

Ten passes over 10,000 images of CIFAR-10 at 16x16. Blocks 4 and 7 have stride 2. Filters inside a
stage act like those of cuts, so that what pooling does is seen in one stage, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.accuracy.cases import Case, table_head
from benchmarks.accuracy.costs import sent_share
from benchmarks.finals import finals, spread

_COMMON = ("model.name=resnet20", "epochs=10")
_ALONE = ("num_stages=1", "method=exact", "correction.micro_batches=1", "filters=null")


def _pooled(*boundaries: int) -> tuple[str, ...]:
    """Return one stage with 2x2 pooling, in fp32, before these blocks."""
    kept = ", ".join(f"{{boundary: {b}, pool: 2, cast: fp32}}" for b in boundaries)
    return (*_ALONE, f"kept_filters=[{kept}]")


def _cut(method: str, *cuts: int) -> tuple[str, ...]:
    """Return stages with these cuts and the filters that go by the cut."""
    return (
        f"num_stages={len(cuts) + 1}",
        f"cuts=[{', '.join(map(str, cuts))}]",
        f"method={method}",
        "parallel.micro_batches=4",
        "filters=null",
    )


PLACES: dict[str, tuple[str, ...]] = {
    "one stage, pooled before no block": _ALONE,
    "one stage, pooled before block 4": _pooled(4),
    "one stage, pooled before block 7": _pooled(7),
    "one stage, pooled before blocks 4 and 7": _pooled(4, 7),
    "one stage, pooled before blocks 5 and 8": _pooled(5, 8),
    "K=3, cuts 3 and 6, exact": _cut("exact", 3, 6),
    "K=3, cuts 4 and 7, exact": _cut("exact", 4, 7),
    "K=3, cuts 3 and 6, delayed gradients": _cut("delayed_gradient", 3, 6),
    "K=3, cuts 4 and 7, delayed gradients": _cut("delayed_gradient", 4, 7),
}


def _name(words: str) -> str:
    return f"place-{words.lower().replace(',', '').replace('=', '').replace(' ', '-')}"


CASES = {
    _name(words): Case(
        "cifar10_16", f"resnet20, 10 passes, {words}", (*_COMMON, *settings), "one process"
    )
    for words, settings in PLACES.items()
}


def rows(results: Path) -> Sequence[str]:
    """Return the lines of the table; those of the default cuts are also in `rules.md`."""
    found = [*table_head(["ResNet-20, 10 passes", "fp32's bytes", "accuracy"])]
    for words in PLACES:
        case = CASES[_name(words)]
        sent = "-" if words.startswith("one") else f"{sent_share(case.configure(0, {})):.1%}"
        found.append(f"| {words} | {sent} | {spread(finals(results, _name(words)))} |")
    return found
