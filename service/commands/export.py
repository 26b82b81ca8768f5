"""`laminar export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.commands.options import CheckpointName, Run

_FORMATS = ("safetensors", "torch", "onnx")


def export(
    run: Run,
    format_: Annotated[
        str, typer.Option("--format", help="safetensors, torch (torch.export) or onnx.")
    ] = "safetensors",
    output: Annotated[
        Path | None, typer.Option(help="File to write; default: RUN/network.SUFFIX.")
    ] = None,
    checkpoint: CheckpointName = None,
) -> None:
    """Write the whole network of a checkpoint to one file, filters and normalisation included."""
    from laminar.errors import ConfigError

    if format_ not in _FORMATS:
        raise ConfigError(
            "--format must be safetensors, torch or onnx", got=format_, fix="choose one of them"
        )
    from laminar.export import SUFFIXES, describe_network, export_network
    from laminar.inference import load_network

    network = load_network(run, checkpoint=checkpoint)
    path = output or run / f"network{SUFFIXES[format_]}"  # type: ignore[index]
    difference = export_network(network, format_, path)  # type: ignore[arg-type]
    typer.echo(f"{path}: {network.manifest.path.name}, {describe_network(network)['function']}")
    if difference is not None:
        typer.echo(f"read back: its logits differ from the network's by at most {difference:.1e}")
