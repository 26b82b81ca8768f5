"""The engine on Ray against the reference, bit for bit, on actors with half a logical GPU each."""

import sys
from collections import Counter
from pathlib import Path

import pytest
import ray

from actors.cluster import reserve
from actors.coordinator import Stages
from actors.wire import INLINE_LIMIT_BYTES
from tests.equivalence.test_reference import PLANS, case_plan
from tests.pairwise import covering, pairs_of
from tests.tiny import differing, run_reference, tiny_plan

# What the actors are to run they get whole, for to look it up they would import all of this.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

FACTORS = (
    (1, 2, 3, 4),
    (1, 2),
    (1, 2, 4),
    ("forward_first", "backward_first"),
    ({"pool": 1, "cast": "fp32"}, {"pool": 2, "cast": "fp16"}, {"pool": 2, "cast": "int8"}),
    tuple(PLANS),
)
CASES = covering(FACTORS)
GPU_SHARES = {"cpus_per_stage": 0.25, "gpus_per_stage": 0.5, "device": "cpu"}


@pytest.fixture(scope="module")
def actors(ray_session):
    """Four stage actors, reset for each case by `setup`."""
    plan = tiny_plan(num_stages=4, resources=GPU_SHARES)
    with reserve(plan.config) as group:
        stages = Stages.start(plan, group)
        yield stages.actors
        for actor in stages.actors:
            ray_session.kill(actor)


def run_on_ray(plan, actors):
    stages = Stages(actors[: plan.config.num_stages])
    stages.setup(plan)
    reports = [stages.train(segment) for segment in plan.segments]
    state = {}
    for part in ray.get([actor.state.remote() for actor in stages.actors]):
        state |= part
    return state, reports


def test_cases_cover_all_pairs():
    assert len(CASES) <= 50
    covered = set().union(*(pairs_of(case) for case in CASES))
    expected = sum(len(a) * len(b) for i, a in enumerate(FACTORS) for b in FACTORS[i + 1 :])
    assert len(covered) == expected


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(str(v) for v in c[:4]) + f"-{c[5]}")
def test_engine_equals_reference(case, actors):
    plan = case_plan(*case)
    state, reports = run_on_ray(plan, actors)
    reference = run_reference(plan)
    assert differing(reference.state(), state) == []
    samples = sum(report[-1].tally.num_samples for report in reports)
    assert samples == plan.num_batches * plan.config.batch_size


@pytest.mark.parametrize("method", ["greedy", "auxnet"])
def test_rules_that_need_data_at_every_stage(method, actors):
    phases = [{"phase": phase, "epochs": 1} for phase in ("parallel", "correction")]
    plan = tiny_plan(8, num_stages=3, method=method, phases=phases)
    state, reports = run_on_ray(plan, actors)
    assert differing(run_reference(plan).state(), state) == []
    adjoints = [reports[0][k].sent["adjoint"].inline_bytes for k in (0, 1, 2)]
    assert [n > 0 for n in adjoints] == [False, method == "auxnet", method == "auxnet"]


def look_around(actor_self):
    """Runs in a stage actor: which GPUs Ray gave it, and what it reserved."""
    return ray.get_gpu_ids(), ray.get_runtime_context().get_assigned_resources()


def test_stages_get_shares_of_gpus(actors):
    """And compute on the CPU where told to."""
    infos = Stages(actors).setup(tiny_plan(12, num_stages=4, resources=GPU_SHARES))
    assert [info["device"] for info in infos] == ["cpu"] * 4
    seen = ray.get([actor.__ray_call__.remote(look_around) for actor in actors])
    assert [reserved["GPU"] for _, reserved in seen] == [0.5] * 4
    assert all(len(gpus) == 1 for gpus, _ in seen)
    assert Counter(str(gpus[0]) for gpus, _ in seen) == {"0": 2, "1": 2}


def find_mapping(actor_self, phase, micro, *arrays):
    """Runs in the actor: which memory mapping holds the array that Ray handed over."""
    address = arrays[0].__array_interface__["data"][0]
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *_, name = line.split(maxsplit=5)
        start, end = (int(part, 16) for part in span.split("-"))
        if start <= address < end:
            return name
    return "?"


def test_large_messages_go_through_the_object_store(actors, ray_session):
    plan = tiny_plan(
        4,
        num_stages=2,
        cuts=[2],
        batch_size=64,
        model={"name": "resnet8", "width": 16},
        data={"name": "synthetic", "image_size": 32, "num_train": 256, "num_test": 8},
        parallel={"micro_batches": 1},
        filters={"pool": 1, "cast": "fp32"},
        phases=[{"phase": "parallel", "epochs": 1}],
        epochs=1,
    )
    message_bytes = 64 * 16 * 32 * 32 * 4
    assert message_bytes >= 1_000_000
    state, reports = run_on_ray(plan, actors)
    sent = reports[0][0].sent["forward"], reports[0][1].sent["adjoint"]
    assert [s.store_bytes for s in sent] == [4 * message_bytes] * 2
    assert [s.inline_bytes for s in sent] == [0, 0]
    assert differing(run_reference(plan).state(), state) == []
    # Proof by address: what an actor is handed lies in a mapping of Ray's shared memory.
    import numpy as np

    large = np.ones(message_bytes // 4, np.float32)
    small = np.ones(INLINE_LIMIT_BYTES // 8, np.float32)
    ask = actors[0].__ray_call__.remote
    assert "plasma" in ray_session.get(ask(find_mapping, 0, 0, large))
    assert "plasma" not in ray_session.get(ask(find_mapping, 0, 0, small))


STORED_CASES = {
    "augmented_lagrangian": {"window": 3, "sweeps": 3},
    "penalty": {"sweeps": 2, "memory_limit_mb": 0},
}


@pytest.mark.parametrize("method", STORED_CASES)
def test_stored_engine_equals_reference(method, actors, ray_session, tmp_path):
    plan = tiny_plan(
        8,
        num_stages=3,
        method=method,
        parallel={"feed": "stored"},
        optimizer={"lr": 0.02},
        stored={**STORED_CASES[method], "scratch_dir": str(tmp_path)},
        phases=[{"phase": phase, "epochs": 1} for phase in ("correction", "parallel")],
    )
    stages = Stages(actors[:3])
    stages.setup(plan)
    for segment in plan.segments:
        reports = stages.train(segment, is_measured=True, is_kept=True)
        assert len(stages.measure_exactness(segment)) == 3
        assert reports[-1].tally.num_samples == segment.num_batches * plan.config.batch_size
    assert all(report.cut.violation > 0 for report in reports[:-1])
    assert reports[-1].tally.num_visited == STORED_CASES[method]["sweeps"] * samples_of(plan)
    state = {}
    for part in ray_session.get([actor.state.remote() for actor in stages.actors]):
        state |= part
    assert differing(run_reference(plan).state(), state) == []


def test_forwards_that_run_again_equal_reference_while_they_are_measured(actors, ray_session):
    phases = [{"phase": phase, "epochs": 1} for phase in ("correction", "parallel")]
    model = {"name": "wrn10_1", "width": 4, "dropout": 0.3}
    plan = tiny_plan(12, num_stages=3, model=model, parallel={"curvature": 4}, phases=phases)
    stages = Stages(actors[:3])
    stages.setup(plan)
    for segment in plan.segments:
        reports = stages.train(segment, is_measured=True, is_kept=True)
        assert len(stages.measure_exactness(segment)) == 3
    assert all(report.cut.violation > 0 for report in reports[:-1])
    state = {}
    for part in ray_session.get([actor.state.remote() for actor in stages.actors]):
        state |= part
    assert differing(run_reference(plan).state(), state) == []


def samples_of(plan):
    return plan.batches_per_epoch * plan.config.batch_size
