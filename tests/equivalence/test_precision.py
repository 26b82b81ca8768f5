"""Engine = reference under autocast, in both memory formats, with filters of one phase only."""

import pytest
import torch

from laminar.evaluation import evaluate_run
from laminar.one_process import OneProcessEngine
from tests.pairwise import covering
from tests.tiny import differing, run_reference, tiny_plan, write_run

FACTORS = (
    ("fp32", "bf16"),
    ("contiguous", "channels_last"),
    (False, True),
    ({"pool": 1, "cast": "bf16"}, {"pool": 3, "cast": "int8"}),
    (2, 3),
)
CASES = covering(FACTORS)


def precision_plan(compute, memory_format, parallel_only, filters, num_stages):
    return tiny_plan(
        8,
        num_stages=num_stages,
        precision={"compute": compute, "memory_format": memory_format},
        filters={**filters, "parallel_only": parallel_only},
        parallel={"micro_batches": 1},
        phases=[{"phase": "parallel", "epochs": 1}, {"phase": "correction", "epochs": 1}],
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_engine_equals_reference(case):
    plan = precision_plan(*case)
    engine = OneProcessEngine(plan)
    engine.run()
    state = run_reference(plan).state()
    assert differing(state, engine.state()) == []
    dtypes = {t.dtype for name, t in state.items() if not name.endswith("num_batches_tracked")}
    assert dtypes == {torch.float32}


def test_every_setting_matters():
    plain = ("fp32", "contiguous", False, FACTORS[3][1], 2)
    base = run_reference(precision_plan(*plain)).state()["model.stem.conv1.weight"]
    for case in (("bf16", *plain[1:]), (*plain[:2], True, *plain[3:])):
        other = run_reference(precision_plan(*case)).state()["model.stem.conv1.weight"]
        assert not torch.equal(base, other)
        assert torch.allclose(base, other, atol=0.5)


def test_channels_last_is_the_same_mathematics_and_reaches_the_weights():
    plan = precision_plan("fp32", "channels_last", False, {"pool": 2}, 2)
    engine = OneProcessEngine(plan)
    engine.train(plan.segments[0])
    weight = engine.stages[1].learner.parameters[0]
    assert weight.dim() == 4
    assert weight.is_contiguous(memory_format=torch.channels_last)
    momentum = engine.stages[1].learner.optimizer.state[weight]["momentum_buffer"]
    assert momentum.stride() == weight.stride()
    engine.stages[1].load_state(engine.state())
    momentum = engine.stages[1].learner.optimizer.state[weight]["momentum_buffer"]
    assert momentum.stride() == weight.stride()


@pytest.mark.parametrize("compute", ["fp32", "bf16"])
def test_a_filter_of_the_parallel_phase_is_absent_from_evaluation(tmp_path, compute):
    """`laminar evaluate` computes in fp32 and without it; so does the run, up to bf16."""
    filters = {"pool": 4, "cast": "int8", "parallel_only": True}
    plan = precision_plan(compute, "contiguous", True, filters, 2)
    engine = OneProcessEngine(plan)
    engine.run()
    engine.stages[-1].take_tally()
    accuracy = engine.evaluate(2)
    write_run(tmp_path / "run", plan)
    found = evaluate_run(tmp_path / "run")
    if compute == "fp32":
        assert found["accuracy"] == accuracy
    network = plan.build_stage_module(0, 5).eval()
    bare = precision_plan(compute, "contiguous", False, {"pool": 1}, 2).build_stage_module(0, 5)
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(network(x), bare.eval()(x))
    network.enter("parallel")
    assert not torch.equal(network(x), bare(x))
