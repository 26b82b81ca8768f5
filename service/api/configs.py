"""Configurations as text: what somebody pastes, read and made whole."""

from __future__ import annotations

from typing import Any

import yaml
from fastapi import APIRouter
from pydantic import Field

from laminar.config import Config
from laminar.config.base import FrozenModel
from laminar.config_file import validate_config
from laminar.errors import ConfigError
from service.api.context import Reader
from service.api.problems import responses

router = APIRouter(prefix="/v1", responses=responses(400, 401, 403, 413, 422, 429))

_MAX_CHARACTERS = 64 * 1024


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


@router.post("/config", operation_id="read_config")
def read_config(user: Reader, body: ConfigText) -> Config:
    """Read a configuration and return it with all defaults; no file is looked at."""
    return validate_config(parse(body.text))


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
