"""What is told about a search: how far it is, and its trials."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue

from laminar.config.base import FrozenModel

SearchFile = dict[str, JsonValue]
"""Content of a search file, as YAML or JSON have it."""


class SearchProgress(FrozenModel):
    """Where a search is."""

    num_trials: int = Field(description="Of the whole search.")
    num_done: int = Field(description="Finished, stopped early or failed.")
    num_running: int = Field(description="Under way.")
    best_trial: int | None = Field(
        None, description="Number of the best so far; with several metrics, of the front's first."
    )
    best: dict[str, float | None] = Field(
        default_factory=dict, description="Its metrics; null is no finite number."
    )


class TrialInfo(FrozenModel):
    """A trial so far."""

    number: int = Field(description="From 0, in the order of their starts.")
    id: str = Field(description="Also its folder among the artifacts.")
    status: Literal["running", "finished", "stopped", "retried", "failed"] = Field(
        description="`stopped` is early, by the scheduler or a budget."
    )
    error: str | None = Field(description="One line, of its last failure.")
    params: dict[str, JsonValue] = Field(description="Its values of what is searched, by name.")
    epoch: int = Field(description="Finished so far.")
    num_epochs: int | None = Field(description="Of a whole trial; null before its first epoch.")
    values: dict[str, float | None] = Field(
        description="Of each metric, at its last epoch; null is no finite number."
    )
    curve: list[tuple[int, float | None]] = Field(description="Epoch and first metric.")


class SearchTrials(FrozenModel):
    """The trials of a search."""

    metrics: tuple[str, ...] = Field(description="What the search is about.")
    modes: tuple[Literal["min", "max"], ...] = Field(description="max or min for each.")
    num_trials: int = Field(description="Of the whole search.")
    best: tuple[int, ...] = Field(
        description="Number of the best trial so far; of several metrics, of the Pareto front's."
    )
    trials: tuple[TrialInfo, ...] = Field(description="In the order of their starts.")
