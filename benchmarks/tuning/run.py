"""A recorded search on real images, and its winner beside the defaults on seeds it has not seen.

    python -m benchmarks.tuning.run --cifar10 FOLDER [--seeds 1 2 3]

Searches `search.yaml` with seed 0 unless `trials.jsonl` is there, then trains winner and defaults
on each seed, as searched and elsewhere, skipping what is done, and writes `table.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.finals import final_cells
from benchmarks.one_process import train_in_one_process
from benchmarks.serial import train_serial
from laminar.config import Config, ParallelConfig, SgdConfig
from tuning.config import Search, load_search
from tuning.ledger import LEDGER_FILE, SEARCH_FILE, Ledger, Trial, best_trials
from tuning.report import write_report
from tuning.search import run_search

HERE = Path(__file__).parent
RESULTS = HERE / "results"
CONTENDERS: dict[str, tuple[str, ...]] = {
    "winner": (),
    "defaults": ("optimizer", "parallel"),
    "winner-sgd": ("parallel",),
    "winner-parallel": ("optimizer",),
    "serial-sgd": ("parallel",),
    "serial": ("optimizer", "parallel"),
}
"""Which sections of the winner are put back to their defaults: what did it win by? Serial training
has no parallel phase, and shows what a step size is worth without it."""

DEFAULTS = {"optimizer": SgdConfig(lr=0.1, momentum=0.9), "parallel": ParallelConfig()}
"""As they were when the search was recorded."""

SETTINGS = {
    "": "10 passes, as searched",
    "passes20-": "20 passes",
    "digits-": "digits, ResNet-20, what `make train` trains",
}
"""Where winner and defaults are compared, by the first word of the results."""


def winner(search: Search) -> Trial:
    """Return the best trial of the recorded search."""
    return best_trials(search.settings, list(Ledger(HERE).trials.values()))[0]


def record_search(search: Search, report: Path) -> None:
    """Search, keep the ledger, and write the report where it is wanted."""
    with tempfile.TemporaryDirectory() as folder:
        result = run_search(search, storage_path=folder, name="search")
        shutil.copy(Path(result.path) / LEDGER_FILE, HERE / LEDGER_FILE)
        shutil.copy(write_report(result.path), report)


def train(search: Search, setting: str, name: str, seed: int) -> list[dict[str, Any]]:
    """Train the winner somewhere, with some of its sections put back to their defaults."""
    config = search.configs(winner(search).params)[0]
    if setting == "digits-":
        config = Config(optimizer=config.optimizer, parallel=config.parallel)
    changes = {section: DEFAULTS[section] for section in CONTENDERS[name]}
    if setting == "passes20-":
        changes["epochs"] = 20
    config = config.model_copy(update={**changes, "seed": seed})
    return train_serial(config, 1) if name.startswith("serial") else train_in_one_process(config)


def write_table(search: Search) -> None:
    """Write table.md from the ledger and the finished runs."""
    trials = list(Ledger(HERE).trials.values())
    best = winner(search)
    rows = ["| trial | epochs | test accuracy | " + " | ".join(best.params) + " |"]
    rows.append("|---" * (3 + len(best.params)) + "|")
    for trial in sorted(trials, key=lambda t: -t.last["test_accuracy"]):
        values = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in trial.params.values())
        accuracy = f"{trial.last['test_accuracy']:.4f}"
        rows.append(
            f"| {trial.number} | {len(trial.epochs)} | {accuracy} | " + " | ".join(values) + " |"
        )
    for setting, label in SETTINGS.items():
        rows += ["", f"| {label}: seeds not searched on | test accuracy, mean +- std | each |"]
        rows += ["|---|---|---|", *_rows(setting)]
    (HERE / "table.md").write_text("\n".join(rows) + "\n")


def _rows(setting: str) -> list[str]:
    rows = []
    for name in CONTENDERS:
        cells = final_cells(RESULTS, f"{setting}{name}")
        if cells:
            rows.append(f"| {name} | " + " | ".join(cells[1:]) + " |")
    return rows


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cifar10", default="data/cifar10")
    parser.add_argument("--seeds", nargs="*", type=int, default=[1, 2, 3])
    parser.add_argument("--report", default="search_report.html", help="where its report goes")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    search = load_search(HERE / SEARCH_FILE, [f"data.root={args.cifar10}"])
    if args.one:
        setting, name, seed = args.one
        lines = train(search, setting, name, int(seed))
        path = RESULTS / f"{setting}{name}-seed{seed}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return
    RESULTS.mkdir(exist_ok=True)
    if not (HERE / LEDGER_FILE).exists():
        record_search(search, Path(args.report))

    def run_apart(case: tuple[str, str, str]) -> None:
        command = [sys.executable, "-m", "benchmarks.tuning.run", "--cifar10", args.cifar10]
        command += ["--one", *case]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})

    missing = [
        (setting, name, str(seed))
        for setting in SETTINGS
        for seed in args.seeds
        for name in CONTENDERS
        if not (RESULTS / f"{setting}{name}-seed{seed}.jsonl").exists()
    ]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run_apart, missing))
    write_table(search)


if __name__ == "__main__":
    main()
