"""The driver: check everything, get a cluster, start the coordinator, watch it to the end."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

from actors.cluster import Reservation, ray_cluster, reserve
from actors.coordinator import Coordinator, Stages
from actors.planning import (
    check_picklable,
    device_type_here,
    measured,
    plan_from_afar,
    plan_here,
    unwrapped,
)
from laminar.checkpoint import (
    check_fits,
    find_checkpoint,
    list_checkpoints,
    load_tensors,
    read_manifest,
)
from laminar.config import Config, ResourceConfig
from laminar.data import open_images, with_absolute_paths
from laminar.errors import CheckpointError, ConfigError, DivergenceError, UserError
from laminar.factories import Factories, LossFunction, MakeBlocks, MakeData
from laminar.mirror import Mirror
from laminar.plan import Plan
from laminar.planning import make_plan
from laminar.precision import check_compiler
from laminar.progress import Callback, DataProgress, EpochEnd, Event, Notice
from laminar.repartition import changes, is_same_run, repartition
from laminar.run_directory import RunDirectory
from laminar.trackers import check_trackers
from laminar.tracking import Tracking

_POLL_S = 0.25
_LOCKSTEP_POLL_S = 0.05  # the coordinator waits for it
_GOODBYE_S = 15.0


class RunStopped(Exception):  # noqa: N818 - not an error: somebody asked for it
    """The run was stopped from outside; what its last checkpoint holds is kept."""

    def __init__(self, run_path: str, last_checkpoint: str | None) -> None:
        super().__init__(run_path, last_checkpoint)
        self.run_path, self.last_checkpoint = run_path, last_checkpoint


class TrainingError(RuntimeError):
    """A stage failed while training, and `FailureConfig.max_failures` is used up."""


class LayerParallelTrainer:
    """Train a residual network layer-parallel, one Ray actor per stage.

    `blocks`, `datasets` and `loss` stand in for the configured network, data and loss; they are
    functions, are shipped to the stage actors, and must be given again to resume or evaluate.
    docs/bring_your_own.md has an example.

    Args:
        config: What to train and how.
        blocks: A network of your own: see `laminar.factories.Factories`.
        datasets: Data of your own: the same.
        loss: A loss of your own: the same.
        run_config: Ray Train's: `storage_path` and `name` of the run directory,
            `checkpoint_config.num_to_keep`, `failure_config.max_failures`.
        address: Of a running Ray cluster; None starts a small one on this machine, or uses the
            one that this process is already connected to.
        callback: Called with `laminar.progress` events a few times a second. Without one, notices
            go to the logger `laminar` as warnings.
        room: Bundles that are reserved already; None reserves some.
        is_lockstep: Begin an epoch only when `callback` has returned from the end of the one
            before.
    """

    def __init__(
        self,
        config: Config,
        *,
        blocks: MakeBlocks | None = None,
        datasets: Mapping[str, MakeData] | None = None,
        loss: LossFunction | None = None,
        run_config: ray.train.RunConfig | None = None,
        address: str | None = None,
        callback: Callback | None = None,
        room: Reservation | None = None,
        is_lockstep: bool = False,
    ) -> None:
        self._run_config = run_config or ray.train.RunConfig()
        self._factories = Factories(blocks, datasets, loss)
        self._config = self._factories.mark(config)
        self._address, self._callback = address, callback
        self._room, self._is_lockstep = room, is_lockstep
        storage = str(self._run_config.storage_path or "runs")
        if "://" in storage:
            raise ConfigError(
                "storage_path must be a folder that driver and stages share",
                got=storage,
                fix="mount the storage and give the path of the mount",
            )
        name = self._run_config.name or datetime.now().strftime("%Y%m%d-%H%M%S")
        self._run = RunDirectory(Path(storage).expanduser().resolve() / name)
        self._is_new = True

    @classmethod
    def resume(
        cls,
        run_path: str | Path,
        *,
        num_stages: int | None = None,
        cuts: tuple[int, ...] | None = None,
        resources: ResourceConfig | None = None,
        blocks: MakeBlocks | None = None,
        datasets: Mapping[str, MakeData] | None = None,
        loss: LossFunction | None = None,
        run_config: ray.train.RunConfig | None = None,
        address: str | None = None,
        callback: Callback | None = None,
        room: Reservation | None = None,
        is_lockstep: bool = False,
    ) -> LayerParallelTrainer:
        """Return a trainer that goes on from a run's newest checkpoint, in the same folder.

        Args:
            run_path: The run directory.
            num_stages: K from now on; None keeps it, or takes it from `cuts`.
            cuts: First block of stages 1..K-1 from now on; None chooses them if `num_stages` is
                given, and else keeps them.
            resources: What each stage may use from now on; None keeps it.
            others: As the constructor's.

        Raises:
            ConfigError: The folder is no run, or the network cannot be cut so.
            CheckpointError: It has no checkpoint to go on from.
            FactoryError: The run has blocks, datasets or a loss of its own, and they are not given.
        """
        run = RunDirectory(Path(run_path).expanduser().resolve())
        config, factories = run.open_config(), Factories(blocks, datasets, loss)
        factories.check(config)
        if num_stages is not None or cuts is not None:
            saved = read_manifest(find_checkpoint(run.path), factories).plan
            stages = num_stages if num_stages is not None else len(cuts or ()) + 1
            plan = make_plan(config, saved.problem, factories)
            config = repartition(plan, stages, cuts, saved.config.phases)
        if resources is not None:
            config = config.model_copy(update={"resources": resources})
        trainer = cls(
            config,
            blocks=blocks,
            datasets=datasets,
            loss=loss,
            run_config=run_config,
            address=address,
            callback=callback,
            room=room,
            is_lockstep=is_lockstep,
        )
        trainer._run, trainer._is_new = run, False
        return trainer

    def fit(self) -> ray.train.Result:
        """Train to the end of the plan.

        Returns:
            Ray Train's Result: metrics of the last epoch, its checkpoint, the run's path.

        Raises:
            UserError: Something given does not fit; before any actor starts where this machine
                can know it.
            RunStopped: KeyboardInterrupt arrived and the run ended cleanly.
            TrainingError: A stage failed.
        """
        plan = self._check()
        if self._is_finished(plan):
            metrics = self._run.read_metrics()[-1]
            self._tracked(plan).catch_up()
        else:
            metrics = self._train(plan)
        newest = find_checkpoint(self._run.path)
        return ray.train.Result(
            metrics=metrics,
            checkpoint=ray.train.Checkpoint.from_directory(str(newest)),
            error=None,
            path=str(self._run.path),
        )

    def _is_finished(self, plan: Plan) -> bool:
        """Whether a resumed run has nothing left to train, so that no Ray need start."""
        if self._is_new:
            return False
        newest = read_manifest(find_checkpoint(self._run.path), plan.factories)
        return newest.epoch >= plan.config.epochs

    def _train(self, plan: Plan) -> dict[str, Any]:
        with ray_cluster(self._address, plan.config), self._reserved(plan) as room:
            plan = measured(with_absolute_paths(self._config), plan, room)
            if self._is_new:
                self._run.create(plan.config)
            else:
                self._run.rewrite_config(plan.config)
            try:
                with self._tracked(plan) as self._tracking:
                    return self._fit_with_retries(plan, room)
            except UserError:
                if self._is_new:
                    self._run.discard()
                raise

    def _tracked(self, plan: Plan) -> Tracking:
        return Tracking(
            plan.config,
            self._run,
            num_epochs=self._num_saved_epochs(plan),
            is_new=self._is_new,
            warn=lambda sentence: self._tell(Notice(sentence)),
            stopped=(KeyboardInterrupt, RunStopped),
        )

    def _num_saved_epochs(self, plan: Plan) -> int:
        saved = list_checkpoints(self._run.checkpoints)
        return read_manifest(saved[-1], plan.factories).epoch if saved else 0

    def _reserved(self, plan: Plan) -> contextlib.AbstractContextManager[Reservation]:
        return reserve(plan.config) if self._room is None else contextlib.nullcontext(self._room)

    def _check(self) -> Plan:
        """Resolve the plan and find what is wrong with it, the data and the checkpoint."""
        config = with_absolute_paths(self._config)
        check_trackers(config.tracking)
        check_picklable(self._factories)
        if self._address is None:
            check_compiler(config.precision, device_type_here(config))
            plan, notices = plan_here(config, self._factories, self._is_new)
            for split in ("train", "test") if self._factories.datasets is None else ():
                open_images(config, split, self._tell_data)
        else:
            plan, notices = plan_from_afar(config, self._factories, self._address, self._is_new)
        if not self._is_new:
            newest = read_manifest(find_checkpoint(self._run.path), plan.factories)
            if not is_same_run(newest.plan, plan, newest.epoch):
                raise CheckpointError(
                    "a run must be resumed with the configuration of its checkpoint",
                    got=f"{self._run.config_file} differs from {newest.path.name}",
                    fix="restore config.yaml, or start a new run",
                )
            check_fits(load_tensors(newest), plan)
            notices = [*notices, *changes(newest.plan, plan)]
        else:
            self._run.check_is_free()
        for message in notices:
            self._tell(Notice(message))
        return plan

    def _fit_with_retries(self, plan: Plan, room: Reservation) -> dict[str, Any]:
        failures = self._run_config.failure_config
        failures_left = failures.max_failures if failures else 0
        while True:
            try:
                return self._fit_once(plan, room)
            except (UserError, RunStopped):
                raise
            except DivergenceError as error:  # it would diverge again
                raise TrainingError(f"training failed: {error}") from error
            except Exception as error:
                if failures_left == 0:
                    message = f"training failed: {_describe(error)}"
                    raise TrainingError(message) from error
                failures_left -= 1

    def _fit_once(self, plan: Plan, room: Reservation) -> dict[str, Any]:
        """Go on from the newest checkpoint, if any, with fresh actors."""
        saved = list_checkpoints(self._run.checkpoints)
        first_epoch = self._num_saved_epochs(plan)
        if plan.config.on_divergence == "correct":  # a life before this one may have gone back
            plan = make_plan(self._run.open_config(), plan.problem, plan.factories)
        self._run.truncate_metrics(first_epoch)
        checkpoints = self._run_config.checkpoint_config
        # Started here, not by the coordinator: each spends seconds importing torch, all at once.
        stages = Stages.start(plan, room)
        coordinator = Coordinator.options(  # type: ignore[attr-defined]
            scheduling_strategy=self._place_of_coordinator(room)
        ).remote(
            plan,
            str(self._run.path),
            stages.actors,
            num_to_keep=checkpoints.num_to_keep if checkpoints else None,
            checkpoint=str(saved[-1]) if saved else None,
            first_epoch=first_epoch,
            is_lockstep=self._is_lockstep,
        )
        try:
            with unwrapped():
                return self._watch(plan, coordinator, first_epoch)
        except KeyboardInterrupt:
            self._say_goodbye(coordinator)
            newest = list_checkpoints(self._run.checkpoints)
            raise RunStopped(str(self._run.path), newest[-1].name if newest else None) from None
        finally:
            for actor in (coordinator, *stages.actors):
                ray.kill(actor)

    def _place_of_coordinator(self, room: Reservation) -> Any:
        """With stage 0; beside the driver where the run directory is a folder of its machine."""
        if Mirror.of(self._run.path) is not None:
            node = ray.get_runtime_context().get_node_id()
            return NodeAffinitySchedulingStrategy(node, soft=False)
        return PlacementGroupSchedulingStrategy(
            room.group, placement_group_bundle_index=room.first_bundle
        )

    def _watch(self, plan: Plan, coordinator: Any, num_known: int) -> dict[str, Any]:
        infos = ray.get(coordinator.setup.remote())
        self._run.write_environment(infos)
        if num_known >= plan.config.epochs:
            return self._run.read_metrics()[-1]
        result = coordinator.run.remote()
        poll_s = _LOCKSTEP_POLL_S if self._is_lockstep else _POLL_S
        already_known = num_known
        while True:
            ready, _ = ray.wait([result], timeout=poll_s)
            progress, finished = ray.get(coordinator.status.remote(num_known - already_known))
            for metrics, scalars in finished:
                self._tracking.write(metrics["epoch"], scalars)
                if "diverged" in metrics:
                    self._tell(Notice(_went_back(metrics)))
                self._tell(EpochEnd(metrics))
                if self._is_lockstep:
                    coordinator.go_on.remote()
            num_known += len(finished)
            self._tell(progress)
            if ready:
                return dict(ray.get(result))

    def _tell_data(self, num_done: int, num_images: int) -> None:
        self._tell(DataProgress(num_done, num_images))

    def _tell(self, event: Event) -> None:
        if self._callback is not None:
            self._callback(event)
        elif isinstance(event, Notice):
            logging.getLogger("laminar").warning(event.message)

    def _say_goodbye(self, coordinator: Any) -> None:
        """Let the stages leave their work; whoever does not answer in time is killed with them."""
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(coordinator.stop.remote(), timeout=_GOODBYE_S)


def _went_back(metrics: Mapping[str, Any]) -> str:
    loss = metrics["diverged"]["loss"]
    what = "no number" if loss is None else f"{loss:.3g}"
    return (
        f"the parallel phase diverged in epoch {metrics['epoch']} (loss {what}); the run went back "
        "and trains in the correction phase from there on"
    )


def _describe(error: Exception) -> str:
    """Return the last line of an error's text, which is what went wrong."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"
