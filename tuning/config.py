"""The search file: a training configuration with distributions, and a section `search`."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from laminar.config import Config
from laminar.config_file import read_tree
from laminar.data import describe, with_absolute_paths
from laminar.errors import ConfigError
from laminar.plan import Plan
from laminar.planning import make_plan
from tuning.settings import PbtConfig, SearchConfig, read_settings
from tuning.space import Corner, Options, Params, Range, Space, at_params

_MAX_PLANS = 30
_MAX_GRID = 10_000
_MAX_STEPS = 100_000
_PATHS = ("root", "cache_dir", "weights", "scratch_dir")

# What a trial of PBT may change between two epochs: neither network nor batches nor optimiser.
_CHANGEABLE = ("optimizer.", "schedule.", "parallel.", "correction.", "loss.", "ema.",
               "data.mixup", "data.cutout", "data.flip", "data.crop_padding")  # fmt: skip


@dataclass(frozen=True)
class Search:
    """A search that can begin: everything in it has been checked that needs no data."""

    settings: SearchConfig
    space: Space
    corners: tuple[Corner, ...]
    tree: dict[str, Any]
    """What was read, with absolute paths; `dump` writes it."""

    @property
    def max_epochs(self) -> int:
        """Of the longest trial."""
        return max(corner.config.epochs for corner in self.corners)

    @property
    def num_trials(self) -> int:
        """Trials of the whole search."""
        wanted = self.settings.num_trials
        if self.settings.algorithm != "grid":
            return 10 if wanted is None else wanted
        most = _MAX_GRID if wanted is None else wanted
        return sum(1 for _ in itertools.islice(self.space.combinations(), most))

    def configs(self, params: Params) -> list[Config]:
        """Return the configurations of a trial's runs, one for each seed.

        Raises:
            ConfigError: The parameters do not go together.
        """
        config = self.space.config(params)
        return [
            config.model_copy(update={"seed": config.seed + index})
            for index in range(self.settings.seeds)
        ]

    def dump(self) -> str:
        """Return YAML that `load_search` reads back equal."""
        return yaml.safe_dump(self.tree, sort_keys=False)


def load_search(path: str | Path, overrides: Sequence[str] = ()) -> Search:
    """Read and check a search file.

    Args:
        path: YAML file.
        overrides: `a.b=VALUE`, as for a training configuration.

    Raises:
        ConfigError: Unreadable file, unknown key, malformed bounds, or a corner of the space that
            is no valid configuration.
    """
    return parse_search(read_tree(path, overrides))


def parse_search(tree: dict[str, Any]) -> Search:
    """Make a search of plain mappings, lists and values.

    Raises:
        ConfigError: As `load_search`.
    """
    tree = _with_absolute_paths(tree)
    training = {key: value for key, value in tree.items() if key != "search"}
    settings = read_settings(tree.get("search") or {})
    space = Space(training)
    _check_metrics(settings)
    _check_distributions(settings, space)
    search = Search(settings, space, tuple(space.corners()), tree)
    _check_epochs(search)
    return search


def check_plans(search: Search) -> None:
    """Make the plans of the corners.

    Raises:
        UserError: One cannot run.
    """
    for _ in plans(search):
        pass


def plans(search: Search) -> Iterator[Plan]:
    """Yield the plans of the corners, up to thirty different ones: cuts, filters, phases, data.

    Raises:
        UserError: One cannot run.
    """
    seen: set[str] = set()
    for corner in search.corners:
        config = with_absolute_paths(corner.config)
        parts = config.model_dump(exclude={"optimizer", "schedule", "loss", "ema", "correction"})
        key = json.dumps(parts, sort_keys=True, default=str)
        if key in seen or len(seen) >= _MAX_PLANS:
            continue
        seen.add(key)
        try:
            plan = make_plan(config, describe(config.data))
        except ConfigError as error:
            raise at_params(error, corner.params) from None
        yield plan


def _with_absolute_paths(node: Any, is_path: bool = False) -> Any:
    """Make paths absolute: trials work in folders of their own."""
    if isinstance(node, dict):
        return {k: _with_absolute_paths(v, is_path or k in _PATHS) for k, v in node.items()}
    if isinstance(node, list):
        return [_with_absolute_paths(child, is_path) for child in node]
    return str(Path(node).expanduser().resolve()) if is_path and isinstance(node, str) else node


def _check_metrics(settings: SearchConfig) -> None:
    if not settings.metrics or len(set(settings.metrics)) < len(settings.metrics):
        raise ConfigError(
            "search.metric must name at least one metric, each once",
            got=list(settings.metrics),
            fix="remove the repeats",
        )
    if len(settings.modes) != len(settings.metrics):
        raise ConfigError(
            "search.mode must have one entry for each metric",
            got=f"{len(settings.modes)} for {len(settings.metrics)} metrics",
            fix="give one for each, or leave search.mode out",
        )
    if len(settings.metrics) > 1 and settings.scheduler is not None:
        raise ConfigError(
            "search.scheduler must be none with several metrics",
            got=settings.scheduler.name,
            fix="leave the scheduler out: it cannot tell which of two trade-offs is worse",
        )


def _check_distributions(settings: SearchConfig, space: Space) -> None:
    distributions = space.distributions()
    if not distributions:
        raise ConfigError(
            "a search must vary at least one value",
            got="no distribution",
            expected="say, optimizer.lr: {loguniform: [0.01, 0.3]}",
            fix="write one in the place of a value",
        )
    ranges = [name for name, d in distributions.items() if isinstance(d, Range)]
    grids = [n for n, d in distributions.items() if isinstance(d, Options) and d.kind == "grid"]
    if settings.algorithm == "grid" and ranges:
        raise ConfigError(
            "a grid must be of `grid` and `choice` only",
            got=f"{ranges[0]} is a range",
            fix="list its values, or choose another search.algorithm",
        )
    if settings.algorithm != "grid" and grids:
        raise ConfigError(
            "`grid` must go with search.algorithm grid",
            got=f"{settings.algorithm}, and {grids[0]} is a grid",
            fix="write `choice`, or set search.algorithm to grid",
        )
    if settings.algorithm == "grid" and settings.num_trials is None:
        _check_grid(space)
    if isinstance(settings.scheduler, PbtConfig):
        _check_pbt(settings, space)


def _check_grid(space: Space) -> None:
    if sum(1 for _ in itertools.islice(space.combinations(), _MAX_GRID + 1)) > _MAX_GRID:
        raise ConfigError(
            f"a grid must have <= {_MAX_GRID:,} combinations",
            got="more",
            fix="list fewer values, or set search.num_trials to try the first so many",
        )


def _check_pbt(settings: SearchConfig, space: Space) -> None:
    if settings.algorithm != "random":
        raise ConfigError(
            "search.algorithm must be random with the scheduler pbt, which then moves the values",
            got=settings.algorithm,
            fix="set search.algorithm to random",
        )
    for name, distribution in space.distributions().items():
        is_plain = isinstance(distribution, Range) or not any(
            isinstance(tree, dict | list) for tree in distribution.trees
        )
        is_changeable = name.startswith(_CHANGEABLE) and not name.endswith(".name")
        if "[" in name or not is_plain or not is_changeable:
            raise ConfigError(
                "pbt must vary numbers and plain options that can change in mid-run",
                got=name,
                expected=", ".join(f"{prefix.rstrip('.')}" for prefix in _CHANGEABLE),
                fix="fix that value, or choose another scheduler",
            )
        if isinstance(distribution, Range) and distribution.num_steps > _MAX_STEPS:
            raise ConfigError(
                f"quniform must have <= {_MAX_STEPS:,} steps with pbt, which lists them",
                got=f"{distribution.num_steps:,} in {name}",
                fix="take a larger step, or uniform",
            )


def _check_epochs(search: Search) -> None:
    scheduler = search.settings.scheduler
    if scheduler is None:
        return
    name = "interval" if isinstance(scheduler, PbtConfig) else "grace_period"
    value = getattr(scheduler, name)
    if value >= search.max_epochs:
        raise ConfigError(
            f"search.scheduler.{name} must be < epochs",
            got=f"{value} and {search.max_epochs}",
            fix=f"lower {name}, or train for more epochs",
        )
