"""Run a search with Ray Tune: check everything, get a cluster, train the trials, name the best."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.error import TuneError
from ray.tune.execution import class_cache
from ray.tune.logger import TBXLoggerCallback

from actors.cluster import machine_resources, node_resources, ray_cluster
from laminar.config import Config
from laminar.config_file import dump_config
from laminar.data import with_absolute_paths
from laminar.errors import ConfigError
from laminar.run_directory import RunDirectory
from tuning.algorithms import make_scheduler, make_searcher, population
from tuning.callback import Bookkeeper, newest_snapshot
from tuning.config import Search, check_plans
from tuning.ledger import (
    BEST_FILE,
    ENDED,
    SEARCH_FILE,
    Ledger,
    Trial,
    best_trials,
    open_search,
)
from tuning.room import check_room, is_one_size, make_trainable
from tuning.settings import PbtConfig

Listener = Callable[[Ledger], None]


@dataclass(frozen=True)
class SearchResult:
    """What came of a search."""

    path: str
    trials: tuple[Trial, ...]
    best: tuple[Trial, ...]
    """The best trial, or the Pareto front; empty when no trial reported anything."""
    is_complete: bool
    """Whether nothing is left to do: otherwise it can be resumed."""


def run_search(
    search: Search,
    *,
    storage_path: str | Path = "searches",
    name: str | None = None,
    address: str | None = None,
    listener: Listener | None = None,
) -> SearchResult:
    """Search, from the first trial to the last.

    Args:
        search: From `tuning.config.load_search`.
        storage_path: Folder of the searches, shared by all nodes.
        name: Of this one; default: the time.
        address: Of a running Ray cluster; None starts a small one on this machine, or uses the one
            that this process is connected to.
        listener: Called with the ledger about twice a second.

    Raises:
        UserError: Something given does not fit, or the cluster has no room for one trial.
        RuntimeError: Tune itself failed; the search can be resumed.
    """
    if "://" in str(storage_path):
        raise ConfigError(
            "storage_path must be a folder that driver and stages share",
            got=storage_path,
            fix="mount the storage and give the path of the mount",
        )
    name = name or datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = Path(storage_path).expanduser().resolve() / name
    RunDirectory(folder).check_is_free()
    if address is None:
        check_plans(search)
        check_room(search, [machine_resources()], "this machine")
    with ray_cluster(address, _config_for_start(search)):
        check_room(search, node_resources(), "the cluster")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SEARCH_FILE).write_text(search.dump())
        return _run(search, folder, listener, resume=None)


def resume_search(
    folder: str | Path,
    *,
    retry_failed: bool = False,
    address: str | None = None,
    listener: Listener | None = None,
) -> SearchResult:
    """Go on with a search that was stopped or killed; trials that have ended stay as they are.

    Reads pickles that Tune has left in the folder: resume only what you wrote yourself.

    Args:
        folder: Of the search.
        retry_failed: Let failed trials go on from their checkpoints, too.
        address: As for `run_search`.
        listener: As for `run_search`.

    Raises:
        UserError: The folder is no search, or the cluster has no room for one trial.
    """
    search, ledger = open_search(folder)
    if _is_done(search, ledger) and not retry_failed:
        return _result(search, ledger)
    if address is None:
        check_room(search, [machine_resources()], "this machine")
    with ray_cluster(address, _config_for_start(search)):
        check_room(search, node_resources(), "the cluster")
        resume = None
        if _restore_snapshot(ledger.folder):
            kinds: Any = tune.ResumeConfig.ResumeType
            resume = tune.ResumeConfig(
                finished=kinds.SKIP,
                unfinished=kinds.RESUME,
                errored=kinds.RESUME if retry_failed else kinds.SKIP,
            )
        return _run(search, ledger.folder, listener, resume)


def _run(
    search: Search, folder: Path, listener: Listener | None, resume: tune.ResumeConfig | None
) -> SearchResult:
    settings = search.settings
    ledger = Ledger(folder)
    ledger.begin()
    keeper = Bookkeeper(ledger, make_scheduler(search), listener)
    if resume is not None:
        keeper.restore_scheduler()
    is_pbt = isinstance(settings.scheduler, PbtConfig)
    is_single = len(settings.metrics) == 1
    with _quiet(), _without_credentials(), _one_line():
        tune.run(
            make_trainable(search, folder),
            name=folder.name,
            storage_path=str(folder.parent),
            metric=settings.metrics[0] if is_single else None,
            mode=settings.modes[0] if is_single else None,
            num_samples=search.num_trials,
            config=population(search) if is_pbt else None,
            search_alg=_searcher(search),
            scheduler=keeper.scheduler,
            stop=Budget(ledger, settings.time_budget_s, settings.max_cut_bytes),
            max_failures=settings.max_failures,
            max_concurrent_trials=settings.max_concurrent,
            # With 1 Tune saves its state at every report. A clone of PBT's may begin long after it
            # was decided, from a checkpoint as old as the decision: there all are kept.
            checkpoint_config=tune.CheckpointConfig(num_to_keep=None if is_pbt else 1),
            callbacks=[keeper, TBXLoggerCallback()],  # type: ignore[no-untyped-call]
            trial_dirname_creator=_folder_name,
            resume_config=resume,
            # Spares every trial but the first the import of torch.
            reuse_actors=is_one_size(search),
            raise_on_failed_trial=False,
            verbose=0,
        )
    keeper.tell()
    return _result(search, ledger)


def _result(search: Search, ledger: Ledger) -> SearchResult:
    """Say where the search stands, and write the best configuration beside it."""
    settings = search.settings
    is_spent = Budget(ledger, settings.time_budget_s, settings.max_cut_bytes).stop_all()
    for trial in list(ledger.trials.values()):
        if is_spent and trial.status not in ENDED:
            ledger.note(trial.id, trial.params, "stopped")
    trials = tuple(ledger.trials.values())
    best = tuple(best_trials(settings, list(trials)))
    if best:
        (ledger.folder / BEST_FILE).write_text(best_config(search, best[0]))
    is_complete = is_spent or _is_done(search, ledger)
    if is_complete:
        for trial in trials:
            for path in sorted((ledger.folder / trial.id).glob("checkpoint_*"))[:-1]:
                shutil.rmtree(path)
    return SearchResult(str(ledger.folder), trials, best, is_complete)


def _is_done(search: Search, ledger: Ledger) -> bool:
    trials = ledger.trials.values()
    return len(trials) >= search.num_trials and all(t.status in ENDED for t in trials)


def best_config(search: Search, trial: Trial) -> str:
    """Return a trial's configuration as YAML that `laminar train` takes."""
    config = with_absolute_paths(search.configs(trial.params)[0])
    found = ", ".join(f"{m} {trial.last[m]:.6g}" for m in search.settings.metrics)
    return f"# Trial {trial.number}: {found}\n{dump_config(config)}"


def _searcher(search: Search) -> Any:
    """Return the searcher; for PBT, Tune's own that draws the first trials."""
    found = make_searcher(search)
    if found is not None:
        return found
    return tune.search.BasicVariantGenerator(
        max_concurrent=search.settings.max_concurrent or 0, random_state=search.settings.seed
    )


def _folder_name(trial: Any) -> str:
    return str(trial.trial_id)


class Budget(tune.Stopper):
    """Ends a search that has used up its time or its bytes.

    Args:
        ledger: Which knows what was spent, earlier sessions included.
        seconds: To spend; None is no limit.
        cut_bytes: To spend; None is no limit.
    """

    def __init__(self, ledger: Ledger, seconds: float | None, cut_bytes: int | None) -> None:
        self._ledger, self._seconds, self._cut_bytes = ledger, seconds, cut_bytes

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Stop no single trial."""
        return False

    def stop_all(self) -> bool:
        """Whether either is used up."""
        if self._seconds is not None and self._ledger.elapsed() >= self._seconds:
            return True
        return self._cut_bytes is not None and self._ledger.cut_bytes >= self._cut_bytes


def _config_for_start(search: Search) -> Config:
    """Return the configuration with the largest object store, for a cluster of our own."""
    return max(
        (corner.config for corner in search.corners), key=lambda c: c.resources.object_store_mb
    )


def _restore_snapshot(folder: Path) -> bool:
    """Put Tune's files back as they last were whole; whether there were any."""
    saved = newest_snapshot(folder)
    if saved is None:
        return False
    for pattern in ("*.json", "*.pkl"):
        for path in folder.glob(pattern):
            path.unlink()
    for path in saved.iterdir():
        shutil.copy2(path, folder / path.name)
    return True


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """Turn an error of Tune's own loop into one that the command line prints as a line."""
    try:
        yield
    except TuneError as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise RuntimeError(f"the search failed: {lines[-1] if lines else error!r}") from error


@contextlib.contextmanager
def _without_credentials() -> Iterator[None]:
    """Keep Tune from sending this process's credentials of AWS along with trials.

    Ray writes what is sent so to its logs, and shows it on its dashboard; nodes have their own.
    """
    before = class_cache.ENV_VARS_TO_PROPAGATE
    class_cache.ENV_VARS_TO_PROPAGATE = {n for n in before if not n.startswith("AWS_")}
    try:
        yield
    finally:
        class_cache.ENV_VARS_TO_PROPAGATE = before


# -- silence ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Tune from writing to the terminal, and give back what it changes in this process."""
    settings = {
        # A killed search is to lose a second, not ten.
        "TUNE_GLOBAL_CHECKPOINT_S": "1",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "RAY_AIR_NEW_OUTPUT": "0",  # the old output obeys verbose=0
        "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    loggers = [logging.getLogger(name) for name in ("ray.tune", "ray.train", "ray.air", "optuna")]
    levels = [logger.level for logger in loggers]
    is_main = threading.current_thread() is threading.main_thread()
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGUSR1)} if is_main else {}
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
