"""Layer-parallel training in one process: accuracy at any K on few cores, not speed."""

from __future__ import annotations

import time
from typing import Any

import torch

from laminar.config import Config
from laminar.data import describe, with_absolute_paths
from laminar.one_process import OneProcessEngine
from laminar.planning import make_plan


def train_in_one_process(config: Config) -> list[dict[str, Any]]:
    """Train on one thread, equal bit for bit to Ray's actors; return one metrics line an epoch."""
    torch.set_num_threads(1)
    config = with_absolute_paths(config)
    plan = make_plan(config, describe(config.data))
    engine = OneProcessEngine(plan)
    lines = []
    for epoch in range(config.epochs):
        lines.append(train_epoch(engine, epoch))
        print(f"epoch {epoch + 1}: test accuracy {lines[-1]['test_accuracy']:.4f}", flush=True)
    return lines


def train_epoch(engine: OneProcessEngine, epoch: int) -> dict[str, Any]:
    """Train and test one epoch, from 0; return its metrics."""
    plan, last = engine.plan, engine.stages[-1]
    started = time.perf_counter()
    last.take_tally()
    for segment in (s for s in plan.segments if s.epoch == epoch):
        engine.train(segment)
    trained = last.take_tally()
    seconds = time.perf_counter() - started
    test = engine.count_test(plan.num_test_batches)
    return {
        "epoch": epoch + 1,
        **{f"train_{name}": value for name, value in trained.means().items()},
        **{f"test_{name}": value for name, value in test.means().items()},
        "parallel_fraction": plan.parallel_fraction,
        "seconds": {"one_process": seconds},
    }
