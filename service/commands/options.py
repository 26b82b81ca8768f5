"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigPath = Annotated[Path | None, typer.Argument(help="YAML file; left out: the defaults.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one value.")
]
Run = Annotated[Path, typer.Argument(help="Run directory.")]
CheckpointName = Annotated[
    str | None, typer.Option("--checkpoint", help="Its name; default: the newest.")
]
Address = Annotated[
    str | None, typer.Option(help="Running Ray cluster; left out: a small one on this machine.")
]
