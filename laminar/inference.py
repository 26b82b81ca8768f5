"""A whole network as one function from pixels to logits, and what it says of image files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from laminar.blocks import BlockSequence
from laminar.checkpoint import (
    Manifest,
    check_shapes,
    find_checkpoint,
    load_weights,
    read_manifest,
)
from laminar.data import load_image
from laminar.data.augment import normalize
from laminar.errors import CheckpointError
from laminar.factories import NO_FACTORIES, Factories


class InferenceNetwork(nn.Module):
    """Normalisation, all blocks and the filters between them: what is evaluated and exported.

    Args:
        blocks: All blocks of a network; they are put into evaluation mode.
        mean: fp32 [C], in 0..255; None takes inputs as they are, which a user's own data are.
        std: fp32 [C], in 0..255, > 0; None as well.
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(self, blocks: BlockSequence, mean: Tensor | None, std: Tensor | None) -> None:
        super().__init__()
        self.blocks = blocks
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Map pixels, or a user's own inputs, to logits.

        Args:
            images: fp32 [B, C, H, W] in 0..1. Times 255 they are the bytes of the image again,
                exactly, so that the logits are those of the training engine's evaluation.

        Returns:
            Logits [B, classes].
        """
        if self.mean is not None and self.std is not None:
            images = normalize(images * 255.0, self.mean, self.std)
        logits: Tensor = self.blocks(images)
        return logits


@dataclass(frozen=True)
class TrainedNetwork:
    """A checkpoint and the network it holds."""

    manifest: Manifest
    module: InferenceNetwork
    """On the CPU."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class; its number where the data set has no names."""
        return self.manifest.plan.problem.names


@dataclass(frozen=True)
class Prediction:
    """What a network says of one image: its likeliest classes, best first."""

    image: Path
    labels: tuple[int, ...]
    class_names: tuple[str, ...]
    probabilities: tuple[float, ...]


def load_network(
    run: str | Path,
    *,
    checkpoint: str | None = None,
    weights: str | Path | None = None,
    factories: Factories = NO_FACTORIES,
) -> TrainedNetwork:
    """Build the network of a run's checkpoint, at averaged weights with `ema`.

    Args:
        run: Run directory.
        checkpoint: Its name under `checkpoints/`; None takes the newest.
        weights: A safetensors file with the network's own names, as `laminar export` writes it,
            to take instead of the checkpoint's weights; None takes those.
        factories: What the user brought to the run in Python.

    Raises:
        CheckpointError: None there, damaged, or not of the network it says.
        FactoryError: The run needs factories that are not given.
    """
    manifest = read_manifest(find_checkpoint(Path(run), checkpoint), factories)
    tensors = load_weights(manifest) if weights is None else _read_weights(weights)
    blocks = manifest.plan.build_stage_module(0, manifest.plan.bounds[-1])
    named = dict(blocks.public_tensors())
    check_shapes(tensors, named, manifest.plan)
    with torch.no_grad():
        for name, tensor in named.items():
            tensor.copy_(tensors[name])
    if not manifest.data["mean"]:
        return TrainedNetwork(manifest, InferenceNetwork(blocks, None, None))
    mean, std = (torch.tensor(manifest.data[name]) for name in ("mean", "std"))
    return TrainedNetwork(manifest, InferenceNetwork(blocks, mean, std))


@torch.no_grad()
def predict(
    network: TrainedNetwork, images: Sequence[Path], *, top: int = 5
) -> Iterator[Prediction]:
    """Classify image files, prepared as the data set of the run prepares its test images.

    Args:
        network: From `load_network`.
        images: Files of any size and mode.
        top: Classes to name for each; fewer where there are fewer.

    Raises:
        DataError: A file is not an image.
    """
    plan = network.manifest.plan
    top = min(top, plan.problem.num_classes)
    size = plan.config.eval_batch_size
    for some in (images[i : i + size] for i in range(0, len(images), size)):
        pixels = torch.stack([load_image(plan.config.data, plan.problem, path) for path in some])
        best = network.module(pixels.float() / 255.0).softmax(1).topk(top)
        for path, labels, values in zip(some, best.indices, best.values, strict=True):
            names = tuple(network.class_names[label] for label in labels)
            yield Prediction(path, tuple(labels.tolist()), names, tuple(values.tolist()))


def _read_weights(path: str | Path) -> Mapping[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            "weights must be a readable safetensors file",
            got=f"{path}: {error}",
            fix="name a file that `laminar export --format safetensors` wrote",
        ) from error
