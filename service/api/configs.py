"""Configurations as text: what somebody pastes, read and made whole."""

from __future__ import annotations

from typing import Any

import yaml
from fastapi import APIRouter
from pydantic import Field, TypeAdapter, ValidationError

from laminar.config import Config
from laminar.config.base import FrozenModel
from laminar.config_file import validate_config
from laminar.errors import ConfigError
from service.api.context import Reader
from service.api.problems import responses, without_kinds
from service.jobs.search_models import SearchFile

router = APIRouter(prefix="/v1", responses=responses(400, 401, 403, 413, 422, 429))

_MAX_CHARACTERS = 64 * 1024
_SEARCH_FILE = TypeAdapter(SearchFile)


class ConfigText(FrozenModel):
    """A configuration as a file has it."""

    text: str = Field(
        max_length=_MAX_CHARACTERS,
        description="YAML, of which JSON is a part; nothing is the defaults.",
        examples=["epochs: 10\noptimizer:\n  lr: 0.05\n"],
    )


class _Loader(yaml.SafeLoader):
    """Plain data without aliases, by which a few lines could stand for gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="an alias; write it out", problem_mark=mark)
        return super().compose_node(parent, index)


class SearchText(FrozenModel):
    """A search as a file has it."""

    text: str = Field(
        max_length=_MAX_CHARACTERS,
        description="YAML, of which JSON is a part.",
        examples=["epochs: 12\noptimizer:\n  lr: {loguniform: [0.01, 0.5]}\nsearch: {}\n"],
    )


@router.post("/config", operation_id="read_config")
def read_config(user: Reader, body: ConfigText) -> Config:
    """Read a configuration and return it with all defaults; no file is looked at."""
    tree = parse(body.text)
    if "search" in tree:
        raise ConfigError(
            "the configuration must be of one training",
            got="that of a search, with a section `search`",
            fix="submit it as a search",
        )
    return validate_config(tree)


@router.post("/search-file", operation_id="read_search_file")
def read_search_file(user: Reader, body: SearchText) -> SearchFile:
    """Read a search file as plain data, for `search_file`; `estimate` judges what it says."""
    try:
        return _SEARCH_FILE.validate_python(parse(body.text))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in without_kinds(first["loc"]))
        raise ConfigError(
            f"`{where}` must be text, a number, true, false, null, a list or a mapping",
            got=type(first["input"]).__name__,
            fix="put quotes around a date or what else YAML takes for no text",
        ) from None


def parse(text: str) -> dict[str, Any]:
    """Return the mapping that a YAML text is.

    Raises:
        ConfigError: It is none.
    """
    try:
        tree = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f"line {mark.line + 1}: "
        raise _refused(f"{where}{getattr(error, 'problem', None) or error}") from None
    except (ValueError, OverflowError) as error:  # dates and numbers that no calendar has
        raise _refused(str(error)[:200]) from None
    except RecursionError:
        raise _refused("too many levels") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise ConfigError(
            "the configuration must be a mapping of keys to values",
            got=type(tree).__name__,
            fix="write, say, epochs: 10",
        )
    return tree


def _refused(got: str) -> ConfigError:
    return ConfigError("the configuration must be valid YAML", got=got, fix="mend that line")
