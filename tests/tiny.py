"""A tiny network and tiny data for tests of exactness."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from laminar.blocks import BlockSequence
from laminar.checkpoint import publish, write_part
from laminar.config import Config
from laminar.data import describe, open_inputs, open_labels
from laminar.plan import Plan
from laminar.planning import make_plan
from laminar.reference import Reference
from laminar.run_directory import RunDirectory

BATCH_SIZE, SIZE = 8, 8
TINY_MODEL = {"name": "resnet8", "width": 4}


def tiny_config(num_batches: int = 5, **changes: Any) -> Config:
    """ResNet-8 of width 4 on 8x8 synthetic images, batches of 8; `changes` replace top keys."""
    tree = {
        "epochs": 2,
        "batch_size": BATCH_SIZE,
        "eval_batch_size": BATCH_SIZE,
        "model": TINY_MODEL,
        "data": {
            "name": "synthetic",
            "image_size": SIZE,
            "num_classes": 4,
            "num_train": num_batches * BATCH_SIZE + 1,
            "num_test": 15,
            "crop_padding": 1,
            "flip": True,
        },
        "resources": {"cpus_per_stage": 0.25, "message_timeout_s": 60, "device": "cpu"},
    }
    return Config.model_validate(tree | changes)


def tiny_plan(num_batches: int = 5, **changes: Any) -> Plan:
    config = tiny_config(num_batches, **changes)
    return make_plan(config, describe(config.data))


def run_reference(plan: Plan) -> Reference:
    datasets = plan.factories.datasets
    inputs, labels = open_inputs(plan.config, datasets), open_labels(plan.config, datasets)
    reference = Reference(plan, inputs, labels)
    reference.run()
    return reference


def write_run(path: Path, plan: Plan) -> Reference:
    """Train with the reference and write what a finished run leaves: a run without Ray."""
    reference = run_reference(plan)
    RunDirectory(path).create(plan.config)
    folder = path / "checkpoints" / f"epoch_{plan.config.epochs:04d}"
    part = write_part(folder, "stage_000.safetensors", reference.state())
    stats = {"mean": reference.inputs.mean.tolist(), "std": reference.inputs.std.tolist()}
    publish(folder, epoch=plan.config.epochs, plan=plan, parts=[part], data=stats)
    return reference


def differing(a: dict[str, Tensor], b: dict[str, Any]) -> list[str]:
    """Return the names whose tensors are not equal bit for bit, or that only one side has."""
    odd = sorted(a.keys() ^ b.keys())
    for name in a.keys() & b.keys():
        other = torch.from_numpy(np.array(b[name])) if isinstance(b[name], np.ndarray) else b[name]
        if not torch.equal(a[name], other):
            odd.append(name)
    return odd


def far(state: dict[str, Tensor], modules: Sequence[BlockSequence], atol: float) -> list[str]:
    """Return the names of the modules' tensors that a state has farther off than `atol`."""
    return [
        name
        for module in modules
        for name, tensor in module.public_tensors()
        if tensor.is_floating_point()
        and not torch.allclose(state[f"model.{name}"], tensor, atol=atol)
    ]


@torch.no_grad()
def descend(module: nn.Module, gradient: Sequence[Tensor], lr: float) -> None:
    """Take a step of plain SGD, as anybody would write it."""
    for parameter, g in zip(module.parameters(), gradient, strict=True):
        parameter -= lr * g
