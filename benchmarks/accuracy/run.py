"""Train every case of the accuracy table, skipping what is done, then write table and curves.

    python -m benchmarks.accuracy.run --mnist FOLDER --cifar10 FOLDER [--only NAME] [--seeds 0 1 2]

`results/CASE-seedN.jsonl` holds a finished run, one line an epoch; `table.md` and `curves.png`
are made from these files alone (`--table` makes only them).
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
from matplotlib.figure import Figure

from actors import LayerParallelTrainer
from benchmarks.serial import train_serial
from laminar.config import Config
from laminar.config_file import load_config
from laminar.progress import EpochEnd

HERE = Path(__file__).parent
RESULTS = HERE / "results"


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    file: str
    """Configuration beside this program, and the panel of the figure."""
    label: str
    """Data set, network, setting."""
    overrides: tuple[str, ...] = ()
    is_serial: bool = False
    """Ordinary backprop in one process, the baseline."""


def _stages(num: int, *more: str) -> tuple[str, ...]:
    """Return the overrides for K stages on two cores."""
    return (f"num_stages={num}", f"resources.cpus_per_stage={2 / num}", *more)


_INT8 = "filters={pool: 1, cast: int8}"
_M4 = "parallel.micro_batches=4"

CASES = {
    "digits-k2": Case("digits", "digits, ResNet-20, K=2, 2x2 fp16"),
    "digits-serial": Case("digits", "digits, ResNet-20, serial", is_serial=True),
    "mnist-k2": Case("mnist", "MNIST, ResNet-8, K=2, 2x2 fp16"),
    "mnist-serial": Case("mnist", "MNIST, ResNet-8, serial", is_serial=True),
    "cifar10-k2": Case("cifar10", "CIFAR-10, ResNet-8, K=2, 2x2 fp16"),
    "cifar10-k3": Case("cifar10", "CIFAR-10, ResNet-8, K=3, 2x2 fp16", _stages(3, _M4)),
    "cifar10-k3-int8": Case(
        "cifar10", "CIFAR-10, ResNet-8, K=3, int8 without pooling", _stages(3, _M4, _INT8)
    ),
    "cifar10-serial": Case("cifar10", "CIFAR-10, ResNet-8, serial", is_serial=True),
}
for _name, _title in (("resnet20", "ResNet-20"), ("wrn16_2", "WRN-16-2")):
    _model, _where = f"model.name={_name}", f"CIFAR-10 (10,000 images), {_title}"
    CASES[f"{_name}-serial"] = Case("cifar10_10k", f"{_where}, serial", (_model,), is_serial=True)
    for _k in (2, 3, 4):
        _filter = ("filters={pool: 2, cast: fp16}",) if _k == 2 else (_INT8, _M4)
        _how = "2x2 fp16" if _k == 2 else "int8 without pooling"
        CASES[f"{_name}-k{_k}"] = Case(
            "cifar10_10k", f"{_where}, K={_k}, {_how}", _stages(_k, _model, *_filter)
        )

# The lowest accuracy that a data set's panel shows.
LOWEST = {"digits": 0.9, "mnist": 0.95, "cifar10": 0.3, "cifar10_10k": 0.2}


def train(name: str, seed: int, roots: dict[str, str]) -> list[dict[str, Any]]:
    """Train one case; return its metrics, one entry an epoch."""
    case = CASES[name]
    settings = [f"seed={seed}", *case.overrides]
    root = roots.get(case.file.partition("_")[0])
    if root is not None:
        settings.append(f"data.root={root}")
    config = load_config(HERE / f"{case.file}.yaml", settings)
    return train_serial(config, 1) if case.is_serial else _train_parallel(config)


def _train_parallel(config: Config) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []

    def show(event: Any) -> None:
        if isinstance(event, EpochEnd):
            lines.append(event.metrics)
            accuracy = event.metrics["test_accuracy"]
            print(f"epoch {event.metrics['epoch']}: test accuracy {accuracy:.4f}", flush=True)

    folder = tempfile.mkdtemp()
    run_config = ray.train.RunConfig(storage_path=folder, name="run")
    LayerParallelTrainer(config, run_config=run_config, callback=show).fit()
    shutil.rmtree(folder)
    return lines


def write_table() -> None:
    """Write table.md and curves.png from the finished runs."""
    rows = ["| case | seeds | test accuracy, mean +- std | each | parallel passes |",
            "|---|---|---|---|---|"]  # fmt: skip
    figure = Figure(figsize=(12, 8), layout="constrained")
    axes = dict(zip(LOWEST, figure.subplots(2, 2).flat, strict=True))
    for name, case in CASES.items():
        runs = [
            [json.loads(line) for line in path.read_text().splitlines()]
            for path in sorted(RESULTS.glob(f"{name}-seed*.jsonl"))
        ]
        if not runs:
            continue
        finals = [run[-1]["test_accuracy"] for run in runs]
        spread = f" +- {statistics.stdev(finals):.4f}" if len(finals) > 1 else ""
        share = runs[0][-1].get("parallel_fraction", 0.0)
        rows.append(
            f"| {case.label} | {len(runs)} | **{statistics.mean(finals):.4f}**{spread} "
            f"| {' '.join(f'{a:.4f}' for a in finals)} | {share:.0%} |"
        )
        axis, (data, network, setting) = axes[case.file], case.label.split(", ", 2)
        if case.file == "cifar10_10k":
            setting = f"{network}, {setting}"
        curve = [statistics.mean(e) for e in zip(*([m["test_accuracy"] for m in r] for r in runs))]  # noqa: B905
        style = "--" if case.is_serial else "-"
        axis.plot(range(1, len(curve) + 1), curve, style, marker="o", label=setting)
        axis.set(title=data, xlabel="epoch", ylabel="test accuracy")
    for file, axis in axes.items():
        axis.set_ylim(bottom=LOWEST[file])
        axis.legend(frameon=False)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(HERE / "curves.png", dpi=130)
    (HERE / "table.md").write_text("\n".join(rows) + "\n")


def main() -> None:
    """Run what is missing, each case in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mnist", default="data/mnist")
    parser.add_argument("--cifar10", default="data/cifar10")
    parser.add_argument("--only", nargs="*", default=list(CASES))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--one", nargs=2, metavar=("CASE", "SEED"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    roots = {"mnist": args.mnist, "cifar10": args.cifar10}
    RESULTS.mkdir(exist_ok=True)
    if args.one:
        lines = train(args.one[0], int(args.one[1]), roots)
        path = RESULTS / f"{args.one[0]}-seed{args.one[1]}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return
    for seed in [] if args.table else args.seeds:
        for name in args.only:
            if not (RESULTS / f"{name}-seed{seed}.jsonl").exists():
                print(f"{name}, seed {seed}", flush=True)
                command = [
                    sys.executable,
                    "-m",
                    "benchmarks.accuracy.run",
                    "--one",
                    name,
                    str(seed),
                ]
                command += ["--mnist", args.mnist, "--cifar10", args.cifar10]
                subprocess.run(command, check=True)
                write_table()
    write_table()


if __name__ == "__main__":
    main()
