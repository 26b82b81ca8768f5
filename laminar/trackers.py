"""MLflow and Weights & Biases, each behind the same few methods.

`laminar/tracking.py` says when what is told.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, Protocol

from laminar import __version__
from laminar.config import Config, TrackingConfig
from laminar.errors import ConfigError
from laminar.run_directory import RunDirectory

Outcome = Literal["finished", "stopped", "failed"]

_MOST_PARAMS = 100  # of one request, a rule of MLflow's
_MOST_CHARACTERS = 500  # of a parameter, the least that its stores allow
_STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "WANDB_ERROR_REPORTING": "false",
}
"""Neither package may call home from a training run, nor a server hold up its driver for long."""


class Tracker(Protocol):
    """One tracker of one run."""

    key: ClassVar[str]
    """Its key in `tracking`, and the name of the extra that installs it."""
    packages: ClassVar[tuple[str, ...]]
    is_durable: ClassVar[bool]
    """Whether what `write` was given is safe when it returns, or only after `close`."""

    def open(self, run_id: str | None) -> str:
        """Go on with a run, or begin one; return its identifier, another one if it is new."""

    def write(self, epoch: int, scalars: Mapping[str, float]) -> None:
        """Add one epoch, from 1."""

    def close(self, outcome: Outcome) -> None:
        """Say what became of the run."""


class MlflowTracker:
    """A run of MLflow, in the store of MLFLOW_TRACKING_URI or `mlflow.db` beside the run."""

    key: ClassVar[str] = "mlflow"
    packages: ClassVar[tuple[str, ...]] = ("mlflow", "sqlalchemy", "alembic")
    is_durable: ClassVar[bool] = True

    def __init__(self, config: Config, run: RunDirectory) -> None:
        self._config, self._run = config, run

    def open(self, run_id: str | None) -> str:
        """Connect; a run that the store does not know is begun anew."""
        from filelock import FileLock
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic"):  # which tell how they make their tables
            logging.getLogger(name).setLevel(logging.WARNING)
        folder = self._run.path.parent
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if uri:
            self._client = MlflowClient(tracking_uri=uri)
            self._run_id = self._begin(run_id, None)
        else:
            # Two drivers at once would each make its tables.
            with FileLock(folder / ".mlflow.db.lock"):
                self._client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
                self._run_id = self._begin(run_id, (folder / "mlartifacts").as_uri())
        return self._run_id

    def _begin(self, run_id: str | None, artifacts: str | None) -> str:
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        client, settings = self._client, self._config.tracking.mlflow
        assert settings is not None
        if run_id is not None:
            try:
                client.update_run(run_id, status="RUNNING")
                return run_id
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        tags = {"laminar.run": str(self._run.path), "laminar.version": __version__}
        found = client.create_run(
            self._experiment(settings.experiment, artifacts),
            run_name=run_name(self._config.tracking, self._run),
            tags=tags,
        )
        begun: str = found.info.run_id
        params = [Param(k, v[:_MOST_CHARACTERS]) for k, v in flat(self._config)]
        for first in range(0, len(params), _MOST_PARAMS):
            client.log_batch(begun, params=params[first : first + _MOST_PARAMS])
        return begun

    def _experiment(self, name: str, artifacts: str | None) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name, artifact_location=artifacts))
            except MlflowException:  # somebody else has just made it
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)

    def write(self, epoch: int, scalars: Mapping[str, float]) -> None:
        """Add one epoch as MLflow's step of that number."""
        from mlflow.entities import Metric

        at = int(time.time() * 1000)
        metrics = [Metric(name, float(value), at, epoch) for name, value in scalars.items()]
        for first in range(0, len(metrics), 1000):  # the most that MLflow takes at once
            self._client.log_batch(self._run_id, metrics=metrics[first : first + 1000])

    def close(self, outcome: Outcome) -> None:
        """Set the run's status."""
        self._client.set_terminated(self._run_id, _STATUS[outcome])


class WandbTracker:
    """A run of Weights & Biases that is only written to the run directory, `wandb/`."""

    key: ClassVar[str] = "wandb"
    packages: ClassVar[tuple[str, ...]] = ("wandb",)
    is_durable: ClassVar[bool] = False  # it writes 32 KiB at a time

    def __init__(self, config: Config, run: RunDirectory) -> None:
        self._config, self._run = config, run

    def open(self, run_id: str | None) -> str:
        """Begin a file; those of one run have its identifier in common, and are one when synced."""
        import wandb

        settings = self._config.tracking.wandb
        assert settings is not None
        run_id = run_id or uuid.uuid4().hex[:12]
        self._wandb = wandb.init(
            mode="offline",
            dir=str(self._run.path),
            project=settings.project,
            name=run_name(self._config.tracking, self._run),
            id=run_id,
            config=self._config.model_dump(mode="json"),
            reinit="create_new",  # a user's own run in this process stays what it is
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                x_disable_stats=True,  # of the driver's machine, where nothing is computed
            ),
        )
        return run_id

    def write(self, epoch: int, scalars: Mapping[str, float]) -> None:
        """Add one epoch as the step of that number."""
        self._wandb.log({**scalars, "epoch": epoch}, step=epoch)

    def close(self, outcome: Outcome) -> None:
        """End the file."""
        self._wandb.finish(exit_code=0 if outcome == "finished" else 1)


TRACKERS: tuple[type[MlflowTracker] | type[WandbTracker], ...] = (MlflowTracker, WandbTracker)


def check_trackers(config: TrackingConfig) -> None:
    """Raise ConfigError if a package is missing that the configuration asks for."""
    for tracker in TRACKERS:
        if getattr(config, tracker.key) is None:
            continue
        missing = [name for name in tracker.packages if importlib.util.find_spec(name) is None]
        if missing:
            raise ConfigError(
                f"tracking.{tracker.key} needs the extra {tracker.key}",
                got=f"no package {', '.join(missing)}",
                fix=f"pip install 'laminar-train[{tracker.key}]', or set tracking.{tracker.key} "
                "to null",
            )


def run_name(config: TrackingConfig, run: RunDirectory) -> str:
    """Return the run's name among others; a job's folder is the one that its `run` is in."""
    folder = run.path if run.path.name != "run" else run.path.parent
    return config.name or folder.name


def flat(config: Config) -> Iterator[tuple[str, str]]:
    """Yield each setting as `optimizer.lr` and its value; lists as JSON."""
    pending: list[tuple[str, Any]] = [("", config.model_dump(mode="json", exclude={"tracking"}))]
    while pending:
        name, value = pending.pop(0)
        if isinstance(value, dict) and value:
            pending += [(f"{name}.{key}".lstrip("."), below) for key, below in value.items()]
        else:
            yield name, value if isinstance(value, str) else json.dumps(value)
