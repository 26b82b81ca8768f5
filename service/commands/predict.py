"""`laminar predict`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.commands.options import CheckpointName, Run
from service.table import print_table

if TYPE_CHECKING:
    from laminar.inference import Prediction


def predict(
    run: Run,
    images: Annotated[list[Path], typer.Argument(help="Image files, of any size and mode.")],
    checkpoint: CheckpointName = None,
    top: Annotated[int, typer.Option(min=1, help="Classes to name for each image.")] = 3,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a line for each image.")
    ] = False,
) -> None:
    """Classify images with a run's checkpoint."""
    from laminar.inference import load_network
    from laminar.inference import predict as predict_images

    found = list(predict_images(load_network(run, checkpoint=checkpoint), images, top=top))
    if as_json:
        for prediction in found:
            typer.echo(json.dumps(_as_json(prediction)))
    else:
        columns = "image", "class", "probability", "then"
        print_table(columns, map(_row, found), right=["probability"])


def _as_json(prediction: Prediction) -> dict[str, Any]:
    ranked = zip(prediction.labels, prediction.class_names, prediction.probabilities, strict=True)
    top = [{"label": n, "class": name, "probability": p} for n, name, p in ranked]
    return {"image": str(prediction.image), **top[0], "top": top}


def _row(prediction: Prediction) -> tuple[str, str, str, str]:
    ranked = zip(prediction.class_names, prediction.probabilities, strict=True)
    (name, probability), *others = ((name, f"{p:.1%}") for name, p in ranked)
    then = ", ".join(f"{other} {p}" for other, p in others)
    return str(prediction.image), name, probability, then
