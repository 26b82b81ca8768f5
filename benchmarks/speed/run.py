"""The speed table: serial, two-process ideal, our two phases; alternating blocks of one run.

    python -m benchmarks.speed.run [--rounds 7] [--steps 40]

ResNet-20, batch 128, 32x32 images, two cores. In each round every contender trains the same
number of batches, one contender after the other; the table gives medians over the rounds of the
ratios within a round, so that a noisy neighbour slows both sides of a ratio alike.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

from actors.cluster import ray_cluster, reserve
from actors.coordinator import Stages
from benchmarks.speed.peers import Peer, first_slice, last_slice, run_together, serial
from laminar.config import Config
from laminar.data import describe
from laminar.plan import Plan, Segment
from laminar.planning import make_plan

HERE = Path(__file__).parent
IDEAL = "two-process ideal"
CONTENDERS = {
    "serial, one thread": "one process, whole network",
    "serial, two threads": "one process, whole network",
    IDEAL: "two processes, nothing exchanged",
    "parallel phase, 2x2 fp16 filter": "Ray, K=2",
    "parallel phase, no filter": "Ray, K=2",
    "correction phase, 2x2 fp16 filter": "Ray, K=2, exact",
    "correction phase, no filter": "Ray, K=2, exact",
}


def tree(cut: int, pool: int, cast: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return the configuration of one contender."""
    return {
        "epochs": 1,
        "batch_size": 128,
        "num_stages": 2,
        "cuts": [cut],
        "model": {"name": "resnet20"},
        "data": {
            "name": "synthetic",
            "num_train": 128 * args.steps,
            "crop_padding": 4,
            "flip": True,
        },
        "filters": {"pool": pool, "cast": cast},
        "parallel": {"micro_batches": args.micro_batches, "hop_delay": args.hop_delay},
        "phases": [{"phase": "parallel", "epochs": 1}],
        "resources": {"cpus_per_stage": 0.5},
    }


def best_cut(args: argparse.Namespace) -> tuple[int, dict[int, float]]:
    """Return the cut that makes the ideal fastest, and seconds per step at each candidate.

    Candidates alternate too, and the fastest of three blocks counts: noise only slows.
    """
    pairs = {}
    for cut in args.cuts:
        t = tree(cut, 1, "fp32", args)
        pairs[cut] = [Peer(first_slice, t, cut), Peer(last_slice, t, cut)]
    blocks = [{cut: run_together(pair, 10) / 10 for cut, pair in pairs.items()} for _ in range(4)]
    found = {cut: min(block[cut] for block in blocks[1:]) for cut in pairs}
    for pair in pairs.values():
        for peer in pair:
            peer.close()
    print(f"ideal, seconds a step by cut: {found}", flush=True)
    return min(found, key=lambda cut: found[cut]), found


def seconds_on_ray(stages: Stages, segment: Segment) -> float:
    """Train one segment, filling and draining included; return its wall-clock seconds."""
    started = time.perf_counter()
    stages.train(segment)
    return time.perf_counter() - started


def measure(cut: int, args: argparse.Namespace) -> list[dict[str, float]]:
    """Return seconds per step of each contender, round by round."""
    filtered, plain = (tree(cut, *f, args) for f in ((2, "fp16"), (1, "fp32")))
    peers = {
        "serial, one thread": [Peer(serial, plain, 1)],
        "serial, two threads": [Peer(serial, plain, 2)],
        IDEAL: [Peer(first_slice, plain, cut), Peer(last_slice, plain, cut)],
    }
    plans = {"2x2 fp16 filter": _plan(filtered), "no filter": _plan(plain)}
    rounds: list[dict[str, float]] = []
    some = next(iter(plans.values())).config
    with ray_cluster(None, some), reserve(some) as a, reserve(some) as b:
        engines = {
            name: Stages.start(plan, group)
            for (name, plan), group in zip(plans.items(), (a, b), strict=True)
        }
        for name, stages in engines.items():
            stages.setup(plans[name])
        for number in range(args.rounds + 1):
            seconds = {name: run_together(group, args.steps) for name, group in peers.items()}
            for phase in ("parallel", "correction"):
                for name, stages in engines.items():
                    segment = Segment(phase, 0, 0, args.steps)  # type: ignore[arg-type]
                    seconds[f"{phase} phase, {name}"] = seconds_on_ray(stages, segment)
            if number:  # the first round warms up
                rounds.append({name: s / args.steps for name, s in seconds.items()})
                print(_line(rounds[-1]), flush=True)
    for group in peers.values():
        for peer in group:
            peer.close()
    return rounds


def _plan(t: dict[str, Any]) -> Plan:
    config = Config.model_validate(t)
    return make_plan(config, describe(config.data))


def _line(seconds: dict[str, float]) -> str:
    return "  ".join(f"{name} {s:.3f}" for name, s in seconds.items())


def table(result: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    rounds, batch = result["rounds"], 128
    rows = ["| contender | samples/s | of the ideal | of serial, one thread |", "|---|---|---|---|"]
    for name in CONTENDERS:
        speed = statistics.median(batch / r[name] for r in rounds)
        of_ideal = [r[IDEAL] / r[name] for r in rounds]
        of_serial = [r["serial, one thread"] / r[name] for r in rounds]
        rows.append(f"| {name} | {speed:.0f} | {_spread(of_ideal)} | {_spread(of_serial)} |")
    e = result["environment"]
    facts = ", ".join(f"{key} {value}" for key, value in e.items())
    return "\n".join(
        [
            *rows,
            "",
            f"Median [smallest, largest] of {len(rounds)} rounds of {result['steps']} steps each. "
            f"Cut at block {result['cut']}, M={result['micro_batches']}, d={result['hop_delay']}. "
            f"{facts}.",
            "",
        ]
    )


def _spread(values: list[float]) -> str:
    return f"**{statistics.median(values):.3f}** [{min(values):.3f}, {max(values):.3f}]"


def environment() -> dict[str, str]:
    """Return commit, versions and processor."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0].partition(":")[2].strip() if names else model
    versions = {name: importlib.metadata.version(name) for name in ("torch", "ray")}
    return {"commit": commit, "processor": model, "python": platform.python_version(), **versions}


def main() -> None:
    """Measure, then write results.json and table.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--micro-batches", type=int, default=2)
    parser.add_argument("--hop-delay", type=int, default=1)
    parser.add_argument("--cuts", type=int, nargs="*", default=[3, 4, 5])
    parser.add_argument("--dry", action="store_true", help="Print the table, write nothing.")
    args = parser.parse_args()
    cut, candidates = best_cut(args)
    result = {
        "environment": environment(),
        "cut": cut,
        "ideal_step_s_by_cut": candidates,
        "steps": args.steps,
        "micro_batches": args.micro_batches,
        "hop_delay": args.hop_delay,
        "rounds": measure(cut, args),
    }
    print(table(result))
    if not args.dry:
        (HERE / "results.json").write_text(json.dumps(result, indent=1) + "\n")
        (HERE / "table.md").write_text(table(result))


if __name__ == "__main__":
    main()
