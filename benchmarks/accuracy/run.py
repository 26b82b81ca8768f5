"""Train every case of the accuracy tables, skipping what is done, then write tables and curves.

    python -m benchmarks.accuracy.run --mnist FOLDER --cifar10 FOLDER [--only PATTERN ...]
        [--study | --map | --rules] [--seeds 0 1 2] [--jobs 2]

`results/CASE-seedN.jsonl` holds a finished run, one line an epoch; `table.md`, `curves.png` and
`study.md`, `map.md` and `rules.md` are made from these files alone (`--table` makes only them).
`--study` trains the cases of `study.py`, `--map` those of `maps.py`, `--rules` those of `rules.py`,
instead of those of `cases.py`.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray.train
from matplotlib.figure import Figure

from actors import LayerParallelTrainer
from benchmarks.accuracy import cases, maps, rules, study, study_page
from benchmarks.one_process import train_in_one_process
from benchmarks.serial import train_serial
from laminar.config import Config
from laminar.progress import EpochEnd

HERE = Path(__file__).parent
RESULTS = HERE / "results"

# The lowest accuracy that a data set's panel shows.
LOWEST = {"digits": 0.9, "mnist": 0.95, "cifar10": 0.3, "cifar10_10k": 0.2}


CASES = cases.CASES | study.CASES | maps.CASES | rules.CASES


def train(name: str, seed: int, roots: dict[str, str]) -> list[dict[str, Any]]:
    """Train one case; return its metrics, one entry an epoch."""
    case = CASES[name]
    config = case.configure(seed, roots)
    if case.trainer == "serial":
        return train_serial(config, 1)
    return _train_on_ray(config) if case.trainer == "ray" else train_in_one_process(config)


def _train_on_ray(config: Config) -> list[dict[str, Any]]:
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


def write_tables() -> None:
    """Write table.md, curves.png, study.md, map.md and rules.md from the finished runs."""
    rows = ["| case | seeds | test accuracy, mean +- std | each | parallel passes |",
            "|---|---|---|---|---|"]  # fmt: skip
    figure = Figure(figsize=(12, 8), layout="constrained")
    axes = dict(zip(LOWEST, figure.subplots(2, 2).flat, strict=True))
    for name, case in cases.CASES.items():
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
        if name in cases.CONTROLS:
            continue
        axis, (data, network, setting) = axes[case.file], case.label.split(", ", 2)
        if case.file == "cifar10_10k":
            setting = f"{network}, {setting}"
        curve = [statistics.mean(e) for e in zip(*([m["test_accuracy"] for m in r] for r in runs))]  # noqa: B905
        style = "--" if case.trainer == "serial" else "-"
        axis.plot(range(1, len(curve) + 1), curve, style, marker="o", label=setting)
        axis.set(title=data, xlabel="epoch", ylabel="test accuracy")
    for file, axis in axes.items():
        axis.set_ylim(bottom=LOWEST[file])
        axis.legend(frameon=False)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(HERE / "curves.png", dpi=130)
    (HERE / "table.md").write_text("\n".join(rows) + "\n")
    study_page.write_study(RESULTS, HERE / "study.md")
    maps.write_maps(RESULTS, HERE / "map.md")
    rules.write_rules(RESULTS, HERE / "rules.md")


def _run_apart(name: str, seed: int, roots: list[str]) -> None:
    """Train one case in a process of its own."""
    print(f"{name}, seed {seed}", flush=True)
    command = [sys.executable, "-m", "benchmarks.accuracy.run", "--one", name, str(seed), *roots]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mnist", default="data/mnist")
    parser.add_argument("--cifar10", default="data/cifar10")
    parser.add_argument("--only", nargs="*", default=["*"], help="names, with * and ?")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--study", action="store_true", help="hybrids beside their controls")
    which.add_argument("--map", action="store_true", help="K, M, delay; small filters")
    which.add_argument("--rules", action="store_true", help="rules, filters, K, networks, data")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="cases at once; 1 for those on Ray")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--one", nargs=2, metavar=("CASE", "SEED"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    if args.one:
        roots = {"mnist": args.mnist, "cifar10": args.cifar10}
        lines = train(args.one[0], int(args.one[1]), roots)
        path = RESULTS / f"{args.one[0]}-seed{args.one[1]}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return
    wanted = (
        study.CASES if args.study else maps.CASES if args.map
        else rules.CASES if args.rules else cases.CASES
    )  # fmt: skip
    names = [
        name for name in wanted if any(fnmatch.fnmatch(name, pattern) for pattern in args.only)
    ]
    missing = [
        (name, seed)
        for seed in ([] if args.table else args.seeds)
        for name in names
        if not (RESULTS / f"{name}-seed{seed}.jsonl").exists()
    ]
    folders = ["--mnist", args.mnist, "--cifar10", args.cifar10]
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda case: _run_apart(*case, folders), missing))
    write_tables()


if __name__ == "__main__":
    main()
