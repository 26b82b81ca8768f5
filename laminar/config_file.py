"""Configurations from YAML files and `--set` overrides; every mistake is one line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from laminar.config import DEFAULT_NAMES, Config
from laminar.errors import ConfigError

_NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)
"""The parser also fails by ValueError, at days that do not exist, and at too many brackets."""
_SEE_SCHEMA = "see `laminar config schema`"


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration.

    Args:
        path: YAML file; None takes the defaults.
        overrides: `a.b=VALUE`, VALUE in YAML; a number in the path indexes a list.

    Raises:
        ConfigError: Unreadable file, unknown key or value out of range.
    """
    return validate_config(read_tree(path, overrides))


def read_tree(path: str | Path | None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a YAML file and apply overrides, as `load_config` does, without judging the result.

    Raises:
        ConfigError: The file cannot be read, or an override does not fit it.
    """
    tree = {} if path is None else _read_yaml(Path(path))
    for override in overrides:
        _apply(tree, override)
    return tree


def validate_config(tree: dict[str, Any]) -> Config:
    """Make a configuration of plain mappings, lists and values.

    Raises:
        ConfigError: Unknown key or value out of range.
    """
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise _one_line(error, tree) from None


def override_resources(config: Config, overrides: Sequence[str]) -> Config:
    """Change what a run that exists may use; nothing else of it can change.

    Raises:
        ConfigError: An override of something else, or a value out of range.
    """
    tree = config.model_dump(mode="json")
    for override in overrides:
        if not override.startswith("resources."):
            raise ConfigError(
                "of a run that exists only `resources` can be set",
                got=override,
                fix="set, say, resources.cpus_per_stage=0.5, or start a new run",
            )
        _apply(tree, override)
    return validate_config(tree)


def dump_config(config: Config) -> str:
    """Return YAML that `load_config` reads back equal."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def config_schema() -> dict[str, Any]:
    """Return the JSON schema of a configuration."""
    return Config.model_json_schema()


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            "the configuration must be a readable file", got=f"{path}: {error}", fix="mend the path"
        ) from error
    except _NOT_YAML as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f", line {mark.line + 1}"
        raise ConfigError(
            "the configuration must be valid YAML",
            got=f"{path}{where}: {getattr(error, 'problem', error)}",
            fix="mend that line",
        ) from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(
            "the configuration must be a mapping of keys to values",
            got=f"{type(tree).__name__} in {path}",
            fix=_SEE_SCHEMA,
        )
    return tree


def _apply(tree: dict[str, Any], override: str) -> None:
    """Set one value in the tree, making mappings on the way."""
    path, equals, text = override.partition("=")
    if not equals or not path.strip():
        raise ConfigError(
            "an override must read KEY=VALUE",
            got=override,
            fix="write, say, --set optimizer.lr=0.1",
        )
    try:
        value = yaml.safe_load(text)
    except _NOT_YAML as error:
        raise ConfigError(
            "an override's value must be valid YAML", got=override, fix="quote it"
        ) from error
    *parents, leaf = path.strip().split(".")
    node: Any = tree
    for depth, key in enumerate(parents):
        node = _child(node, key, override, parents[depth:])
    if isinstance(node, list):
        node[_index(node, leaf, override)] = value
    else:
        node[leaf] = value


def _child(node: Any, key: str, override: str, rest: list[str]) -> Any:
    child = node[_index(node, key, override)] if isinstance(node, list) else node.get(key)
    if child is None:
        child = {}
        node[_index(node, key, override) if isinstance(node, list) else key] = child
    if not isinstance(child, dict | list):
        raise ConfigError(
            f"`{key}` must be a mapping to set something in it",
            got=f"{child!r} for {override}",
            fix=f"set {key} itself, or its mapping in the file",
        )
    return child


def _index(node: list[Any], key: str, override: str) -> int:
    if not key.isdigit() or int(key) >= len(node):
        raise ConfigError(
            "a list is addressed by the number of one of its entries",
            got=override,
            expected=f"0..{len(node) - 1}",
            fix="mend the number, or set the whole list",
        )
    return int(key)


def _one_line(error: ValidationError, tree: dict[str, Any]) -> ConfigError:
    """Turn pydantic's report into our one line: the first error, and how many more there are."""
    problems = [p for p in error.errors() if _is_of_chosen_branch(p["loc"], tree)] or error.errors()
    first, more = problems[0], len(problems) - 1
    original = first.get("ctx", {}).get("error")
    if isinstance(original, ConfigError):
        return original
    path = _public_path(first["loc"], tree)
    also = f" (and {more} more)" if more else ""
    if first["type"] == "extra_forbidden":
        *parents, key = path.split(".")
        known = _known_keys(tree, parents)
        near = difflib.get_close_matches(key, known, 1)
        hint = f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(known)}"
        return ConfigError(f"`{path}` must be a known key", got=f"`{key}`{also}", fix=hint)
    if first["type"] in ("union_tag_invalid", "union_tag_not_found"):
        return ConfigError(
            f"`{path}.name` must be a known name",
            got=f"{first.get('ctx', {}).get('tag', 'nothing')}{also}",
            expected=", ".join(_names_of(path)),
            fix=f"mend {path}.name",
        )
    if first["type"] == "missing":
        return ConfigError(f"`{path}` must be given", got=f"nothing{also}", fix=_SEE_SCHEMA)
    message = re.sub(r"^(Input|Value) should be ", "", first["msg"])
    return ConfigError(
        f"`{path or 'the configuration'}` must be {message}",
        got=f"{first['input']!r}{also}",
        fix=f"change {path}; {_SEE_SCHEMA}",
    )


def _is_of_chosen_branch(loc: tuple[int | str, ...], tree: dict[str, Any]) -> bool:
    """Whether an error of `filters` or `phases` is of the branch that its input's type chose."""
    if len(loc) < 2 or loc[0] not in ("filters", "phases"):
        return True
    is_list_branch = str(loc[1]).startswith("tuple")
    return is_list_branch == isinstance(tree.get(str(loc[0])), list | tuple)


def _public_path(loc: tuple[int | str, ...], tree: dict[str, Any]) -> str:
    """Return the dotted path without the names that pydantic gives to branches of unions."""
    parts = [str(part) for part in loc]
    if parts and (parts[0] in ("filters", "phases") or _is_named(parts[0])):
        del parts[1:2]
    return ".".join(parts)


def _known_keys(tree: dict[str, Any], parents: list[str]) -> list[str]:
    """Return the keys of the model at a path of the configuration."""
    model: type[BaseModel] = Config
    for part in parents:
        if part.isdigit():
            continue
        models = _models_in(model.model_fields[part].annotation)
        if len(models) > 1 and _is_named(part):
            name = tree[part].get("name", DEFAULT_NAMES.get(part))
            models = [m for m in models if name in _names_in(m)]
        if part == "phases":
            models = [models[isinstance(tree["phases"], list)]]
        model = models[0]
    return list(model.model_fields)


def _is_named(field: str) -> bool:
    """Whether a field of the configuration is one of several models, chosen by its `name`."""
    info = Config.model_fields.get(field)
    return info is not None and info.discriminator is not None


def _names_of(field: str) -> list[str]:
    """Return the names that a field chooses its model by."""
    models = _models_in(Config.model_fields[field].annotation)
    return [name for model in models for name in _names_in(model)]


def _names_in(model: type[BaseModel]) -> tuple[str, ...]:
    return get_args(model.model_fields["name"].annotation)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for part in getattr(annotation, "__args__", ()) for m in _models_in(part)]
