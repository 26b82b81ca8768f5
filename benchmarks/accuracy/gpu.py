"""All of CIFAR-10 on one GPU: K=2, K=4 and their controls side by side, in sittings of minutes.

    python -m benchmarks.accuracy.gpu --cifar10 FOLDER --state FOLDER [--minutes 9] [--jobs 9]
    python -m benchmarks.accuracy.gpu --state FOLDER --record

The stages of a run share a process, so this is about accuracy, not speed. After every epoch a run
keeps its weights and momentum in `--state`, and goes on from there in the next sitting; as many
runs as `--jobs` says are under way at once, each on a core of its own. `--record` copies the runs
that are done to `results/` and writes `gpu.md`. `gpu.sh` does all this on a bare machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from benchmarks.accuracy.costs import K2_COST, free_cost, whole
from benchmarks.accuracy.study import K4_BEST, deep, pooled_filters
from benchmarks.finals import final_cells
from benchmarks.one_process import train_epoch
from laminar.config import Config
from laminar.config_file import load_config
from laminar.data import describe, with_absolute_paths
from laminar.one_process import OneProcessEngine
from laminar.planning import make_plan

HERE = Path(__file__).parent
RESULTS = HERE / "results"
EPOCHS = 30
NETWORKS = {"resnet20": "ResNet-20", "wrn16_4": "WRN-16-4"}


@dataclass(frozen=True)
class Setting:
    """A row of the table."""

    words: str
    settings: tuple[str, ...]
    epochs: int = EPOCHS


def _serial(words: str, share: float = 1.0) -> Setting:
    """Return backprop for this share of the epochs."""
    settings = ("num_stages=1", "correction.micro_batches=1", "phases={warmup: 1, correction: 0}")
    epochs = whole(share * EPOCHS)
    return Setting(f"{words}, {epochs} epochs", settings, epochs)


SETTINGS = {
    "serial": _serial("serial"),
    "k2": Setting("K=2, 2x2 fp16", ("num_stages=2", "filters={pool: 2, cast: fp16}")),
    "k2-exact-only": _serial("serial, as many as K=2 has exact ones", 0.1),
    "k2-same-time": _serial("serial, K=2's time by wall-clock on two cores", K2_COST),
    "k4": Setting(K4_BEST, deep(4, pooled_filters(4))),
    "k4-int8": Setting("K=4, int8", deep(4)),
    "k4-exact-only": _serial("serial, as many as K=4 has exact ones", 0.15),
    "k4-same-time": _serial("serial, K=4's time, exchange free", free_cost(4, 0.15)),
}
_COMMON = ("optimizer.weight_decay=0.0005",)

State = tuple[Path, Path]
"""The metrics of a run and, with the number of epochs before the suffix, its weights."""


def configure(network: str, setting: str, seed: int, root: str) -> Config:
    """Return the configuration of one run."""
    row = SETTINGS[setting]
    settings = (f"model.name={network}", f"seed={seed}", f"data.root={root}")
    common = (f"epochs={row.epochs}", *_COMMON, *settings)
    return load_config(HERE / "cifar10.yaml", [*common, *row.settings])


def go_on(
    config: Config,
    state: State,
    device: str,
    until: float,
    now: Callable[[], float] = time.time,
) -> bool:
    """Train a run from where its state says, epoch by epoch; return whether it is done.

    Args:
        config: Of the run.
        state: Its files, written anew after each epoch.
        device: Of all stages.
        until: Seconds since 1970; an epoch that would not be over by then is not begun.
        now: Seconds since 1970.
    """
    metrics, weights = state
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    config = with_absolute_paths(config)
    plan = make_plan(config, describe(config.data))
    engine = OneProcessEngine(plan, device=device, is_new=not lines)
    if lines:
        tensors = load_file(_of_epoch(weights, len(lines)))
        for stage in engine.stages:
            stage.load_state(tensors)
    took = json.loads(lines[-1])["seconds"]["one_process"] if lines else 0.0
    for epoch in range(len(lines), config.epochs):
        started = now()
        if started + took > until:
            return False
        lines.append(json.dumps(train_epoch(engine, epoch)))
        # Cut off at any time, the metrics, which are replaced at once, say which weights count.
        save_file(engine.state(), _of_epoch(weights, epoch + 1))
        _replace(metrics, "\n".join(lines) + "\n")
        _of_epoch(weights, epoch).unlink(missing_ok=True)
        took = now() - started
        print(f"{metrics.stem}: {lines[-1]}, {took:.1f} s", flush=True)
    return True


def _of_epoch(weights: Path, num_epochs: int) -> Path:
    return weights.with_suffix(f".{num_epochs}{weights.suffix}")


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text)
    temporary.replace(path)


def write_table(page: Path) -> None:
    """Write the table of the runs that are done."""
    rows = [
        f"| CIFAR-10, {EPOCHS} epochs | seeds | test accuracy, mean +- std | each |",
        "|---|---|---|---|",
    ]
    for network, title in NETWORKS.items():
        for name, row in SETTINGS.items():
            cells = final_cells(RESULTS, f"gpu-{network}-{name}")
            if cells:
                rows.append(f"| {title}, {row.words} | " + " | ".join(cells) + " |")
    page.write_text("\n".join(rows) + "\n")


def _state(folder: Path, network: str, setting: str, seed: int) -> State:
    name = f"gpu-{network}-{setting}-seed{seed}"
    return folder / f"{name}.jsonl", folder / f"{name}.safetensors"


def _is_done(setting: str, state: State) -> bool:
    metrics, _ = state
    num_epochs = len(metrics.read_text().splitlines()) if metrics.exists() else 0
    return num_epochs == SETTINGS[setting].epochs


def _record(folder: Path) -> None:
    for network in NETWORKS:
        for setting in SETTINGS:
            for path in folder.glob(f"gpu-{network}-{setting}-seed*.jsonl"):
                if _is_done(setting, (path, path)):
                    shutil.copy(path, RESULTS)
    write_table(HERE / "gpu.md")


def main() -> None:
    """Go on with what is not done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cifar10", default="data/cifar10")
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=9.0, help="Of this sitting.")
    parser.add_argument("--jobs", type=int, default=9)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--one", nargs=3, metavar=("NETWORK", "SETTING", "SEED"))
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.state.mkdir(parents=True, exist_ok=True)
    if args.record:
        _record(args.state)
        return
    until = args.until or time.time() + 60 * args.minutes
    if args.one:
        torch.set_num_threads(1)
        network, setting, seed = args.one[0], args.one[1], int(args.one[2])
        config = configure(network, setting, seed, args.cifar10)
        go_on(config, _state(args.state, network, setting, seed), args.device, until)
        return
    missing = [
        (network, setting, str(seed))
        for network in args.networks
        for seed in args.seeds
        for setting in SETTINGS
        if not _is_done(setting, _state(args.state, network, setting, seed))
    ]
    same = ["--cifar10", args.cifar10, "--state", str(args.state), "--device", args.device]

    def run(case: tuple[str, str, str]) -> None:
        command = [sys.executable, "-m", "benchmarks.accuracy.gpu", "--one", *case, *same]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if time.time() < until:
            subprocess.run([*command, "--until", str(until)], check=True, env=environment)

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(run, missing))


if __name__ == "__main__":
    main()
