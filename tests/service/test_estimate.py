"""What a job would take, and the process that works it out."""

from __future__ import annotations

from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import pytest

from laminar.errors import ConfigError
from service.jobs.estimate import DRIVER_BYTES, PROCESS_BYTES, START_S, Planner, estimate
from service.jobs.models import Estimate
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


def test_planning_happens_in_another_process():
    planner = Planner()
    try:
        assert planner.plan(tiny_config()) == estimate(tiny_config().model_dump_json())
        with pytest.raises(ConfigError, match="num_stages must be <= number of blocks"):
            planner.plan(tiny_config(num_stages=9))
    finally:
        planner.close()
