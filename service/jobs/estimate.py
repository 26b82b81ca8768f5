"""Whether a job can run, and what it will roughly take; worked out in a process of its own.

There torch's memory, and whatever somebody's configuration makes of it, is not the service's.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import CancelledError, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any, TypeVar, cast

from laminar.config import Config
from laminar.errors import ConfigError
from service.jobs.models import Estimate, Needs
from service.jobs.search_models import SearchFile
from service.jobs.searches import estimate_search

if TYPE_CHECKING:
    from laminar.plan import Plan

Value = TypeVar("Value")

_MEMORY_LIMIT_BYTES = 16 * 10**9
_IMPORT_S = 600.0
_TIMEOUT_S = 60.0
_WAIT_S = 30.0
"""For a turn. Clients wait 90 s for an answer: this and the work itself."""
_CACHE_SIZE = 256

PROCESS_BYTES = 700 * 10**6
DRIVER_BYTES = 800 * 10**6
"""Measured (docs/log.md): a stage before it has a network, and driver with coordinator."""

COST_PER_S = 2.7e10
"""What one CPU thread does of `laminar.cuts.block_costs` in a second of training: ResNet-20, whose
blocks cost 97.1e6 for an image of 32x32, trains at 279 images a second (README.md)."""
START_S = 10.0
"""From admission to the first step, and from the last to the end."""


class PlannerBusy(Exception):  # noqa: N818 - what it says
    """Nothing was found out about the job, by no fault of its own; to be asked again."""


class Planner:
    """Plans jobs, one after the other, in a process that is started when first needed."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        """Held by whose job is planned, so that nobody's time runs while another's job is."""
        self._lock = threading.Lock()
        self._pool: ProcessPoolExecutor | None = None
        self._is_closed = False
        self._known: OrderedDict[str, Any] = OrderedDict()

    def plan(self, config: Config) -> Estimate:
        """Return what a job will take.

        Raises:
            UserError: It cannot run.
            PlannerBusy: Others' jobs took too long, or the service is closing.
        """
        # No seed changes whether a job can run, or what it takes; many jobs differ in it alone.
        return self._find(estimate, config.model_copy(update={"seed": 0}).model_dump_json())

    def plan_search(self, tree: SearchFile) -> tuple[Needs, Estimate]:
        """Return what a search needs, and what it will take.

        Raises:
            UserError: It cannot run.
            PlannerBusy: Others' jobs took too long, or the service is closing.
        """
        return self._find(estimate_search, json.dumps(tree))

    def _find(self, work: Callable[[str], Value], about: str) -> Value:
        """Return what is known of something already, or work it out when it is its turn."""
        key = f"{work.__name__} {about}"
        if (known := self._recall(key)) is not None:
            return cast(Value, known)
        if not self._turn.acquire(timeout=_WAIT_S):
            raise PlannerBusy(f"other jobs are being planned, for {_WAIT_S:g} s already")
        try:
            found = self._recall(key)  # it may have been the same one
            if found is None:
                found = self._insist(work, about)
                self._remember(key, found)
            return cast(Value, found)
        finally:
            self._turn.release()

    def _recall(self, key: str) -> Any:
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
            return self._known.get(key)

    def _remember(self, key: str, found: Any) -> None:
        with self._lock:
            self._known[key] = found
            while len(self._known) > _CACHE_SIZE:
                self._known.popitem(last=False)

    def _insist(self, work: Callable[[str], Value], about: str) -> Value:
        """Work something out, once more where the process was killed."""
        try:
            return self._work_out(work, about)
        except BrokenProcessPool:
            # Another program may have used up the memory; a second time it is this job.
            try:
                return self._work_out(work, about)
            except BrokenProcessPool as error:
                raise _too_large("its planning was killed") from error

    def _work_out(self, work: Callable[[str], Value], about: str) -> Value:
        pool = self._started()
        try:
            return pool.submit(work, about).result(_TIMEOUT_S)
        except (CancelledError, RuntimeError) as error:
            if self._is_closed:  # which ends the pool under who waits for it
                raise PlannerBusy("the service is closing") from error
            if isinstance(error, BrokenProcessPool):
                self._end(pool)
            raise
        except (TimeoutError, MemoryError) as error:
            self._end(pool)
            raise _too_large(f"{type(error).__name__} after {_TIMEOUT_S:g} s") from error

    def _started(self) -> ProcessPoolExecutor:
        """Return the process when it is there: imports take their time, on a busy machine."""
        failure: Exception | None = None
        for _ in range(2):  # the first may have been killed while it had nothing to do
            pool = self._made()
            try:
                pool.submit(_nothing).result(_IMPORT_S)
            except (TimeoutError, CancelledError, RuntimeError) as error:
                self._end(pool)
                failure = error
            else:
                return pool
        raise PlannerBusy("the process that plans does not start") from failure

    def _made(self) -> ProcessPoolExecutor:
        with self._lock:
            if self._is_closed:
                raise PlannerBusy("the service is closing")
            if self._pool is None:
                self._pool = ProcessPoolExecutor(
                    1, mp_context=multiprocessing.get_context("spawn"), initializer=_begin
                )
            return self._pool

    def warm_up(self) -> None:
        """Let the process import torch before somebody waits for it."""
        self.plan(Config())

    def close(self) -> None:
        """End the process; who waits for it is told to ask again."""
        with self._lock:
            self._is_closed = True
            pool = self._pool
        if pool is not None:
            self._end(pool)

    def _end(self, pool: ProcessPoolExecutor) -> None:
        with self._lock:
            if self._pool is pool:
                self._pool = None
        processes = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.kill()
            process.join()


def _too_large(got: str) -> ConfigError:
    return ConfigError(
        "a job must be small enough to be planned",
        got=got,
        expected=f"{_TIMEOUT_S:g} s and {_MEMORY_LIMIT_BYTES // 10**9} GB at most",
        fix="choose a smaller network, image or batch_size",
    )


def _nothing() -> None:
    """Come back once the process is there."""


def _begin() -> None:
    import torch

    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_LIMIT_BYTES, _MEMORY_LIMIT_BYTES))


def estimate(config_json: str) -> Estimate:
    """Plan a job and count; to be called where torch may be.

    Raises:
        UserError: It cannot run.
    """
    from laminar.data import describe
    from laminar.planning import make_plan

    config = Config.model_validate_json(config_json)
    return estimate_plan(make_plan(config, describe(config.data)))


def estimate_plan(plan: Plan) -> Estimate:
    """Return what a run will take.

    Raises:
        UserError: A stage needs more memory than its limit.
    """
    from laminar.memory import block_memories, stage_bytes
    from laminar.partition import check_memory

    config = plan.config
    check_memory(plan)
    memories, bounds = block_memories(plan), plan.bounds
    stages = tuple(
        int(stage_bytes(memories, plan, k, bounds[k], bounds[k + 1]))
        for k in range(config.num_stages)
    )
    needs = Needs.of(config)
    return Estimate(
        num_workers=config.num_stages,
        cpus=needs.cpus * needs.num_bundles,
        gpus=needs.gpus * needs.num_bundles,
        stage_bytes=stages,
        memory_bytes=sum(stages) + len(stages) * PROCESS_BYTES + DRIVER_BYTES,
        seconds=None if needs.gpus else _seconds(plan),
    )


def _seconds(plan: Plan) -> float:
    """Return the run's seconds on a core for each stage.

    The parallel phase is as slow as its slowest stage, an exact batch of M micro-batches takes
    (M+K-1)/M times the largest stage, without forwards that run twice, and evaluation, a forward
    only, a third of it.
    """
    from laminar.blocks import build
    from laminar.cuts import block_costs
    from laminar.networks import network
    from laminar.partition import work_factor

    config, problem, bounds = plan.config, plan.problem, plan.bounds
    specs = network(
        config.model, in_channels=problem.image_shape[0], num_classes=problem.num_classes
    )
    costs = block_costs(build(specs, seed=0, device="meta"), problem.image_shape)
    K, M = config.num_stages, config.correction.micro_batches
    stages = [sum(costs[bounds[k] : bounds[k + 1]]) for k in range(K)]
    parallel = max(cost * work_factor(config.parallel, k, K) for k, cost in enumerate(stages))
    cores = min(1.0, config.resources.cpus_per_stage)  # less than one core is shared with others
    exact = (1 - plan.parallel_fraction) * max(stages) * (M + K - 1) / M
    trained = plan.num_batches * config.batch_size * (plan.parallel_fraction * parallel + exact)
    tested = config.epochs * problem.num_test * max(stages) / 3
    return START_S + (trained + tested) / (COST_PER_S * cores)
