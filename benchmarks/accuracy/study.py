"""Hybrids beside their controls on 10,000 images of CIFAR-10 at 16x16, one comparison a row.

A hybrid stands first beside serial backprop, then beside exact training of the very network that it
trains, with its filters and micro-batches: what filters do is in both, what lateness does in one.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from benchmarks.accuracy.cases import Case, Trainer
from benchmarks.accuracy.costs import K2_COST, PARALLEL_SPEED, free_cost, whole

CASES: dict[str, Case] = {}


@dataclass(frozen=True)
class Comparison:
    """A layer-parallel run and the exact ones it must be held against, by the names of cases."""

    hybrid: str
    full: str
    """(a) As many passes."""
    exact_only: str
    """(b) Only as many passes as the hybrid has exact ones, annealed to zero."""
    same_time: str
    """(c) Annealed to zero within the hybrid's time."""
    time: str
    """How that time was found."""
    controls: str
    """What the three are."""


def name_of(model: str, passes: int, setting: str) -> str:
    """Return the name of a case."""
    short = setting.lower().replace("=", "").replace(", ", "-").replace(" ", "-")
    return f"{model}_16-{passes}-{short}"


def _case(model: str, passes: int, setting: str, trainer: Trainer, *overrides: str) -> str:
    """Add a case, which several comparisons may share; return its name."""
    name = name_of(model, passes, setting)
    settings = (f"model.name={model}", f"epochs={passes}", *overrides)
    CASES[name] = Case("cifar10_16", f"{model}, {passes} passes, {setting}", settings, trainer)
    return name


SERIAL, SAME_FILTERS = "serial", "exact, same filters"


@dataclass(frozen=True)
class Hybrid:
    """A layer-parallel run."""

    model: str
    passes: int
    words: str
    settings: tuple[str, ...]
    cost: float
    """The time of one pass in serial passes."""
    time: str
    """Where that comes from."""
    exact: float
    """Share of its passes that are exact."""

    def compare(self, controls: str) -> Comparison:
        """Add it and its controls to the cases."""
        name = _case(self.model, self.passes, self.words, "one process", *self.settings)
        return Comparison(
            hybrid=name,
            full=self._control(controls, self.passes),
            exact_only=self._control(controls, self.exact * self.passes),
            same_time=self._control(controls, self.cost * self.passes),
            time=self.time,
            controls=controls,
        )

    def _control(self, controls: str, passes: float) -> str:
        num = whole(passes)
        if controls == SERIAL:
            common = [s for s in self.settings if s.startswith(("batch_size=", "optimizer."))]
            words = f"serial, {STEP_SIZE}" if STEP_SIZE in self.words else "serial"
            return _case(self.model, num, words, "serial", *common)
        settings = [s for s in self.settings if not s.startswith("phases=")]
        words = f"{self.words}, exact"
        return _case(self.model, num, words, "one process", *settings, "method=exact")


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

STEP_SIZE = "lr .23"
"""In a run's words: with the step size and momentum that are the defaults."""
_DEFAULT_SGD = ("optimizer.lr=0.23", "optimizer.momentum=0.85")


def _k2(passes: int, words: str = "", *more: str) -> Hybrid:
    settings = ("num_stages=2", *more)
    return Hybrid(
        "resnet8", passes, f"K=2, 2x2 fp16{words}", settings, K2_COST, _MEASURED, exact=0.1
    )


def _more_stages(
    model: str, num_stages: int, passes: int, words: str = "int8", *more: str
) -> Hybrid:
    forwards = 2 if any(setting.startswith("parallel.curvature") for setting in more) else 1
    cost, settings = free_cost(num_stages, 0.15, forwards), deep(num_stages, *more)
    words = f"K={num_stages}, {words}"
    return Hybrid(model, passes, words, settings, cost, _COUNTED, exact=0.15)


def pooled_filters(num_stages: int, first: int = 1) -> str:
    """Return the setting of int8 at all cuts, pooled behind the first so many; 1 is `K4_BEST`'s."""
    whole = ["{pool: 1, cast: int8}"] * first
    pooled = ["{pool: 2, cast: int8}"] * (num_stages - 1 - first)
    return f"filters=[{', '.join([*whole, *pooled])}]"


_BEST = K4_BEST.removeprefix("K=4, ")
HYBRIDS = [
    *(_k2(n) for n in (20, 40)),
    *(_more_stages("resnet8", 4, n) for n in (20, 40)),
    *(_more_stages("resnet8", 4, n, _BEST, pooled_filters(4)) for n in (20, 40)),
    _k2(20, f", {STEP_SIZE}", *_DEFAULT_SGD),
    _more_stages("resnet8", 4, 20, f"{_BEST}, {STEP_SIZE}", pooled_filters(4), *_DEFAULT_SGD),
    _more_stages("resnet20", 8, 40, "int8", "batch_size=96"),
    _more_stages("resnet20", 8, 40, _BEST, pooled_filters(8), "batch_size=96"),
    *(
        _more_stages(
            "resnet20", 8, 40, f"int8, 2x2 {words}", pooled_filters(8, first), "batch_size=96"
        )
        for words, first in (("behind the first group", 4), ("from the first strided block on", 3))
    ),
]
_LATE = (pooled_filters(4), "parallel.hop_delay=4", "parallel.micro_batches=10")
SLOW_NETWORK = [
    _more_stages("resnet8", 4, 20, f"{_BEST}, d=4", *_LATE),
    _more_stages("resnet8", 4, 20, f"{_BEST}, d=4, curvature", *_LATE, "parallel.curvature=4"),
]
"""Four ticks a hop. Exact training through the same filters is that of `K4_BEST` at one."""


STORED: dict[str, tuple[str, ...]] = {
    "augmented lagrangian": ("method=augmented_lagrangian",),
    "penalty": ("method=penalty",),
    "curvature": ("method=delayed_gradient", "parallel.curvature=4"),
    "augmented lagrangian, two sweeps": ("method=augmented_lagrangian", "stored.sweeps=2"),
    "penalty, two sweeps": ("method=penalty", "stored.sweeps=2"),
}
"""What pulls a stage's output in a visit: multipliers and a penalty, or the adjoint corrected. Only
with a second sweep do lambda and kappa move after the exact pass."""


def _compare_stored(pull: str, controls: str) -> Comparison:
    """Add a run of 20 passes with auxiliary variables per sample, two of them exact at the start.

    The exact passes have one micro-batch and run one stage after the other.
    """
    num_sweeps = 2 if "stored.sweeps=2" in STORED[pull] else 1
    num_stored = 18 // (1 + num_sweeps)
    fresh, visits = 2 + num_stored, num_sweeps * num_stored
    settings = (
        "num_stages=2",
        *STORED[pull],
        "parallel.feed=stored",
        "correction.micro_batches=1",
        f"phases=[{{phase: correction, epochs: 2}}, {{phase: parallel, epochs: {num_stored}}}]",
    )
    words = f"K=2, stored, {pull}, 2x2 fp16"
    hybrid = _case("resnet8", fresh, words, "one process", *settings)
    label = f"resnet8, {fresh} fresh passes and {visits} visits, {words}"
    CASES[hybrid] = dataclasses.replace(CASES[hybrid], label=label)
    exact = ("num_stages=2", "correction.micro_batches=1", "method=exact")

    def control(num: int) -> str:
        if controls == SERIAL:
            return _case("resnet8", num, "serial", "serial")
        return _case("resnet8", num, "K=2, 2x2 fp16, one micro-batch, exact", "one process", *exact)

    return Comparison(
        hybrid=hybrid,
        full=control(20),
        exact_only=control(fresh),
        same_time=control(whole(fresh + visits / PARALLEL_SPEED)),
        time=f"{_MEASURED}, the fresh passes serial",
        controls=controls,
    )


COMPARISONS = [
    *(hybrid.compare(controls) for hybrid in HYBRIDS for controls in (SERIAL, SAME_FILTERS)),
    *(hybrid.compare(SERIAL) for hybrid in SLOW_NETWORK),
    *(_compare_stored(pull, controls) for pull in STORED for controls in (SERIAL, SAME_FILTERS)),
]
