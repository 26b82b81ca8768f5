"""Stages that die, stall or compute nonsense; runs that are stopped."""

import threading
import time

import numpy as np
import pytest
import ray.train

import actors.trainer
from actors import LayerParallelTrainer
from actors.cluster import reserve
from actors.coordinator import Stages
from actors.mailbox import Aborted, Mailbox, MessageTimeoutError
from actors.stage_actor import StageActor
from actors.trainer import TrainingError
from laminar.checkpoint import list_checkpoints
from tests.on_ray.test_resume import newest
from tests.tiny import differing, run_reference, tiny_config, tiny_plan

PLAN = tiny_plan(40, num_stages=3, resources={"cpus_per_stage": 0.25, "message_timeout_s": 3})


@pytest.fixture(scope="module")
def pool(ray_session):
    """Actors that are reset between tests; only a dead one is replaced."""
    with reserve(PLAN.config) as group:
        living = Stages.start(PLAN, group).actors
        yield living
        for actor in living:
            ray.kill(actor)


@pytest.fixture
def stages(pool):
    stages = Stages(pool)
    stages.setup(PLAN)
    return stages


def breaking(self, how, when=lambda: True):
    """Runs in a stage actor: break its forward, once `when` says so."""
    original = self._stage.forward

    def forward(*args, **kwargs):
        if not when():
            return original(*args, **kwargs)
        if how == "die":
            import os

            os._exit(1)
        if how == "raise":
            raise FloatingPointError("broken on purpose")
        self._stage.forward = original
        time.sleep(8)
        return original(*args, **kwargs)

    self._stage.forward = forward


# A death costs the start of an actor and a stall its wait: one of each at either end is enough.
BREAKDOWNS = [("raise", phase, k) for phase in ("parallel", "correction") for k in range(3)]
BREAKDOWNS += [
    (how, *at) for how in ("die", "stall") for at in (("correction", 0), ("parallel", 2))
]


@pytest.mark.parametrize(("how", "phase", "victim"), BREAKDOWNS)
def test_a_broken_stage_is_reported_in_bounded_time(stages, pool, victim, phase, how):
    error = {
        "die": ray.exceptions.ActorDiedError,
        "raise": FloatingPointError,
        "stall": MessageTimeoutError,
    }[how]
    ray.get(pool[victim].__ray_call__.remote(breaking, how))
    segment = next(s for s in PLAN.segments if s.phase == phase)
    started = time.monotonic()
    with pytest.raises(error):
        stages.train(segment)
    assert time.monotonic() - started < 60
    if how == "die":
        pool[victim] = StageActor.options(num_cpus=0).remote()


def while_busy(actor, function, *args):
    """Run a function in an actor on its control group, beside what the actor is doing."""
    return actor.__ray_call__.options(concurrency_group="control").remote(function, *args)


def test_a_dead_stage_is_replaced_and_the_result_is_the_same(ray_session, tmp_path, monkeypatch):
    """The first coordinator loses a stage in its second epoch; the retry goes on from the first."""
    killed = threading.Event()
    coordinators = []
    original = actors.trainer.Coordinator.options

    class Remember:
        def __init__(self, **options):
            self.options = options

        def remote(self, *args, **kwargs):
            coordinators.append(original(**self.options).remote(*args, **kwargs))
            return coordinators[-1]

    monkeypatch.setattr(actors.trainer.Coordinator, "options", lambda **o: Remember(**o))

    def has_checkpoint():
        return bool(list_checkpoints(tmp_path / "run" / "checkpoints"))

    def kill_once(event):
        if not killed.is_set():
            killed.set()
            actors = ray.get(while_busy(coordinators[0], lambda self: self._stages.actors))
            ray.get(while_busy(actors[1], breaking, "die", has_checkpoint))

    config = tiny_config(30, epochs=6)
    run_config = ray.train.RunConfig(
        storage_path=str(tmp_path),
        name="run",
        failure_config=ray.train.FailureConfig(max_failures=1),
    )
    LayerParallelTrainer(config, run_config=run_config, callback=kill_once).fit()
    assert killed.is_set()
    assert len(coordinators) == 2
    state = run_reference(tiny_plan(30, epochs=6)).state()
    assert differing(state, newest(tmp_path / "run")) == []


def test_a_failure_without_retries_is_one_clear_error(ray_session, tmp_path, monkeypatch):
    def fail(self, *args):
        raise FloatingPointError("broken on purpose")

    monkeypatch.setattr(LayerParallelTrainer, "_watch", fail)
    run_config = ray.train.RunConfig(storage_path=str(tmp_path), name="run")
    with pytest.raises(TrainingError, match="FloatingPointError: broken on purpose"):
        LayerParallelTrainer(tiny_config(), run_config=run_config).fit()


def test_stop_ends_a_phase(stages):
    segment = next(s for s in PLAN.segments if s.phase == "parallel")
    for actor in stages.actors:
        ray.get(actor.__ray_call__.remote(breaking, "stall"))
    threading.Timer(0.5, stages.stop).start()
    with pytest.raises(Aborted):
        stages.train(segment)


def test_mailbox_is_bounded_and_forgets_old_phases():
    box = Mailbox(capacity=1)
    box.open_phase(1)
    box.put(1, "forward", 0, [np.zeros(1)])
    second = threading.Thread(target=box.put, args=(1, "forward", 1, [np.ones(1)]))
    second.start()
    second.join(0.2)
    assert second.is_alive(), "a full mailbox must make the sender wait"
    assert box.take_now(1, "adjoint", 0) is None
    assert box.take(1, "forward", 0, 1)[0] == 0
    second.join(5)
    assert not second.is_alive()
    assert box.take_now(1, "forward", 1)[0] == 1
    box.put(1, "adjoint", 0, [np.zeros(1)])
    box.open_phase(2)
    box.put(1, "forward", 2, [np.zeros(1)])
    with pytest.raises(MessageTimeoutError, match="micro-batch 2"):
        box.take(1, "forward", 2, 0.01)
    waiter = threading.Timer(0.1, box.abort)
    waiter.start()
    with pytest.raises(Aborted):
        box.take(2, "forward", 0, 10)
