"""What is trained for the accuracy tables: one entry a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.accuracy.costs import K2_COST, free_cost, whole
from laminar.config import Config
from laminar.config_file import load_config

_HERE = Path(__file__).parent

Trainer = Literal["ray", "one process", "serial"]


@dataclass(frozen=True)
class Case:
    """One row of a table."""

    file: str
    """Configuration beside this program, and the panel of the figure."""
    label: str
    """Data set, network, setting."""
    overrides: tuple[str, ...] = ()
    trainer: Trainer = "ray"
    """Ray's actors; the same stages in one process; or ordinary backprop, the baseline."""

    def configure(self, seed: int, roots: Mapping[str, str]) -> Config:
        """Return the configuration of a run; `roots` has the folder of each data set with one."""
        settings = [f"seed={seed}", *self.overrides]
        root = roots.get(self.file.partition("_")[0])
        if root is not None:
            settings.append(f"data.root={root}")
        return load_config(_HERE / f"{self.file}.yaml", settings)


def _stages(num: int, *more: str) -> tuple[str, ...]:
    """Return the overrides for K stages on two cores."""
    return (f"num_stages={num}", f"resources.cpus_per_stage={2 / num}", *more)


_INT8 = "filters={pool: 1, cast: int8}"
_M4 = "parallel.micro_batches=4"

CASES = {
    "digits-k2": Case("digits", "digits, ResNet-20, K=2, 2x2 fp16"),
    "digits-serial": Case("digits", "digits, ResNet-20, serial", trainer="serial"),
    "mnist-k2": Case("mnist", "MNIST, ResNet-8, K=2, 2x2 fp16"),
    "mnist-serial": Case("mnist", "MNIST, ResNet-8, serial", trainer="serial"),
    "cifar10-k2": Case("cifar10", "CIFAR-10, ResNet-8, K=2, 2x2 fp16"),
    "cifar10-k3": Case("cifar10", "CIFAR-10, ResNet-8, K=3, 2x2 fp16", _stages(3, _M4)),
    "cifar10-k3-int8": Case(
        "cifar10", "CIFAR-10, ResNet-8, K=3, int8 without pooling", _stages(3, _M4, _INT8)
    ),
    "cifar10-serial": Case("cifar10", "CIFAR-10, ResNet-8, serial", trainer="serial"),
}
for _name, _title, _epochs in (("resnet20", "ResNet-20", 6), ("wrn16_2", "WRN-16-2", 2)):
    _base = (f"model.name={_name}", f"epochs={_epochs}")
    _where = f"CIFAR-10 (10,000 images), {_title}"
    CASES[f"{_name}-serial"] = Case("cifar10_10k", f"{_where}, serial", _base, trainer="serial")
    for _k in (2, 3, 4):
        _filter = ("filters={pool: 2, cast: fp16}",) if _k == 2 else (_INT8, _M4)
        _how = "2x2 fp16" if _k == 2 else "int8 without pooling"
        CASES[f"{_name}-k{_k}"] = Case(
            "cifar10_10k", f"{_where}, K={_k}, {_how}", _stages(_k, *_base, *_filter)
        )


CONTROLS: set[str] = set()
"""Those of `CASES` that are serial training of fewer epochs."""
for _data, _title, _epochs in (
    ("digits", "digits, ResNet-20", 40),
    ("mnist", "MNIST, ResNet-8", 6),
    ("cifar10", "CIFAR-10, ResNet-8", 8),
):
    for _share, _words in (
        (0.1, "exact epochs only"),
        (K2_COST, "K=2's time on two cores"),
        *([(free_cost(3, 0.1), "K=3's time, exchange free")] if _data == "cifar10" else []),
    ):
        _num = whole(_share * _epochs)
        _name = f"{_data}-serial-{_num}-epochs"
        CONTROLS.add(_name)
        CASES[_name] = Case(
            _data, f"{_title}, serial, {_words}: {_num}", (f"epochs={_num}",), "serial"
        )


def table_head(names: Sequence[str]) -> list[str]:
    """Return the first two lines of a table."""
    return ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
