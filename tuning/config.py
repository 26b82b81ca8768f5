"""The search file: a training configuration with distributions, and a section `search`."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BeforeValidator, Field, ValidationError

from laminar.config import Config
from laminar.config.base import FrozenModel
from laminar.config_file import read_tree
from laminar.data import describe, with_absolute_paths
from laminar.errors import ConfigError
from laminar.plan import make_plan
from tuning.space import Corner, Options, Params, Range, Space, at_params

Metric = Literal[
    "test_accuracy", "test_loss", "train_accuracy", "train_loss", "cut_bytes", "seconds"
]
Mode = Literal["min", "max"]

METRICS: tuple[Metric, ...] = get_args(Metric)

_MAX_PLANS = 30
_PATHS = ("root", "cache_dir", "weights")

# What a trial of PBT may change between two epochs: neither network nor batches nor optimiser.
_CHANGEABLE = ("optimizer.", "schedule.", "parallel.", "correction.", "loss.", "ema.",
               "data.mixup", "data.cutout", "data.flip", "data.crop_padding")  # fmt: skip


class AshaConfig(FrozenModel):
    """Asynchronous successive halving (arXiv 1810.05934)."""

    name: Literal["asha"] = Field("asha", description="Scheduler.")
    grace_period: int = Field(1, ge=1, description="Epochs that every trial gets.")
    reduction_factor: float = Field(
        3.0, gt=1, description="Of the trials at a rung one in so many goes on, so much longer."
    )


class MedianConfig(FrozenModel):
    """Stop a trial below the median of the others' running means at the same epoch."""

    name: Literal["median"] = Field("median", description="Scheduler.")
    grace_period: int = Field(1, ge=1, description="Epochs that every trial gets.")
    min_trials: int = Field(3, ge=1, description="Trials that a median is taken of, at least.")


class PbtConfig(FrozenModel):
    """Population-based training (arXiv 1711.09846): the worst go on from copies of the best."""

    name: Literal["pbt"] = Field("pbt", description="Scheduler.")
    interval: int = Field(1, ge=1, description="Epochs between two comparisons.")
    quantile: float = Field(
        0.25, gt=0, le=0.5, description="Share of the trials that is replaced by as many others."
    )
    resample: float = Field(
        0.25, ge=0, le=1, description="Probability of a fresh value instead of a nearby one."
    )
    synchronous: bool = Field(
        False,
        description="Compare when every trial has got there, whatever their speeds; those that "
        "wait make room for others.",
    )


def _from_name(value: Any) -> Any:
    if value == "none":
        return None
    return {"name": value} if isinstance(value, str) else value


Scheduler = Annotated[
    Annotated[AshaConfig | MedianConfig | PbtConfig, Field(discriminator="name")] | None,
    BeforeValidator(_from_name),
]


class SearchConfig(FrozenModel):
    """How to search."""

    metric: Metric | tuple[Metric, ...] = Field(
        "test_accuracy",
        description="What to improve, at a trial's last epoch; several give a Pareto front. "
        "cut_bytes (across all cuts, both ways) and seconds (of training) are sums over the run.",
    )
    mode: Mode | tuple[Mode, ...] | None = Field(
        None, description="max or min for each metric; null: accuracies up, all others down."
    )
    num_trials: int | None = Field(
        None, ge=1, description="Trials; null is 10, and with grid all combinations."
    )
    seeds: int = Field(
        1, ge=1, description="Runs of a trial, at once, with seeds seed, seed + 1, ...; averaged."
    )
    algorithm: Literal["random", "grid", "tpe", "nsga2"] = Field(
        "tpe", description="How to choose parameters; tpe and nsga2 learn from earlier trials."
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of the choice of parameters.")
    scheduler: Scheduler = Field(None, description="What stops or changes trials early.")
    max_concurrent: int | None = Field(
        None, ge=1, description="Trials at once; null: as many as the cluster has room for."
    )
    time_budget_s: float | None = Field(
        None, gt=0, description="Seconds after which the whole search ends."
    )
    max_cut_bytes: int | None = Field(
        None, ge=1, description="Bytes across cuts, all trials together, after which it ends."
    )
    max_failures: int = Field(
        1, ge=0, description="A trial goes on from its checkpoint after so many failures."
    )

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """All metrics."""
        return self.metric if isinstance(self.metric, tuple) else (self.metric,)

    @property
    def modes(self) -> tuple[Mode, ...]:
        """`min` or `max` of each metric."""
        if self.mode is None:
            return tuple("max" if m.endswith("accuracy") else "min" for m in self.metrics)
        return self.mode if isinstance(self.mode, tuple) else (self.mode,)


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
        count = sum(1 for _ in self.space.combinations())
        return count if wanted is None else min(count, wanted)

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
    settings = _validate(tree.get("search") or {})
    space = Space(training)
    _check_metrics(settings)
    _check_distributions(settings, space)
    search = Search(settings, space, tuple(space.corners()), tree)
    _check_epochs(search)
    return search


def check_plans(search: Search) -> None:
    """Make the plans of the corners, up to thirty different ones: cuts, filters, phases, data.

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
            make_plan(config, describe(config.data))
        except ConfigError as error:
            raise at_params(error, corner.params) from None


def _with_absolute_paths(node: Any, is_path: bool = False) -> Any:
    """Make paths absolute: trials work in folders of their own."""
    if isinstance(node, dict):
        return {k: _with_absolute_paths(v, is_path or k in _PATHS) for k, v in node.items()}
    if isinstance(node, list):
        return [_with_absolute_paths(child, is_path) for child in node]
    return str(Path(node).expanduser().resolve()) if is_path and isinstance(node, str) else node


def _validate(tree: Any) -> SearchConfig:
    try:
        return SearchConfig.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
    path = ".".join(["search", *(str(part) for part in first["loc"])])
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(first["loc"][-1]), SearchConfig.model_fields, 1)
        fix = f"did you mean `{near[0]}`?" if near else "see docs/tuning.md"
        raise ConfigError(f"`{path}` must be a known key", got=f"`{first['loc'][-1]}`", fix=fix)
    message = first["msg"].removeprefix("Input should be ")
    raise ConfigError(
        f"`{path}` must be {message}",
        got=repr(first["input"]),
        fix=f"change {path}; see docs/tuning.md",
    )


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
    if isinstance(settings.scheduler, PbtConfig):
        _check_pbt(settings, space)


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
