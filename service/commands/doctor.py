"""`laminar doctor`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from laminar.config_file import load_config
from service.commands.options import Address, ConfigPath, Settings

_COLORS = {"ok": "green", "note": "yellow", "fails": "bold red"}


def doctor(
    config: ConfigPath = None,
    set_: Settings = None,
    address: Address = None,
    ray: Annotated[bool, typer.Option(help="Start Ray, or reach the one at --address.")] = True,
) -> None:
    """Say whether this machine can run a configuration; exit code 1 if it cannot."""
    from service.doctor import examine

    console = Console(highlight=False, soft_wrap=True)
    failed = False
    for finding in examine(load_config(config, set_ or ()), address, with_ray=ray):
        failed |= finding.verdict == "fails"
        verdict = (f"{finding.verdict:5} ", _COLORS[finding.verdict])
        console.print(Text.assemble(verdict, f"{finding.what:10} {finding.text}"))
    raise typer.Exit(1 if failed else 0)
