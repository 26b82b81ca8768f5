"""The coordinator actor: walks the plan, all stages at once, and answers while they work."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.cluster import Reservation
from actors.epoch_record import epoch_metrics, ledger_entry, phase_record
from actors.mailbox import Aborted
from actors.reports import StageProgress, StageReport
from actors.stage_actor import StageActor
from laminar.checkpoint import Manifest, list_checkpoints, prune, publish, read_manifest
from laminar.divergence import Divergence, find_divergence
from laminar.errors import DivergenceError
from laminar.event_log import EventLog, epoch_scalars
from laminar.exactness import Exactness, is_in_ledger
from laminar.plan import Plan, Segment
from laminar.progress import PhaseName, Progress
from laminar.run_directory import RunDirectory


class Stages:
    """The K stage actors as one: every call goes to all of them, at once.

    Args:
        actors: Handles of `StageActor`, in the order of the stages.
    """

    def __init__(self, actors: Sequence[Any]) -> None:
        self.actors = list(actors)
        self._phase = 0
        self._stopped = threading.Event()

    @classmethod
    def start(cls, plan: Plan, room: Reservation) -> Stages:
        """Start one actor in each bundle."""
        resources = plan.config.resources
        return cls(
            [
                StageActor.options(  # type: ignore[attr-defined]
                    num_cpus=resources.cpus_per_stage,
                    num_gpus=resources.gpus_per_stage,
                    scheduling_strategy=PlacementGroupSchedulingStrategy(
                        room.group, placement_group_bundle_index=room.first_bundle + index
                    ),
                ).remote()
                for index in range(plan.config.num_stages)
            ]
        )

    def setup(self, plan: Plan, *, is_new: bool = True) -> list[dict[str, Any]]:
        """Build the stages of a plan, or build them anew, and introduce neighbours.

        Args:
            plan: The resolved run.
            is_new: Whether no checkpoint will be loaded.
        """
        ends = [None, *self.actors, None]
        threads = plan.config.resources.threads_per_stage
        infos: list[dict[str, Any]] = self.gather(
            [a.setup.remote(plan, k, threads, is_new) for k, a in enumerate(self.actors)]
        )
        self.gather([a.connect.remote(ends[k], ends[k + 2]) for k, a in enumerate(self.actors)])
        return infos

    def load(self, manifest: Manifest) -> None:
        """Take over a checkpoint, whose manifest may be on this machine alone."""
        found = str(manifest.path), manifest.parts
        self.gather([actor.load.remote(*found) for actor in self.actors])

    def train(
        self, segment: Segment, *, is_measured: bool = False, is_kept: bool = False
    ) -> list[StageReport]:
        """Run one segment on all stages, tracing and probing a few of its batches if asked to."""
        self._phase += 1
        return self.gather(
            [
                actor.train.remote(segment, self._phase, is_measured, is_kept)
                for actor in self.actors
            ]
        )

    def measure_exactness(self, segment: Segment) -> list[Exactness]:
        """Compare the gradients that a batch of a measured segment was given with exact ones."""
        self._phase += 1
        reports: list[StageReport] = self.gather(
            [actor.measure_exactness.remote(segment, self._phase) for actor in self.actors]
        )
        return [report.exactness for report in reports if report.exactness is not None]

    def evaluate(self) -> list[StageReport]:
        """Run the test set through all stages."""
        self._phase += 1
        return self.gather([actor.evaluate.remote(self._phase) for actor in self.actors])

    def save(self, folder: str) -> list[Any]:
        """Write all parts of a checkpoint."""
        return self.gather([actor.save.remote(folder) for actor in self.actors])

    def progress(self) -> StageProgress | None:
        """Ask the last stage, which sees a batch's loss and has the fewest late backwards.

        None if it is too busy to say: a stage that is lost is found by who waits for its phase.
        """
        try:
            answer: StageProgress = ray.get(self.actors[-1].progress.remote(), timeout=10)
        except ray.exceptions.GetTimeoutError:
            return None
        return answer

    def stop(self) -> None:
        """Abort what is under way; the call that waits for it raises `Aborted`."""
        self._stopped.set()
        self._abort()

    def gather(self, refs: Sequence[Any]) -> list[Any]:
        """Return all results; when one stage fails, stop the others and raise its error.

        Of several errors the first that is not the echo of another stage's failure counts.
        """
        pending = list(refs)
        while pending:
            _, pending = ray.wait(pending, num_returns=len(pending), timeout=0.1)
            done = [ref for ref in refs if ref not in pending]
            errors = [error for ref in done if (error := _error_of(ref)) is not None]
            if errors:
                self._abort()
                ray.wait(pending, num_returns=len(pending), timeout=30) if pending else None
                errors += [error for ref in refs if (error := _error_of(ref)) is not None]
                raise next((e for e in errors if not isinstance(e, Aborted)), errors[0])
            if self._stopped.is_set():
                self._abort()
        if self._stopped.is_set():
            raise Aborted("the run was stopped")
        return ray.get(list(refs))

    def _abort(self) -> None:
        for actor in self.actors:
            actor.abort.remote()


def _longest_of_each_phase(segments: Sequence[Segment]) -> list[Segment]:
    """Return the segments of an epoch to trace and probe."""
    longest: dict[str, Segment] = {}
    for segment in sorted(segments, key=lambda s: s.num_batches):
        longest[segment.phase] = segment
    return list(longest.values())


def _error_of(ref: Any) -> BaseException | None:
    ready, _ = ray.wait([ref], timeout=0)
    if not ready:
        return None
    try:
        ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        return error.cause if isinstance(error.cause, BaseException) else error
    except ray.exceptions.RayError as error:
        return error
    return None


@ray.remote(num_cpus=0, concurrency_groups={"control": 2})  # type: ignore[call-overload]
class Coordinator:
    """Runs a plan from its first unfinished epoch to its end.

    Args:
        plan: The resolved run.
        run_path: The run directory, shared with the driver; with the stages, too, or mirrored.
        stages: Handles of the K stage actors.
        num_to_keep: Checkpoints to keep; None keeps all.
        checkpoint: Folder to resume from, None to start.
        first_epoch: Epochs already finished.
        is_lockstep: Begin an epoch only after `go_on` has been called for the one before.
    """

    def __init__(
        self,
        plan: Plan,
        run_path: str,
        stages: Sequence[Any],
        *,
        num_to_keep: int | None,
        checkpoint: str | None,
        first_epoch: int,
        is_lockstep: bool = False,
    ) -> None:
        self._plan, self._run = plan, RunDirectory(Path(run_path))
        self._num_to_keep, self._checkpoint = num_to_keep, checkpoint
        self._epoch = first_epoch
        self._phase_name: PhaseName = "starting"
        self._batches_before_phase = first_epoch * plan.batches_per_epoch
        self._loss: float | None = None
        self._accuracy: float | None = None
        self._finished: list[tuple[dict[str, Any], dict[str, float]]] = []
        self._trained: list[tuple[float, int]] = []
        self._stages = Stages(stages)
        self._is_lockstep, self._permits = is_lockstep, threading.Semaphore(0)

    def setup(self) -> list[dict[str, Any]]:
        """Build the stages and load the checkpoint, if any; return what the stages say."""
        self._events = EventLog(self._run.events, self._epoch)
        self._infos = self._stages.setup(self._plan, is_new=self._checkpoint is None)
        if self._checkpoint is not None:
            self._stages.load(read_manifest(Path(self._checkpoint), plan=self._plan))
        return self._infos

    def run(self) -> dict[str, Any]:
        """Train, evaluate and checkpoint epoch by epoch; return the last epoch's metrics."""
        metrics: dict[str, Any] = {}
        for epoch in range(self._epoch, self._plan.config.epochs):
            self._epoch = epoch
            metrics, timeline = self._run_watched(epoch)
            scalars = self._save(epoch + 1, metrics, timeline)
            self._finished.append((metrics, scalars))
            if self._is_lockstep and epoch + 1 < self._plan.config.epochs:
                self._permits.acquire()
        return metrics

    def _run_watched(self, epoch: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Run an epoch; if it diverged, stop, or go back and train exactly from here on.

        Raises:
            DivergenceError: It diverged, and the configuration says to stop or there is nothing
                left to correct.
        """
        metrics, timeline = self._run_epoch(epoch)
        found = self._find_divergence(metrics)
        if found is None:
            return metrics, timeline
        corrected = self._plan.corrected_from(epoch)
        if self._plan.config.on_divergence == "stop" or corrected == self._plan:
            raise DivergenceError(found.describe(epoch + 1))
        self._plan = corrected
        saved = list_checkpoints(self._run.checkpoints)
        if saved:
            self._stages.load(read_manifest(saved[-1], plan=self._plan))
        else:
            self._stages.setup(self._plan)
        metrics, timeline = self._run_epoch(epoch)
        again = self._find_divergence(metrics)
        if again is not None:
            raise DivergenceError(again.describe(epoch + 1))
        self._run.rewrite_config(self._plan.config)
        metrics["diverged"] = found.record()
        return metrics, timeline

    def _find_divergence(self, metrics: dict[str, Any]) -> Divergence | None:
        is_own = self._plan.factories.loss is not None
        num_classes = None if is_own else self._plan.problem.num_classes
        before, batch_size = self._run.read_metrics(), self._plan.config.batch_size
        return find_divergence(metrics, before, num_classes, batch_size)

    def _run_epoch(self, epoch: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the epoch's lines of metrics.jsonl and timeline.jsonl."""
        plan = self._plan
        segments = [s for s in plan.segments if s.epoch == epoch]
        measured = _longest_of_each_phase(segments)
        seconds = dict.fromkeys(("parallel", "correction", "ledger", "evaluation"), 0.0)
        entry: dict[str, Any] | None = None
        reports: list[tuple[Segment, list[StageReport]]] = []
        phases: list[dict[str, Any]] = []

        def record(phase: PhaseName, num_batches: int, of_stages: list[StageReport]) -> None:
            took = time.monotonic() - started
            seconds[phase] += took
            boundaries = plan.bounds[1:-1]
            phases.append(phase_record(phase, num_batches, took, of_stages, boundaries))

        self._loss = self._accuracy = None
        for segment in segments:
            self._enter(segment.phase, epoch * plan.batches_per_epoch + segment.first_batch)
            started = time.monotonic()
            is_measured = segment in measured
            is_kept = is_measured and is_in_ledger(segment, plan.config.ledger)
            trained = self._stages.train(segment, is_measured=is_measured, is_kept=is_kept)
            record(segment.phase, segment.num_batches, trained)
            reports.append((segment, trained))
            if is_kept and all(report.has_kept for report in trained):
                self._enter("ledger", self._batches_before_phase + segment.num_batches)
                started = time.monotonic()
                exactness = self._stages.measure_exactness(segment)
                seconds["ledger"] = time.monotonic() - started
                entry = ledger_entry(plan, segment, exactness, trained)
        self._enter("evaluation", (epoch + 1) * plan.batches_per_epoch)
        started = time.monotonic()
        evaluated = self._stages.evaluate()
        record("evaluation", plan.num_test_batches, evaluated)
        test = evaluated[-1].tally
        self._confusion = test.confusion_matrix()
        metrics = epoch_metrics(plan, epoch, reports, test, seconds, self._run.read_metrics())
        metrics["ledger"] = entry
        return metrics, {"epoch": epoch + 1, "phases": phases}

    def _save(
        self, epoch: int, metrics: dict[str, Any], timeline: dict[str, Any]
    ) -> dict[str, float]:
        """Write metrics first, then the checkpoint: a resumed run cuts the metrics to fit.

        Returns:
            The epoch's figures by the names under which trackers show them.
        """
        self._enter("checkpoint", epoch * self._plan.batches_per_epoch)
        started = time.monotonic()
        folder = self._run.checkpoints / f"epoch_{epoch:04d}"
        parts = self._stages.save(str(folder))
        metrics["seconds"]["checkpoint"] = time.monotonic() - started
        self._run.write_confusion(epoch, self._plan.problem.names, self._confusion)
        self._run.append_metrics(metrics)
        self._run.append_timeline(timeline)
        scalars = epoch_scalars(metrics, timeline)
        self._events.write(epoch, scalars)
        data = {"mean": self._infos[0]["mean"], "std": self._infos[0]["std"]}
        publish(folder, epoch=epoch, plan=self._plan, parts=parts, data=data)
        prune(self._run.checkpoints, self._num_to_keep)
        return scalars

    def _enter(self, phase: PhaseName, batches_before: int) -> None:
        self._phase_name, self._batches_before_phase = phase, batches_before

    # -- answered while `run` is under way ---------------------------------------------------

    @ray.method(concurrency_group="control")
    def stop(self) -> None:
        """Leave the epoch under way; what the last checkpoint holds is kept."""
        self._stages.stop()
        self._permits.release()

    @ray.method(concurrency_group="control")
    def go_on(self) -> None:
        """Let one more epoch begin, in lockstep."""
        self._permits.release()

    @ray.method(concurrency_group="control")
    def status(
        self, num_known: int
    ) -> tuple[Progress, list[tuple[dict[str, Any], dict[str, float]]]]:
        """Return where the run stands, and metrics and scalars of epochs after `num_known`."""
        is_training = self._phase_name in ("correction", "parallel")
        done = self._batches_before_phase
        stage = self._stages.progress() if is_training else None
        if is_training and stage is None and self._trained:
            done = max(done, self._trained[-1][1])
        if stage is not None:
            done += stage.num_batches
            if stage.tally.num_samples:
                self._loss = stage.tally.loss_sum / stage.tally.num_samples
                self._accuracy = stage.tally.num_correct / stage.tally.num_samples
        self._trained = [*self._trained[-40:], (time.monotonic(), done)]
        speed, eta = self._speed()
        progress = Progress(
            epoch=self._epoch + 1,
            num_epochs=self._plan.config.epochs,
            phase=self._phase_name,
            num_batches_done=done,
            num_batches=self._plan.num_batches,
            samples_per_s=speed,
            eta_s=eta,
            loss=self._loss,
            accuracy=self._accuracy,
        )
        return progress, self._finished[num_known:]

    def _speed(self) -> tuple[float | None, float | None]:
        (t0, first), (t1, last) = self._trained[0], self._trained[-1]
        if last <= first or t1 <= t0:
            return None, None
        per_s = (last - first) / (t1 - t0)
        return per_s * self._plan.config.batch_size, (self._plan.num_batches - last) / per_s
