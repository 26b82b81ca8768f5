"""Evaluate a checkpoint in one process: the whole network, filters included."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

from laminar.checkpoint import list_checkpoints, load_network, read_manifest
from laminar.data import InputBatches, LabelBatches, load_labels, num_test_batches, open_images
from laminar.errors import CheckpointError
from laminar.loss import num_correct


def find_checkpoint(run: Path, name: str | None = None) -> Path:
    """Return a run's newest checkpoint, or the one of a name.

    Raises:
        CheckpointError: There is none.
    """
    found = list_checkpoints(run / "checkpoints")
    wanted = [path for path in found if name is None or path.name == name]
    if not wanted:
        raise CheckpointError(
            f"the run must hold {'a checkpoint' if name is None else f'the checkpoint {name}'}",
            got=", ".join(path.name for path in found) or f"none under {run}",
            fix="name the folder that `laminar train` printed; one is written after each epoch",
        )
    return wanted[-1]


@torch.no_grad()
def evaluate_run(
    run: str | Path,
    *,
    checkpoint: str | None = None,
    split: Literal["train", "test"] = "test",
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Compute loss and accuracy of a run's checkpoint on the CPU, at averaged weights with `ema`.

    Args:
        run: Run directory.
        checkpoint: Its name under `checkpoints/`; None takes the newest.
        split: Which images, unaugmented.
        progress: Called with (batches done, all batches).

    Returns:
        checkpoint, split, num_samples, loss (mean per sample), accuracy in 0..1.

    Raises:
        CheckpointError: None there, damaged, or not of the network it says.
        DataError: The data is not where it was.
    """
    manifest = read_manifest(find_checkpoint(Path(run), checkpoint))
    plan = manifest.plan
    config = plan.config
    tensors = load_network(manifest)
    module = plan.build_stage_module(0, plan.bounds[-1]).eval()
    for name, tensor in module.public_tensors():
        tensor.copy_(tensors[name])
    stats = torch.tensor(manifest.data["mean"]), torch.tensor(manifest.data["std"])
    images, labels = open_images(config, split), load_labels(config.data, split)
    inputs = InputBatches(config, images, images, stats)
    targets = LabelBatches(config, labels, labels)
    num_batches = num_test_batches(config, len(labels))
    loss, correct = 0.0, 0
    for batch in range(num_batches):
        logits, y = module(inputs.test(batch)), targets.test(batch)
        loss += float(plan.loss.test(logits, y)) * len(y)
        correct += num_correct(logits, y)
        if progress is not None:
            progress(batch + 1, num_batches)
    return {
        "checkpoint": manifest.path.name,
        "split": split,
        "num_samples": len(labels),
        "loss": loss / len(labels),
        "accuracy": correct / len(labels),
    }
