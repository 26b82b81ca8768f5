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

# name: (configuration, overrides, label); no overrides is the serial baseline.
CASES: dict[str, tuple[str, list[str] | None, str]] = {
    "digits-k2": ("digits", [], "digits, ResNet-20, K=2, 2x2 fp16"),
    "digits-serial": ("digits", None, "digits, ResNet-20, serial"),
    "mnist-k2": ("mnist", [], "MNIST, ResNet-8, K=2, 2x2 fp16"),
    "mnist-serial": ("mnist", None, "MNIST, ResNet-8, serial"),
    "cifar10-k2": ("cifar10", [], "CIFAR-10, ResNet-8, K=2, 2x2 fp16"),
    "cifar10-k3": (
        "cifar10",
        ["num_stages=3", "resources.cpus_per_stage=0.5", "parallel.micro_batches=4"],
        "CIFAR-10, ResNet-8, K=3, 2x2 fp16",
    ),
    "cifar10-k3-int8": (
        "cifar10",
        [
            "num_stages=3",
            "resources.cpus_per_stage=0.5",
            "parallel.micro_batches=4",
            "filters={pool: 1, cast: int8}",
        ],
        "CIFAR-10, ResNet-8, K=3, int8 without pooling",
    ),
    "cifar10-serial": ("cifar10", None, "CIFAR-10, ResNet-8, serial"),
}

# The lowest accuracy that a data set's panel shows.
LOWEST = {"digits": 0.9, "mnist": 0.95, "cifar10": 0.3}


def train(name: str, seed: int, roots: dict[str, str]) -> list[dict[str, Any]]:
    """Train one case; return its metrics, one entry an epoch."""
    file, overrides, _ = CASES[name]
    settings = [f"seed={seed}", *(overrides or [])]
    if file in roots:
        settings.append(f"data.root={roots[file]}")
    config = load_config(HERE / f"{file}.yaml", settings)
    return train_serial(config, 1) if overrides is None else _train_parallel(config)


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
    figure = Figure(figsize=(14, 4.2), layout="constrained")
    axes = dict(zip(LOWEST, figure.subplots(1, 3), strict=True))
    for name, (file, overrides, label) in CASES.items():
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
            f"| {label} | {len(runs)} | **{statistics.mean(finals):.4f}**{spread} "
            f"| {' '.join(f'{a:.4f}' for a in finals)} | {share:.0%} |"
        )
        axis = axes[file]
        curve = [statistics.mean(e) for e in zip(*([m["test_accuracy"] for m in r] for r in runs))]  # noqa: B905
        style = "--" if overrides is None else "-"
        axis.plot(range(1, len(curve) + 1), curve, style, marker="o", label=label.split(", ", 2)[2])
        axis.set(title=label.split(",")[0], xlabel="epoch", ylabel="test accuracy")
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
