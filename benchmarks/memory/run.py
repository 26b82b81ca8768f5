"""The memory table: peak resident memory of each stage against K, ResNet-50 at 224x224 on CPUs.

    python -m benchmarks.memory.run [--batch-size 16] [--stages 1 2 4]

Each K trains the fewest batches that fill and drain its pipeline, in both phases. What a stage
takes is the peak of its process less what the process took before it built its stage (Python,
torch and Ray).
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import time
from pathlib import Path
from typing import Any

import ray

from actors.cluster import ray_cluster, reserve
from actors.coordinator import Stages
from benchmarks.speed.run import environment
from laminar.config import Config
from laminar.data import describe
from laminar.plan import Plan, Segment
from laminar.planning import make_plan
from laminar.schedule import min_ticks

HERE = Path(__file__).parent
MB = 10**6


def plan_for(num_stages: int, args: argparse.Namespace) -> Plan:
    """Return the shortest run at K stages: one epoch that fills and drains the pipeline."""
    num_batches = max(2, math.ceil(min_ticks(num_stages, 1) / args.micro_batches))
    config = Config.model_validate(
        {
            "epochs": 1,
            "batch_size": args.batch_size,
            "num_stages": num_stages,
            "model": {"name": args.model},
            "data": {
                "name": "synthetic",
                "image_size": args.image_size,
                "num_train": num_batches * args.batch_size,
                "num_test": 1,
                "num_classes": 1000,
            },
            "filters": {"pool": 1, "cast": "fp16"},
            "parallel": {"micro_batches": args.micro_batches},
            "correction": {"micro_batches": args.micro_batches},
            "phases": [{"phase": "parallel", "epochs": 1}],
            "resources": {"cpus_per_stage": 2 / max(2, num_stages), "object_store_mb": 1000},
        }
    )
    return make_plan(config, describe(config.data))


def peak_bytes(_: Any) -> int:
    """Return the peak resident memory of the process so far; runs inside a stage actor."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def import_all(_: Any) -> int:
    """Import what a stage needs, then return the peak; runs inside a stage actor."""
    import laminar.stage  # noqa: F401

    return peak_bytes(_)


def measure(num_stages: int, args: argparse.Namespace) -> dict[str, Any]:
    """Return cuts, seconds a batch and bytes of each stage."""
    plan = plan_for(num_stages, args)
    num_batches = plan.batches_per_epoch
    with ray_cluster(None, plan.config), reserve(plan.config) as group:
        stages = Stages.start(plan, group)

        def ask(function: Any) -> list[int]:
            return ray.get([actor.__ray_call__.remote(function) for actor in stages.actors])

        before = ask(import_all)
        stages.setup(plan)
        seconds, peaks = {}, {}
        for phase in ("parallel", "correction"):
            started = time.perf_counter()
            stages.train(Segment(phase, 0, 0, num_batches))  # type: ignore[arg-type]
            seconds[phase] = (time.perf_counter() - started) / num_batches
            peaks[phase] = ask(peak_bytes)
    row = {
        "num_stages": num_stages,
        "cuts": list(plan.config.cuts or ()),
        "num_batches": num_batches,
        "seconds_per_batch": seconds,
        "bytes": {
            p: [a - b for a, b in zip(peak, before, strict=True)] for p, peak in peaks.items()
        },
        "bytes_before": before,
    }
    print(row, flush=True)
    return row


def table(result: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    rows = [
        "| K | cuts | MB of each stage | largest | of K=1 | s per batch |",
        "|---|---|---|---|---|---|",
    ]
    whole = max(result["rows"][0]["bytes"]["parallel"])
    for row in result["rows"]:
        each = row["bytes"]["parallel"]
        rows.append(
            f"| {row['num_stages']} | {' '.join(map(str, row['cuts'])) or '-'} "
            f"| {' '.join(f'{b / MB:.0f}' for b in each)} | **{max(each) / MB:.0f}** "
            f"| {max(each) / whole:.2f} | {row['seconds_per_batch']['parallel']:.1f} |"
        )
    facts = ", ".join(f"{key} {value}" for key, value in result["environment"].items())
    return "\n".join([*rows, "", f"{result['what']} {facts}.", ""])


def main() -> None:
    """Measure each K on a Ray of its own, then write results.json and table.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--micro-batches", type=int, default=4)
    parser.add_argument("--stages", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--dry", action="store_true", help="Print the table, write nothing.")
    args = parser.parse_args()
    size = f"{args.image_size}x{args.image_size}"
    result = {
        "what": f"{args.model}, {size}, batch {args.batch_size} in {args.micro_batches} "
        "micro-batches, parallel phase, fp16 cuts, d=1, cuts of equal cost. A stage holds weights, "
        "gradients, momentum, saved activations, and copies of weights for late gradients.",
        "environment": environment(),
        "rows": [measure(num_stages, args) for num_stages in args.stages],
    }
    print(table(result))
    if not args.dry:
        (HERE / "results.json").write_text(json.dumps(result, indent=1) + "\n")
        (HERE / "table.md").write_text(table(result))


if __name__ == "__main__":
    main()
