"""What a job would take, and the process that works it out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

from laminar.errors import ConfigError
from service.jobs import estimate as estimates
from service.jobs.estimate import (
    DRIVER_BYTES,
    PROCESS_BYTES,
    START_S,
    Planner,
    PlannerBusy,
    estimate,
)
from service.jobs.models import Estimate
from tests.service.slow_plan import MARK, slow_plan
from tests.tiny import tiny_config


def of(**changes: Any) -> Estimate:
    return estimate(tiny_config(40, **changes).model_dump_json())


def test_more_stages_share_the_work_and_each_has_a_process():
    one, two = of(num_stages=1), of(num_stages=2)
    assert (one.num_workers, two.num_workers, two.cpus) == (1, 2, 0.5)
    assert two.memory_bytes == sum(two.stage_bytes) + 2 * PROCESS_BYTES + DRIVER_BYTES
    assert max(two.stage_bytes) < 2 * one.stage_bytes[0]
    assert one.seconds is not None
    longer = of(num_stages=1, epochs=200).seconds
    assert longer is not None
    assert longer - START_S > 50 * (one.seconds - START_S)
    gpus = of(resources={"gpus_per_stage": 1.0})
    assert (gpus.gpus, gpus.seconds) == (2, None)


def test_resnet20_takes_the_time_that_its_calibration_measured():
    """279 images a second on one thread, evaluation and start apart."""
    data = {"name": "synthetic", "num_train": 27_904, "num_test": 1, "num_classes": 10}
    found = of(
        num_stages=1,
        epochs=1,
        batch_size=128,
        model={"name": "resnet20"},
        data=data,
        resources={"cpus_per_stage": 1.0},
    )
    assert found.seconds == pytest.approx(110, rel=0.05)


def test_forwards_that_run_twice_take_longer():
    """A third of the parallel phase's work at most; with lateness still to be chosen."""
    parallel = {"lateness": "auto", "curvature": 4}
    data = {"name": "synthetic", "num_train": 20_000, "num_test": 1, "image_size": 8}
    twice, once = (
        of(cuts=[4], batch_size=16, data=data, parallel=parallel | {"curvature": c}).seconds
        for c in (4, 0)
    )
    assert twice is not None
    assert once is not None
    assert 1.2 < (twice - START_S) / (once - START_S) < 4 / 3


def test_what_cannot_run_is_refused():
    with pytest.raises(ConfigError, match="num_stages must be <= number of blocks"):
        of(num_stages=9)


class Pools:
    """Stands in for the process: each pool does what it is told, in this process."""

    def __init__(self, *breaks: bool) -> None:
        self.breaks, self.made = list(breaks), 0
        self._processes: dict[int, Any] = {}

    def __call__(self, *_: Any, **__: Any) -> Pools:
        self.made += 1
        return self

    def submit(self, call: Any, *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        if arguments and self.breaks and self.breaks.pop(0):
            future.set_exception(BrokenProcessPool())
        else:
            future.set_result(call(*arguments))
        return future

    def shutdown(self, **_: Any) -> None:
        """Nothing runs."""


@pytest.mark.parametrize(("breaks", "works"), [((True,), True), ((True, True), False)])
def test_a_process_that_was_killed_is_started_once_more(
    breaks: tuple[bool, ...], works: bool, monkeypatch: pytest.MonkeyPatch
):
    pools = Pools(*breaks)
    monkeypatch.setattr("service.jobs.estimate.ProcessPoolExecutor", pools)
    planner = Planner()
    if works:
        assert planner.plan(tiny_config()) == planner.plan(tiny_config(seed=7))
    else:
        with pytest.raises(ConfigError, match="must be small enough to be planned"):
            planner.plan(tiny_config())
    assert pools.made == 2


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Planner, Path]]:
    """A planner with a process of its own, without torch, and the file that its slow job leaves."""
    monkeypatch.setenv(MARK, str(tmp_path / "begun"))
    monkeypatch.setattr(estimates, "_begin", estimates._nothing)
    monkeypatch.setattr(estimates, "estimate", slow_plan)
    planner = Planner()
    yield planner, tmp_path / "begun"
    planner.close()


def begun(pool: ThreadPoolExecutor, planner: Planner, mark: Path) -> Future[Estimate]:
    """Begin to plan the slow job, and return when its planning has begun."""
    future = pool.submit(planner.plan, tiny_config(epochs=99))
    while not mark.exists():
        assert not future.done(), future.result()
        time.sleep(0.01)
    return future


def test_who_waits_behind_a_slow_job_pays_nothing_for_it(
    slow: tuple[Planner, Path], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(estimates, "_TIMEOUT_S", 3.0)
    planner, mark = slow
    with ThreadPoolExecutor(4) as pool:
        first = begun(pool, planner, mark)
        behind = [pool.submit(planner.plan, tiny_config(epochs=n)) for n in (1, 2, 3)]
        with pytest.raises(ConfigError, match="must be small enough to be planned"):
            first.result()
        assert [future.result().num_workers for future in behind] == [1, 1, 1]


def test_who_would_wait_too_long_is_told_to_come_again(
    slow: tuple[Planner, Path], monkeypatch: pytest.MonkeyPatch
):
    planner, mark = slow
    known = planner.plan(tiny_config())
    monkeypatch.setattr(estimates, "_WAIT_S", 0.05)
    with ThreadPoolExecutor(1) as pool:
        first = begun(pool, planner, mark)
        with pytest.raises(PlannerBusy, match="other jobs are being planned"):
            planner.plan(tiny_config(epochs=1))
        assert planner.plan(tiny_config(seed=3)) == known  # which takes no turn
        planner.close()
        with pytest.raises(PlannerBusy, match="the service is closing"):
            first.result()
        with pytest.raises(PlannerBusy, match="the service is closing"):
            planner.plan(tiny_config(epochs=5))


def test_a_process_that_died_while_idle_is_started_anew(slow: tuple[Planner, Path]):
    planner, _ = slow
    planner.plan(tiny_config())
    assert planner._pool is not None
    (process,) = planner._pool._processes.values()
    process.kill()
    process.join()
    assert planner.plan(tiny_config(epochs=1)).num_workers == 1


def test_planning_happens_in_another_process():
    planner = Planner()
    try:
        assert planner.plan(tiny_config()) == estimate(tiny_config().model_dump_json())
        with pytest.raises(ConfigError, match="num_stages must be <= number of blocks"):
            planner.plan(tiny_config(num_stages=9))
    finally:
        planner.close()
