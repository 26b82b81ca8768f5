"""`laminar evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from service.commands.options import CheckpointName, Run


def evaluate(
    run: Run,
    checkpoint: CheckpointName = None,
    split: Annotated[str, typer.Option(help="test or train.")] = "test",
    weights: Annotated[
        Path | None,
        typer.Option(help="Exported safetensors file, instead of the checkpoint's weights."),
    ] = None,
    confusion_matrix: Annotated[
        Path | None, typer.Option(help="JSON file to write which class was taken for which.")
    ] = None,
) -> None:
    """Compute loss and accuracy of a run's checkpoint; prints one JSON object."""
    from rich.progress import Progress

    from laminar.errors import ConfigError
    from laminar.evaluation import evaluate_run

    if split not in ("test", "train"):
        raise ConfigError("--split must be test or train", got=split, fix="choose one of them")
    if confusion_matrix is not None and (
        confusion_matrix.is_dir() or not confusion_matrix.absolute().parent.is_dir()
    ):
        raise ConfigError(
            "--confusion-matrix must be a file in a folder that exists",
            got=confusion_matrix,
            fix="make the folder, or name another",
        )
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("evaluating")
        result = evaluate_run(
            run,
            checkpoint=checkpoint,
            split=split,  # type: ignore[arg-type]
            weights=weights,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    matrix = {"class_names": result.pop("class_names"), "matrix": result.pop("confusion_matrix")}
    typer.echo(json.dumps(result))  # first: whatever becomes of the file, this is not lost
    if confusion_matrix is not None:
        try:
            confusion_matrix.write_text(json.dumps({**result, **matrix}) + "\n")
        except OSError as error:
            raise ConfigError(
                "--confusion-matrix must be a file that can be written",
                got=error,
                fix="name another, or free some room",
            ) from error
