"""`laminar config show` and `laminar config schema`."""

from __future__ import annotations

import json

import typer

from laminar.config_file import config_schema, dump_config, load_config
from service.commands.options import ConfigPath, Settings

app = typer.Typer(help="Show configurations.", no_args_is_help=True)


@app.command("show")
def show(config: ConfigPath = None, set_: Settings = None) -> None:
    """Print the whole configuration, defaults included, as YAML."""
    typer.echo(dump_config(load_config(config, set_ or ())), nl=False)


@app.command("schema")
def schema() -> None:
    """Print the JSON schema of configurations."""
    typer.echo(json.dumps(config_schema(), indent=1))
