"""A run's network as one file for other programs: safetensors, a torch.export program, ONNX.

All three hold the network that `laminar evaluate` evaluates, filters included; the programs also
normalise, so that they take pixels in 0..1. What else a user must know travels in the metadata.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from laminar import __version__
from laminar.errors import ConfigError
from laminar.inference import TrainedNetwork

Format = Literal["safetensors", "torch", "onnx"]
SUFFIXES: dict[Format, str] = {"safetensors": ".safetensors", "torch": ".pt2", "onnx": ".onnx"}

_METADATA_FILE = "laminar.json"
_TOLERANCE = 0.01
"""Largest difference of a program's logits, as a fraction of the largest logit. Convolutions of
another library differ in the last bits, and a bit can turn the rounding of an int8 filter."""


def describe_network(network: TrainedNetwork) -> dict[str, str]:
    """Return what an exported file says of itself; lists and mappings as JSON."""
    manifest = network.manifest
    plan, problem = manifest.plan, manifest.plan.problem
    names = network.module.blocks.block_names
    filters = [
        {"before_block": names[boundary], "pool": f.pool, "cast": f.cast}
        for boundary, f in sorted(plan.filters.items())
        if not f.during("evaluation").is_identity
    ]
    function = (
        f"{plan.config.model.name} with a filter before block "
        + ", ".join(str(f["before_block"]) for f in filters)
        + ": not the function of the plain network, whose outputs with these weights differ"
        if filters
        else f"{plan.config.model.name}, the plain network"
    )
    return {
        "laminar_version": __version__,
        "checkpoint": manifest.path.name,
        "weights": "averaged (ema)" if plan.config.ema else "as trained",
        "model": plan.config.model.model_dump_json(),
        "num_classes": str(problem.num_classes),
        "class_names": json.dumps(network.class_names),
        "image_shape": json.dumps(problem.image_shape),
        "mean": json.dumps([value / 255.0 for value in manifest.data["mean"]]),
        "std": json.dumps([value / 255.0 for value in manifest.data["std"]]),
        "filters": json.dumps(filters),
        "is_filtered": json.dumps(bool(filters)),
        "function": function,
    }


def export_network(network: TrainedNetwork, format_: Format, path: Path) -> float | None:
    """Write a network to one file, which appears whole or not at all.

    Args:
        network: From `load_network`.
        format_: `safetensors` holds the weights by the network's own names, and describes
            normalisation and filters in its metadata. `torch` (a torch.export program) and `onnx`
            map `images`, fp32 [batch, C, H, W] in 0..1, to `logits`, any batch; they are read back
            and compared on random images.
        path: Where to; replaced if it exists.

    Returns:
        The largest difference of the program's logits, as a fraction of the largest logit; None
        for safetensors, whose tensors are the checkpoint's.

    Raises:
        ConfigError: The file cannot be written, or ONNX's libraries are not installed.
        RuntimeError: The program computes something else than the network.
    """
    write: Callable[[TrainedNetwork, Path], float | None] = {
        "safetensors": _write_safetensors,
        "torch": _write_torch,
        "onnx": _write_onnx,
    }[format_]
    if format_ == "onnx":
        _check_onnx()
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".laminar-") as folder:
            written = Path(folder) / f"network{SUFFIXES[format_]}"
            difference = write(network, written)
            written.replace(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            "--output must be a file that can be written", got=error, fix="choose another --output"
        ) from error
    return difference


def _check_onnx() -> None:
    missing = [n for n in ("onnx", "onnxscript", "onnxruntime") if not importlib.util.find_spec(n)]
    if missing:
        raise ConfigError(
            "--format onnx must find ONNX's libraries installed",
            got=f"no {', '.join(missing)}",
            fix="run: pip install 'laminar-train[onnx]'",
        )


def _write_safetensors(network: TrainedNetwork, path: Path) -> None:
    tensors = {
        name: tensor.detach().clone() for name, tensor in network.module.blocks.public_tensors()
    }
    save_file(tensors, path, {"format": "pt", **describe_network(network)})


def _write_torch(network: TrainedNetwork, path: Path) -> float:
    metadata = json.dumps(describe_network(network), indent=1)
    with _quiet():
        torch.export.save(_trace(network), path, extra_files={_METADATA_FILE: metadata})
        return _compare(network, torch.export.load(path).module())


def _write_onnx(network: TrainedNetwork, path: Path) -> float:
    import onnxruntime

    with _quiet():
        program = torch.onnx.export(
            _trace(network), dynamo=True, verbose=False, input_names=["images"],
            output_names=["logits"],
        )  # fmt: skip
        assert program is not None
        program.model.metadata_props.update(describe_network(network))
        program.save(path, external_data=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])

    return _compare(network, run)


def _trace(network: TrainedNetwork) -> torch.export.ExportedProgram:
    """Return the graph of the network, for any batch size."""
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad():
        return torch.export.export(
            network.module, (_random_images(network, 2),), dynamic_shapes=({0: batch},)
        )


def _random_images(network: TrainedNetwork, num: int) -> Tensor:
    shape = (num, *network.manifest.plan.problem.image_shape)
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def _compare(network: TrainedNetwork, program: Callable[[Tensor], Tensor]) -> float:
    """Return the largest relative difference of a program's logits, at two batch sizes."""
    largest = 0.0
    for num in (1, 5):
        images = _random_images(network, num)
        expected, found = network.module(images), program(images)
        difference = (found - expected).abs().max() / expected.abs().max().clamp(min=1e-6)
        if not difference <= _TOLERANCE:  # also where it is not a number
            raise RuntimeError(
                f"the exported program's logits differ from the network's by {difference:.1%}; "
                "please report this with the run's config.yaml"
            )
        largest = max(largest, float(difference))
    return largest


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what exporters tell their own developers off the terminal."""
    logger: Any = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
