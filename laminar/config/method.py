"""Which settings go with which method and feed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from laminar.config.optimization import SgdConfig
from laminar.config.stored import BalancedPenalty, StoredConfig
from laminar.errors import ConfigError

if TYPE_CHECKING:
    from laminar.config.run import Config


_CHOSEN = ("micro_batches", "hop_delay")
_STORED = ("delayed_gradient", "penalty", "augmented_lagrangian")


def check_method(config: Config) -> None:
    """Refuse settings that would change nothing.

    Raises:
        ConfigError: Of the stored feed where it is streamed, of multipliers or penalties where the
            method has none, of late adjoints where there are none, of SGD with another optimiser.
    """
    _check_lateness(config)
    _check_curvature(config)
    penalty_is_set = config.penalty != BalancedPenalty()
    if config.parallel.feed == "streamed":
        for name, is_set in (
            ("stored", config.stored != StoredConfig()),
            ("penalty", penalty_is_set),
        ):
            if is_set:
                raise ConfigError(
                    f"`{name}` must be left out with parallel.feed streamed, where it makes no "
                    "difference",
                    got=f"{name} settings",
                    fix="set parallel.feed to stored, or remove them",
                )
        return
    if config.method not in _STORED:
        raise ConfigError(
            "parallel.feed stored must come with a method that has auxiliary variables",
            got=f"method {config.method}",
            expected=", ".join(_STORED),
            fix="change the method, or leave parallel.feed out",
        )
    if config.method == "delayed_gradient" and penalty_is_set:
        raise ConfigError(
            "`penalty` must be left out with method delayed_gradient, which has none",
            got="penalty settings",
            fix="set method to penalty or augmented_lagrangian, or remove them",
        )
    if config.method != "augmented_lagrangian" and config.stored.multiplier_step != 1.0:
        raise ConfigError(
            "stored.multiplier_step must come with method augmented_lagrangian",
            got=f"{config.stored.multiplier_step:g}, method {config.method}",
            fix="leave it out, or change the method",
        )
    if config.stored.sweeps == 1 and config.stored.multiplier_step != 1.0:
        raise ConfigError(
            "stored.multiplier_step must come with two sweeps or more, for it sets what the next "
            "one starts from",
            got=f"{config.stored.multiplier_step:g}, one sweep",
            fix="leave it out, or raise stored.sweeps",
        )
    if config.stored.momentum is not None and not isinstance(config.optimizer, SgdConfig):
        raise ConfigError(
            "stored.momentum must come with optimizer sgd",
            got=f"{config.stored.momentum:g}, optimizer {config.optimizer.name}",
            fix="leave it out",
        )


def _check_curvature(config: Config) -> None:
    """Refuse to correct late adjoints where there are none, or those of made inputs."""
    if config.parallel.curvature and config.method in ("greedy", "auxnet"):
        raise ConfigError(
            f"parallel.curvature must be left out with method {config.method}",
            got=f"{config.parallel.curvature:g}",
            expected=f"0, or method {', '.join(_STORED)}",
            fix="leave it out, or change the method",
        )


def _check_lateness(config: Config) -> None:
    """Refuse numbers that `lateness: auto` would not look at."""
    parallel = config.parallel
    if parallel.lateness == "given":
        return
    named = [name for name in _CHOSEN if name in parallel.model_fields_set]
    if named:
        raise ConfigError(
            f"parallel.{named[0]} must be left out with parallel.lateness auto, which chooses it",
            got=getattr(parallel, named[0]),
            fix="leave it out, or set parallel.lateness to given",
        )
    if parallel.feed == "stored":
        raise ConfigError(
            "parallel.lateness must be given with parallel.feed stored, which has no ticks",
            got="auto",
            fix="leave it out",
        )
