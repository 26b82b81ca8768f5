"""The bundles of a trial: what it asks for, and whether the cluster will ever have it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ray import tune

from laminar.config import Config
from laminar.errors import ConfigError, ResourceError
from tuning.config import Search
from tuning.space import Params
from tuning.trial import run_trial


def make_trainable(search: Search, folder: Path) -> Callable[[Params], None]:
    """Return what Tune runs as a trial, and knows the bundles of.

    A worker imports this module with it, which therefore leaves Optuna to the driver.
    """
    tree, path = search.tree, str(folder)
    light = replace(search, corners=search.corners[:1])  # it travels with every trial

    def trial(config: Params) -> None:
        run_trial(config, tree, path)

    made: Callable[[Params], None] = tune.with_resources(trial, lambda p: bundles(light, p))
    return made


def bundles(search: Search, params: Params) -> tune.PlacementGroupFactory:
    """Return a trial's bundles: none for itself, which only waits, and one for each stage.

    With parameters that do not go together the trial gets some, to fail in.
    """
    try:
        config = search.space.config(params)
    except ConfigError:
        config = search.corners[0].config
    stages = [_bundle(config)] * config.num_stages * search.settings.seeds
    return tune.PlacementGroupFactory([{}, *stages])


def is_one_size(search: Search) -> bool:
    """Whether all trials want the same bundles."""
    sizes = {(c.config.num_stages, *sorted(_bundle(c.config).items())) for c in search.corners}
    return len(sizes) == 1


def _bundle(config: Config) -> dict[str, float]:
    bundle = {"CPU": config.resources.cpus_per_stage, "GPU": config.resources.gpus_per_stage}
    return {kind: amount for kind, amount in bundle.items() if amount}


def check_room(search: Search, nodes: list[dict[str, float]], where: str) -> None:
    """Refuse a search of which some trial would wait for its bundles for ever."""
    for corner in search.corners:
        bundle = _bundle(corner.config)
        num = corner.config.num_stages * search.settings.seeds
        fits = sum(
            int(min(node.get(kind, 0.0) / amount + 1e-9 for kind, amount in bundle.items()))
            for node in nodes
        )
        if fits < num:
            raise ResourceError(
                "a trial must get all its stages at once, num_stages times search.seeds",
                got=f"{where} has room for {fits} of {bundle}",
                expected=f"{num}, for num_stages {corner.config.num_stages} and "
                f"{search.settings.seeds} seeds",
                fix="lower num_stages, search.seeds or resources.cpus_per_stage and gpus_per_stage",
            )
