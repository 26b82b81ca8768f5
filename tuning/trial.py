"""A trial: one layer-parallel run for each seed, in lockstep, inside the trial's bundles.

A run lives in the search's own folder, `SEARCH/TRIAL/runs/seed_N`, an ordinary run directory. Each
epoch is reported to Tune with a copy of it as checkpoint. A trial that begins anew, after a
failure, a pause or a kill of the whole search, goes on from its own folder, and first reports again
what Tune had not yet taken note of; a clone by PBT takes over the copy of the other.
"""

from __future__ import annotations

import json
import logging
import math
import os
import queue
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import ray
import ray.train
from ray import tune

from actors import LayerParallelTrainer, RunStopped
from actors.cluster import Reservation
from laminar.checkpoint import list_checkpoints, publish, read_manifest
from laminar.config import Config
from laminar.config_file import dump_config
from laminar.data import describe, with_absolute_paths
from laminar.plan import Plan
from laminar.planning import make_plan
from laminar.progress import EpochEnd, Event
from laminar.run_directory import RunDirectory
from tuning.config import parse_search
from tuning.settings import METRICS
from tuning.space import Params

Tell = Callable[[dict[str, Any] | None], None]

_STATE = "trial.json"
_RECORDS = ("tracking.json", "wandb", "mlflow.db", "mlartifacts")
"""Of trackers: the first two of each run, the others of MLflow beside the runs."""
_GOODBYE_S = 30.0


@dataclass(frozen=True)
class State:
    """Whose runs a folder holds, and how far they have been reported."""

    trial_id: str
    epoch: int
    params: Params
    """Of the runs."""
    cloned_from: str | None = None
    """The trial that PBT last copied, if any."""

    @classmethod
    def read(cls, folder: Path) -> State | None:
        """Return what a folder says, None where it is none."""
        path = folder / _STATE
        return cls(**json.loads(path.read_text())) if path.is_file() else None

    def write(self, folder: Path) -> None:
        """Write it whole or not."""
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{_STATE}"
        temporary.write_text(json.dumps(asdict(self)))
        temporary.replace(folder / _STATE)


def run_trial(params: Params, tree: dict[str, Any], search_folder: str) -> None:
    """Train the runs of a trial; to be called by Tune in the trial's process.

    Args:
        params: Of this trial.
        tree: The search.
        search_folder: Where trials have their folders, on storage that all nodes share.

    Raises:
        UserError: The parameters do not go together.
        TrainingError: A stage failed.
    """
    # It says at every epoch where a checkpoint is, and that would fill the log of a job.
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    search = parse_search(tree)
    plans = [_plan(config) for config in search.configs(params)]
    trial_id = tune.get_context().get_trial_id()
    home = Path(search_folder) / trial_id / "runs"
    checkpoint = tune.get_checkpoint()
    saved = Path(checkpoint.path) if checkpoint else None
    state = prepare(home, plans, State(trial_id, 0, dict(params)), saved)
    group = ray.util.get_current_placement_group()
    assert group is not None, "Tune runs a trial in its placement group"
    lanes = Lanes(
        [
            _Run(run_folder(home, plan.config), plan.config, state.epoch, Reservation(group, first))
            for plan, first in zip(plans, _first_bundles(plans), strict=True)
        ]
    )
    with lanes:
        for epoch in lanes:
            reported = replace(state, epoch=epoch[0]["epoch"])
            reported.write(home)
            folders = [run_folder(home, plan.config) for plan in plans]
            metrics = summarise([_up_to(RunDirectory(f), reported.epoch) for f in folders])
            metrics |= {"num_epochs": plans[0].config.epochs, "cloned_from": state.cloned_from}
            metrics["params"] = dict(params)  # Tune's own are those of the next epoch, with PBT
            metrics["done"] = reported.epoch >= plans[0].config.epochs
            tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(str(home)))


def run_folder(home: Path, config: Config) -> Path:
    """Return the run directory of one seed."""
    return home / f"seed_{config.seed}"


def _plan(config: Config) -> Plan:
    config = with_absolute_paths(config)
    return make_plan(config, describe(config.data))


def _first_bundles(plans: Sequence[Plan]) -> list[int]:
    return [index * plan.config.num_stages for index, plan in enumerate(plans)]


def _up_to(run: RunDirectory, epoch: int) -> list[dict[str, Any]]:
    return [metrics for metrics in run.read_metrics() if metrics["epoch"] <= epoch]


def summarise(runs: Sequence[Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """Return what is reported of an epoch.

    Args:
        runs: For each seed the lines of `metrics.jsonl`, up to the epoch to report.

    Returns:
        Means over the seeds of all metrics that a search may be about, `seconds` (of training) and
        `cut_bytes` summed over the epochs; `epoch_cut_bytes`, of this epoch and all seeds; and,
        with several seeds, `by_seed`. A loss that is no number counts as infinite.
    """
    by_seed: dict[str, list[float]] = {name: [] for name in METRICS}
    for lines in runs:
        for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy"):
            value = float(lines[-1][name])
            by_seed[name].append(math.inf if math.isnan(value) else value)
        by_seed["seconds"].append(
            sum(line["seconds"]["parallel"] + line["seconds"]["correction"] for line in lines)
        )
        by_seed["cut_bytes"].append(sum(_cut_bytes(line) for line in lines))
    metrics: dict[str, Any] = {name: fmean(values) for name, values in by_seed.items()}
    metrics["epoch"] = runs[0][-1]["epoch"]
    metrics["epoch_cut_bytes"] = sum(_cut_bytes(lines[-1]) for lines in runs)
    return metrics if len(runs) == 1 else metrics | {"by_seed": by_seed}


def _cut_bytes(line: dict[str, Any]) -> int:
    return sum(int(cut["inline_bytes"]) + int(cut["store_bytes"]) for cut in line["cuts"])


# -- where a trial begins ------------------------------------------------------------------------


def prepare(home: Path, plans: Sequence[Plan], new: State, saved: Path | None) -> State:
    """Make the folder of a trial's runs what they shall go on from.

    Args:
        home: The folder; it may hold runs, of any of the trial's lives.
        plans: One for each seed.
        new: The trial and its parameters, nothing trained.
        saved: The checkpoint that Tune gives, a copy of such a folder; None at the start, or when
            the search was killed before Tune took note of one.

    Returns:
        Where Tune believes the trial to be; the runs in `home` may be ahead.
    """
    there = State.read(home)
    is_ours = there is not None and there.params == new.params
    state = new
    known = State.read(saved) if saved is not None else None
    if saved is not None and known is not None:
        is_clone = known.trial_id != new.trial_id
        origin = known.trial_id if is_clone else known.cloned_from
        state = replace(new, epoch=known.epoch, cloned_from=origin)
        if is_clone or not is_ours:
            _replace(home, saved, is_clone=is_clone)
            for plan in plans:
                adopt(RunDirectory(run_folder(home, plan.config)), plan)
    elif not is_ours:
        shutil.rmtree(home, ignore_errors=True)
    state.write(home)
    return state


def _replace(home: Path, saved: Path, *, is_clone: bool) -> None:
    """Put a copy in the place of the folder; a clone keeps what trackers know of its own runs."""
    fresh = home.with_name("runs.new")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(saved, fresh, ignore=shutil.ignore_patterns(*_RECORDS) if is_clone else None)
    if is_clone:  # before the folders change places, so that a kill never mixes two trials
        _copy_records(home, fresh)
    shutil.rmtree(home, ignore_errors=True)
    fresh.rename(home)


def _copy_records(home: Path, fresh: Path) -> None:
    for folder in (fresh, *(path for path in fresh.iterdir() if path.is_dir())):
        for name in _RECORDS:
            own = home / folder.relative_to(fresh) / name
            if own.is_dir():
                shutil.copytree(own, folder / name, symlinks=True)
            elif own.is_file():
                try:  # the same file: a process that has a database open refuses a copy of it
                    os.link(own, folder / name)
                except OSError:  # storage without links
                    shutil.copy2(own, folder / name)


def adopt(run: RunDirectory, plan: Plan) -> None:
    """Let a run go on with another configuration of the same network.

    Weights, averages and the optimiser's state stay, and what was found by timing; the checkpoints'
    manifests name the new configuration from then on.
    """
    changes = {"precision": run.open_config().precision}
    new = make_plan(plan.config.model_copy(update=changes), plan.problem)
    for folder in list_checkpoints(run.checkpoints):
        manifest = read_manifest(folder)
        publish(folder, epoch=manifest.epoch, plan=new, parts=manifest.parts, data=manifest.data)
    run.config_file.write_text(dump_config(new.config))


# -- runs side by side -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Run:
    folder: Path
    config: Config
    first_epoch: int
    """Epochs that need not be told again."""
    room: Reservation

    def __call__(self, tell: Tell) -> None:
        """Tell the epochs on disk, then train and tell the others."""
        run = RunDirectory(self.folder)
        saved = list_checkpoints(run.checkpoints)
        if not saved:
            shutil.rmtree(self.folder, ignore_errors=True)  # its first epoch was never finished
            self._trainer(LayerParallelTrainer, self.config, tell).fit()
            return
        for metrics in _up_to(run, read_manifest(saved[-1]).epoch):
            if metrics["epoch"] > self.first_epoch:
                tell(metrics)
        self._trainer(LayerParallelTrainer.resume, self.folder, tell).fit()

    def _trainer(
        self, make: Callable[..., LayerParallelTrainer], what: Any, tell: Tell
    ) -> LayerParallelTrainer:
        def callback(event: Event) -> None:
            tell(event.metrics if isinstance(event, EpochEnd) else None)

        run_config = ray.train.RunConfig(
            storage_path=str(self.folder.parent),
            name=self.folder.name,
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
        )
        return make(
            what, run_config=run_config, callback=callback, room=self.room, is_lockstep=True
        )


class Lanes:
    """Work on threads that goes on epoch by epoch, all together; iterate over the epochs.

    Args:
        runs: Each is called with a function to tell an epoch with, which returns when all have
            told theirs and the iteration has gone on. To be called with None now and then: once
            the work is over it raises `RunStopped`.
    """

    def __init__(self, runs: Sequence[Callable[[Tell], None]]) -> None:
        self._told: queue.SimpleQueue[tuple[int, dict[str, Any] | BaseException | None]] = (
            queue.SimpleQueue()
        )
        self._permits = [threading.Semaphore(0) for _ in runs]
        self._is_over = False
        self._threads = [
            threading.Thread(target=self._work, args=(index, run), daemon=True)
            for index, run in enumerate(runs)
        ]

    def __enter__(self) -> Lanes:
        """Start the work."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop what is not done, and wait for it."""
        self._is_over = True
        for permit in self._permits:
            permit.release()
        for thread in self._threads:
            thread.join(_GOODBYE_S)

    def __iter__(self) -> Lanes:
        """Return itself."""
        self._is_first = True
        return self

    def __next__(self) -> list[dict[str, Any]]:
        """Let all go on, and return what each tells next; raise the first error of one."""
        if not self._is_first:
            for permit in self._permits:
                permit.release()
        self._is_first = False
        found: dict[int, dict[str, Any] | None] = {}
        while len(found) < len(self._threads):
            index, what = self._told.get()
            if isinstance(what, BaseException):
                raise what
            found[index] = what
        epoch = [metrics for _, metrics in sorted(found.items()) if metrics is not None]
        if len(epoch) < len(found):
            raise StopIteration
        return epoch

    def _work(self, index: int, run: Callable[[Tell], None]) -> None:
        def tell(metrics: dict[str, Any] | None) -> None:
            if metrics is not None:
                self._told.put((index, metrics))
                self._permits[index].acquire()
            if self._is_over:
                raise RunStopped("", None)

        try:
            run(tell)
            self._told.put((index, None))
        except BaseException as error:
            self._told.put((index, error))
