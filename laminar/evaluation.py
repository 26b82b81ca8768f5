"""Loss and accuracy of a checkpoint in one process: the whole network, filters included."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from laminar.data import InputBatches, LabelBatches, load_labels, open_images
from laminar.data.own import OwnInputs, own_inputs, own_labels
from laminar.factories import Factories, LossFunction, MakeBlocks, MakeData
from laminar.inference import load_network
from laminar.plan import Plan
from laminar.problem import num_test_batches
from laminar.tally import Tally

Split = Literal["train", "test"]


def evaluate_run(
    run: str | Path,
    *,
    checkpoint: str | None = None,
    split: Split = "test",
    weights: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    blocks: MakeBlocks | None = None,
    datasets: Mapping[str, MakeData] | None = None,
    loss: LossFunction | None = None,
) -> dict[str, Any]:
    """Compute loss and accuracy of a run's checkpoint on the CPU, at averaged weights with `ema`.

    Args:
        run: Run directory.
        checkpoint: Its name under `checkpoints/`; None takes the newest.
        split: Which images, unaugmented.
        weights: An exported safetensors file, to evaluate instead of the checkpoint's weights.
        progress: Called with (batches done, all batches).
        blocks: The run's own, if it has any; as to LayerParallelTrainer.
        datasets: The run's own, if it has any.
        loss: The run's own, if it has any.

    Returns:
        checkpoint, split, and what `evaluate_function` returns.

    Raises:
        CheckpointError: None there, damaged, or not of the network it says.
        DataError: The data is not where it was.
        FactoryError: The run has blocks, datasets or a loss of its own, and they are not given.
    """
    factories = Factories(blocks, datasets, loss)
    network = load_network(run, checkpoint=checkpoint, weights=weights, factories=factories)
    plan = network.manifest.plan
    result = evaluate_function(network.module, plan, split=split, progress=progress)
    return {"checkpoint": network.manifest.path.name, "split": split, **result}


@torch.no_grad()
def evaluate_function(
    function: Callable[[Tensor], Tensor],
    plan: Plan,
    *,
    split: Split = "test",
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Compute loss and accuracy of anything that maps pixels to logits, as exports do.

    Args:
        function: From fp32 [b, C, H, W] in 0..1, or rows of the user's own data, to logits
            [b, classes]; normalises by itself.
        plan: Whose data set, loss and `eval_batch_size`.
        split: Which images, unaugmented.
        progress: Called with (batches done, all batches).

    Returns:
        num_samples, loss (mean per sample), accuracy in 0..1, with more than five classes
        top5_accuracy, class_names, and confusion_matrix: row i, column j counts the images of
        class i that were taken for class j.
    """
    inputs, labels = _open(plan, split)
    targets = LabelBatches(plan.config, labels, labels)
    num_batches = num_test_batches(plan.config, len(labels))
    tally = Tally()
    for batch in range(num_batches):
        logits, y = function(inputs(batch)), targets.test(batch)
        tally.add_test(logits, y, plan.loss.test(logits, y))
        if progress is not None:
            progress(batch + 1, num_batches)
    return {
        "num_samples": tally.num_samples,
        **tally.means(),
        "class_names": list(plan.problem.names),
        "confusion_matrix": tally.confusion_matrix(),
    }


def _open(plan: Plan, split: Split) -> tuple[Callable[[int], Tensor], Tensor]:
    """Return what gives the inputs of a batch, pixels in 0..1 or the user's own, and all labels."""
    config, datasets = plan.config, plan.factories.datasets
    if datasets is not None:
        rows = own_inputs(datasets, split)
        return OwnInputs(config, rows, rows).test, own_labels(datasets, split)
    channels = plan.problem.image_shape[0]
    as_they_are = torch.zeros(channels), torch.ones(channels)
    images = open_images(config, split)
    pixels = InputBatches(config, images, images, as_they_are)
    return lambda batch: pixels.test(batch) / 255.0, load_labels(config.data, split)
