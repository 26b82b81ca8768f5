"""Optuna's samplers and Tune's schedulers, as the search file names them."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import optuna
from ray import tune
from ray.tune.schedulers import (
    ASHAScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from tuning.config import Search
from tuning.settings import AshaConfig, MedianConfig, PbtConfig, SearchConfig
from tuning.space import Distribution, Options, Params, Range, Space, Value


class Suggest:
    """The space as Optuna asks for it, parameter by parameter; Tune pickles it with the study."""

    def __init__(self, space: Space) -> None:
        self._space = space

    def __call__(self, trial: optuna.Trial) -> None:
        """Ask the trial for each parameter that it has."""
        self._space.build(lambda name, distribution: suggest(trial, name, distribution))


def suggest(trial: optuna.Trial, name: str, distribution: Distribution) -> Value:
    """Let a trial choose one value."""
    if isinstance(distribution, Options):
        return trial.suggest_categorical(name, distribution.labels)
    low, high = distribution.low, distribution.high
    if distribution.is_integer:
        return trial.suggest_int(name, int(low), int(high))
    is_log = distribution.kind == "loguniform"
    return trial.suggest_float(name, low, high, step=distribution.step, log=is_log)


def make_sampler(settings: SearchConfig, num_trials: int) -> optuna.samplers.BaseSampler:
    """Return the sampler; a grid lists its trials, so that any will do for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls `group` experimental
        if settings.algorithm == "tpe":
            return optuna.samplers.TPESampler(
                seed=settings.seed,
                multivariate=True,
                group=True,
                n_startup_trials=max(3, min(10, num_trials // 3)),
            )
        if settings.algorithm == "nsga2":
            return optuna.samplers.NSGAIISampler(
                seed=settings.seed, population_size=max(4, min(50, num_trials // 4))
            )
    return optuna.samplers.RandomSampler(seed=settings.seed)


def make_searcher(search: Search) -> Searcher | None:
    """Return what chooses the parameters; None where PBT does."""
    settings = search.settings
    if isinstance(settings.scheduler, PbtConfig):
        return None
    points = None
    if settings.algorithm == "grid":
        points = list(itertools.islice(search.space.combinations(), search.num_trials))
    is_single = len(settings.metrics) == 1
    return OptunaSearch(
        Suggest(search.space),
        metric=settings.metrics[0] if is_single else list(settings.metrics),
        mode=settings.modes[0] if is_single else list(settings.modes),
        points_to_evaluate=points,
        sampler=make_sampler(settings, search.num_trials),
    )


def make_scheduler(search: Search) -> TrialScheduler | None:
    """Return what stops trials early or changes them; it counts in epochs."""
    scheduler = search.settings.scheduler
    if isinstance(scheduler, AshaConfig):
        return ASHAScheduler(
            time_attr="epoch",
            max_t=search.max_epochs,
            grace_period=scheduler.grace_period,
            reduction_factor=scheduler.reduction_factor,
        )
    if isinstance(scheduler, MedianConfig):
        return MedianStoppingRule(
            time_attr="epoch",
            grace_period=scheduler.grace_period,
            min_samples_required=scheduler.min_trials,
        )
    if isinstance(scheduler, PbtConfig):
        return PopulationBasedTraining(
            time_attr="epoch",
            perturbation_interval=scheduler.interval,
            quantile_fraction=scheduler.quantile,
            resample_probability=scheduler.resample,
            hyperparam_mutations=_mutations(search.space),
            custom_explore_fn=Explore(search.space),
            synch=scheduler.synchronous,
        )
    return None


def population(search: Search) -> dict[str, Any]:
    """Return the space in Tune's own words, for the first trials of PBT."""
    return {name: _domain(d) for name, d in search.space.distributions().items()}


class Explore:
    """Brings what PBT has multiplied back into the range."""

    def __init__(self, space: Space) -> None:
        self._ranges = {n: d for n, d in space.distributions().items() if isinstance(d, Range)}

    def __call__(self, params: Params) -> Params:
        """Return the parameters, ranges kept."""
        kept = {n: d.clip(float(params[n])) for n, d in self._ranges.items()}  # type: ignore[arg-type]
        return {**params, **kept}


def _mutations(space: Space) -> dict[str, Any]:
    """What PBT may do: options go to a neighbour in their list, numbers by a factor."""
    return {
        name: list(d.labels) if isinstance(d, Options) else _domain(d)
        for name, d in space.distributions().items()
    }


def _domain(distribution: Distribution) -> Any:
    if isinstance(distribution, Options):
        return tune.choice(list(distribution.labels))
    low, high = distribution.low, distribution.high
    make: dict[str, Callable[[], Any]] = {
        "uniform": lambda: tune.uniform(low, high),
        "loguniform": lambda: tune.loguniform(low, high),
        # Not Tune's own, whose numbers are multiples of the step, wherever they begin.
        "quniform": lambda: tune.choice(distribution.steps),
        "randint": lambda: tune.randint(int(low), int(high) + 1),
    }
    return make[distribution.kind]()
