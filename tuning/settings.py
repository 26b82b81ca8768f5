"""The section `search` of a search file; light, for those who only read what a search left."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, ValidationError

from laminar.config.base import FrozenModel
from laminar.errors import ConfigError

Metric = Literal[
    "test_accuracy", "test_loss", "train_accuracy", "train_loss", "cut_bytes", "seconds"
]
Mode = Literal["min", "max"]

METRICS: tuple[Metric, ...] = get_args(Metric)


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


def read_settings(tree: Any) -> SearchConfig:
    """Make the section `search` of plain mappings, lists and values.

    Raises:
        ConfigError: Unknown key or value out of range.
    """
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
