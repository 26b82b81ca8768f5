"""Stages that die, stall or compute nonsense; runs that are stopped."""

import json
import sys
import threading
import time
from dataclasses import dataclass

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
from laminar.checkpoint import list_checkpoints, read_manifest
from laminar.data import describe
from laminar.planning import make_plan
from laminar.run_directory import RunDirectory
from tests.on_ray.test_engine import look_around
from tests.on_ray.test_resume import newest
from tests.tiny import differing, run_reference, tiny_config, tiny_plan

# What the actors are to run they get whole, for to look it up they would import all of this.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

CPU = {"cpus_per_stage": 0.25, "device": "cpu"}
PLAN = tiny_plan(40, num_stages=3, resources={**CPU, "message_timeout_s": 3})


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
    original = self._worker._stage.forward

    def forward(*args, **kwargs):
        if not when():
            return original(*args, **kwargs)
        if how == "die":
            import os

            os._exit(1)
        if how == "raise":
            raise FloatingPointError("broken on purpose")
        self._worker._stage.forward = original
        time.sleep(8)
        return original(*args, **kwargs)

    self._worker._stage.forward = forward


# A death costs the start of an actor and a stall its wait: one of each at either end is enough.
BREAKDOWNS = [("raise", phase, k) for phase in ("parallel", "correction") for k in range(3)]
BREAKDOWNS += [
    (how, *at) for how in ("die", "stall") for at in (("correction", 0), ("parallel", 2))
]


@pytest.mark.parametrize(("how", "phase", "victim"), BREAKDOWNS)
def test_a_broken_stage_is_reported_in_bounded_time(stages, pool, victim, phase, how):
    error, words = {
        "die": (ray.exceptions.ActorDiedError, None),
        "raise": (FloatingPointError, "broken on purpose"),
        "stall": (MessageTimeoutError, r"slower than resources\.message_timeout_s"),
    }[how]
    ray.get(pool[victim].__ray_call__.remote(breaking, how))
    segment = next(s for s in PLAN.segments if s.phase == phase)
    started = time.monotonic()
    with pytest.raises(error, match=words):
        stages.train(segment)
    assert time.monotonic() - started < 60
    if how == "die":
        pool[victim] = StageActor.options(num_cpus=0).remote()


def while_busy(actor, function, *args):
    """Run a function in an actor on its control group, beside what the actor is doing."""
    return actor.__ray_call__.options(concurrency_group="control").remote(function, *args)


@dataclass(frozen=True)
class Survived:
    """A run that lost a stage, and what was seen of it."""

    run: RunDirectory
    num_coordinators: int
    gpus: list[tuple[list[str], float]]
    """Of each stage: the GPUs that Ray gave it, and how many it reserved."""


@pytest.fixture(scope="module")
def survived(ray_session, tmp_path_factory):
    """The first coordinator loses a stage in its second epoch; the retry goes on from the first.

    It also leaves the cuts and the memory format to timing, keeps one checkpoint, and gives each
    stage a GPU not to be computed on: each of these would be a start of all actors by itself.
    """
    run = RunDirectory(tmp_path_factory.mktemp("survived") / "run")
    coordinators, gpus = [], []
    original = actors.trainer.Coordinator.options

    class Remember:
        def __init__(self, **options):
            self.options = options

        def remote(self, *args, **kwargs):
            coordinators.append(original(**self.options).remote(*args, **kwargs))
            return coordinators[-1]

    def has_checkpoint():
        return bool(list_checkpoints(run.checkpoints))

    def kill_once(event):
        if not gpus:
            look = lambda self: (self._stages.actors, "torch" in sys.modules)  # noqa: E731
            stages, has_torch = ray.get(while_busy(coordinators[0], look))
            assert not has_torch, "three seconds and 285 MB that a coordinator does not need"
            gpus.extend(ray.get([while_busy(stage, look_around) for stage in stages]))
            ray.get(while_busy(stages[1], breaking, "die", has_checkpoint))

    config = tiny_config(
        30,
        epochs=6,
        precision={"memory_format": "auto"},
        partition={"costs": "measured"},
        resources={**CPU, "gpus_per_stage": 1, "message_timeout_s": 60},
    )
    run_config = ray.train.RunConfig(
        storage_path=str(run.path.parent),
        name=run.path.name,
        failure_config=ray.train.FailureConfig(max_failures=1),
        checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(actors.trainer.Coordinator, "options", lambda **o: Remember(**o))
        LayerParallelTrainer(config, run_config=run_config, callback=kill_once).fit()
    return Survived(run, len(coordinators), [(ids, found["GPU"]) for ids, found in gpus])


def test_a_dead_stage_is_replaced_and_the_result_is_the_same(survived):
    assert survived.num_coordinators == 2
    config = survived.run.open_config()
    state = run_reference(make_plan(config, describe(config.data))).state()
    assert differing(state, newest(survived.run.path)) == []


def test_checkpoints_to_keep(survived):
    assert [p.name for p in survived.run.checkpoints.iterdir()] == ["epoch_0006"]


def test_what_timing_chose_is_written_out(survived):
    written = survived.run.open_config()
    assert written.precision.memory_format in ("contiguous", "channels_last")
    assert written.cuts in ((1,), (2,), (3,), (4,))
    saved = read_manifest(survived.run.checkpoints / "epoch_0006").plan.config
    assert saved == written


def test_stages_get_whole_gpus_and_compute_on_the_cpu_where_told_to(survived):
    """That they equal the reference has been seen above."""
    assert [(len(ids), num) for ids, num in survived.gpus] == [(1, 1), (1, 1)]
    assert {str(ids[0]) for ids, _ in survived.gpus} == {"0", "1"}
    environment = json.loads(survived.run.environment_file.read_text())
    assert [stage["device"] for stage in environment["stages"]] == ["cpu", "cpu"]


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
