"""When MLflow and Weights & Biases are told what TensorBoard's events hold, epoch by epoch.

The driver writes, not the coordinator: it has the user's environment with its tokens, which so
never cross Ray, and a server that does not answer holds up nobody who trains.
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from laminar.config import Config
from laminar.errors import ConfigError
from laminar.event_log import epoch_scalars
from laminar.run_directory import RunDirectory
from laminar.trackers import ENVIRONMENT, TRACKERS, Outcome, Tracker

_MOST_CHARACTERS = 300


class Told(BaseModel):
    """What is kept of a tracker between two starts of a run."""

    model_config = ConfigDict(extra="forbid")

    run_id: str | None = None
    num_epochs: int = Field(0, ge=0)


class Tracking:
    """All trackers of a run while it trains; a context, within which `write` is called.

    A run that is resumed goes on in the trackers' runs, and tells them first what they missed. One
    that fails does not end the run: it is told later.

    Args:
        config: Of the run.
        run: Where it is; the folder must exist.
        num_epochs: Epochs that the run keeps.
        is_new: Refuse a tracker that cannot be opened, rather than try again after each epoch.
        warn: Called with a sentence when one fails.
        stopped: Exceptions that mean that somebody has stopped the run.
    """

    def __init__(
        self,
        config: Config,
        run: RunDirectory,
        *,
        num_epochs: int,
        is_new: bool,
        warn: Callable[[str], None],
        stopped: tuple[type[BaseException], ...] = (KeyboardInterrupt,),
    ) -> None:
        self._run, self._is_new, self._warn, self._stopped = run, is_new, warn, stopped
        self._trackers: list[Tracker] = [
            tracker(config, run)
            for tracker in TRACKERS
            if getattr(config.tracking, tracker.key) is not None
        ]
        self._open: set[str] = set()
        self._failing: set[str] = set()
        self._told = _read_told(run) if self._trackers else {}
        for tracker in self._trackers:
            told = self._told.setdefault(tracker.key, Told())
            told.num_epochs = min(told.num_epochs, num_epochs)
        self._safe = {key: one.num_epochs for key, one in self._told.items()}
        self._num_epochs = num_epochs

    def __enter__(self) -> Tracking:
        """Open all trackers.

        Raises:
            ConfigError: One cannot be opened, and the run is new.
        """
        for name, value in ENVIRONMENT.items() if self._trackers else ():
            os.environ.setdefault(name, value)
        try:
            for tracker in self._trackers:
                self._attempt(tracker, self._num_epochs, {})
        except BaseException:
            self._close("failed")
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Tell all what became of the run."""
        if kind is None:
            self._close("finished")
        else:
            self._close("stopped" if issubclass(kind, self._stopped) else "failed")

    def catch_up(self) -> None:
        """Tell of a run that has ended what was not told before."""
        if any(self._told[t.key].num_epochs < self._num_epochs for t in self._trackers):
            with self:
                pass

    def write(self, epoch: int, scalars: Mapping[str, float]) -> None:
        """Tell all of one epoch, from 1."""
        for tracker in self._trackers:
            self._attempt(tracker, epoch, {epoch: scalars})

    def _attempt(
        self, tracker: Tracker, num_epochs: int, known: Mapping[int, Mapping[str, float]]
    ) -> None:
        """Tell one of the first epochs what it does not know yet; warn once if it fails."""
        key, told = tracker.key, self._told[tracker.key]
        try:
            with _their_warnings():
                if key not in self._open:
                    self._begin(tracker, told)
                missing = range(told.num_epochs + 1, num_epochs + 1)
                known = known if set(missing) <= known.keys() else self._read()
                for epoch in missing:
                    if epoch in known:
                        tracker.write(epoch, known[epoch])
                    told.num_epochs = epoch
            if missing and tracker.is_durable:
                self._safe[key] = told.num_epochs
                self._remember()
            self._failing.discard(key)
        except Exception as error:  # whatever a tracker may raise, training is worth more
            self._refuse_or_warn(key, error)

    def _begin(self, tracker: Tracker, told: Told) -> None:
        run_id = tracker.open(told.run_id)
        self._open.add(tracker.key)
        if run_id != told.run_id:
            told.run_id, told.num_epochs = run_id, 0
            self._safe[tracker.key] = 0
            self._remember()

    def _refuse_or_warn(self, key: str, error: Exception) -> None:
        text = described(error)
        if self._is_new and key not in self._open:
            raise ConfigError(
                f"tracking.{key} must lead to a place that can be written to",
                got=text,
                fix=f"mend it, or set tracking.{key} to null",
            ) from error
        if key not in self._failing:
            self._failing.add(key)
            self._warn(f"{key} takes no figures, and will be told later: {text}")

    def _read(self) -> dict[int, dict[str, float]]:
        timelines = {line["epoch"]: line for line in self._run.read_timeline()}
        return {
            line["epoch"]: epoch_scalars(line, timelines.get(line["epoch"], {"phases": []}))
            for line in self._run.read_metrics()
        }

    def _remember(self) -> None:
        told = {
            key: {"run_id": one.run_id, "num_epochs": self._safe[key]}
            for key, one in self._told.items()
        }
        self._run.write_tracking(json.dumps(told) + "\n")

    def _close(self, outcome: Outcome) -> None:
        for tracker in self._trackers:
            if tracker.key in self._open:
                try:
                    with _their_warnings():
                        tracker.close(outcome)
                    self._safe[tracker.key] = self._told[tracker.key].num_epochs
                    self._remember()
                except Exception as error:
                    text = described(error)
                    self._warn(f"{tracker.key} does not know that the run has {outcome}: {text}")
        self._open.clear()


@contextlib.contextmanager
def _their_warnings() -> Iterator[None]:
    """Keep from a user of Laminar what the packages have to say to each other."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _read_told(run: RunDirectory) -> dict[str, Told]:
    try:
        return TypeAdapter(dict[str, Told]).validate_json(run.read_tracking())
    except ValidationError as error:
        raise ConfigError(
            f"{run.tracking_file.name} must be as it was written",
            got=f"{run.tracking_file}: {error.errors()[0]['msg']}",
            fix="remove it; trackers then begin new runs",
        ) from error


def described(error: Exception) -> str:
    """Return an error's first line, without what a store's address may hold of passwords."""
    lines = str(error).splitlines()
    text = f"{type(error).__name__}: {lines[0] if lines else ''}"
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        text = text.replace(uri, "the store of MLFLOW_TRACKING_URI")
    return text[:_MOST_CHARACTERS]  # cut last: half of an address is not found
