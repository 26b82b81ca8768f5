"""Engine and reference agree bit for bit on networks of each family, dropout included."""

import pytest
import torch

from laminar.one_process import OneProcessEngine
from tests.equivalence.test_reference import plain_training
from tests.tiny import differing, run_reference, tiny_plan

MODELS = {
    "wide, dropout": {"name": "wrn10_2", "width": 4, "dropout": 0.3},
    "wide, dropout, group norm": {"name": "wrn10_1", "width": 4, "dropout": 0.3, "norm": "group"},
    "pre-activation": {"name": "preact_resnet8", "width": 4},
    "torchvision": {"name": "resnet18", "width": 4},
}
MIXED = [{"phase": "correction", "epochs": 1}, {"phase": "parallel", "epochs": 1}]


def engine_state(plan, seed=0):
    engine = OneProcessEngine(plan, seed)
    engine.run()
    return engine.state()


def weights(state):
    return {n: t for n, t in state.items() if n.startswith("model.")}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("num_stages", [1, 3])
def test_engine_equals_reference(name, num_stages):
    plan = tiny_plan(4, model=MODELS[name], num_stages=num_stages, phases=MIXED,
                     filters={"pool": 1, "cast": "fp16"})  # fmt: skip
    assert differing(run_reference(plan).state(), engine_state(plan, num_stages)) == []


def dropout_plan(num_stages, per_batch, phase="correction", norm="group"):
    return tiny_plan(
        4,
        model={"name": "wrn10_2", "width": 4, "dropout": 0.3, "norm": norm},
        num_stages=num_stages,
        filters={"pool": 1, "cast": "fp32"},
        phases=[{"phase": phase, "epochs": 2}],
        correction={"micro_batches": per_batch},
        parallel={"micro_batches": per_batch},
    )


def test_masks_do_not_depend_on_the_cuts():
    """Exact training with four micro-batches is the same network on one stage and on three."""
    one, three = (engine_state(dropout_plan(k, 4, norm="batch")) for k in (1, 3))
    assert differing(one, three) == []


def test_masks_do_not_depend_on_micro_batches():
    """With group norm one micro-batch and four differ by rounding only."""
    one, four = (engine_state(dropout_plan(2, m)) for m in (1, 4))
    for name, tensor in weights(one).items():
        assert torch.allclose(tensor, four[name], atol=1e-5), name
    without = tiny_plan(4, model={"name": "wrn10_2", "width": 4, "norm": "group"},
                        phases=[{"phase": "correction", "epochs": 2}],
                        filters={"pool": 1, "cast": "fp32"})  # fmt: skip
    other = engine_state(without)
    name = "model.layer1.0.conv1.weight"
    assert not torch.allclose(one[name], other[name], atol=1e-3)


def test_a_whole_segment_later_starts_with_the_same_masks():
    """As a resumed run does: the second epoch alone, from the weights that the first one left."""
    plan = dropout_plan(2, 2, phase="parallel", norm="batch")
    unbroken, broken = OneProcessEngine(plan), OneProcessEngine(plan)
    unbroken.run()
    broken.train(plan.segments[0])
    resumed = OneProcessEngine(plan)
    for stage in resumed.stages:
        stage.load_state(broken.state())
    resumed.train(plan.segments[1])
    assert differing(unbroken.state(), resumed.state()) == []


def test_dropout_is_what_plain_training_does():
    """One stage, one micro-batch: ordinary backprop through the same module."""
    plan = dropout_plan(1, 1)
    module = plan.build_stage_module(0, plan.bounds[-1])
    from laminar.data import SampleIndices
    from laminar.dropout import Samples

    indices = SampleIndices(plan.config, plan.problem.num_train)

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.module, self.step = module, 0

        def forward(self, x):
            epoch, batch = divmod(self.step, plan.batches_per_epoch)
            module.set_samples(Samples(0, epoch, indices.train(epoch, batch)))
            self.step += 1
            return module(x)

    plain_training(plan, Network(), 1)
    expected = {f"model.{n}": t.detach() for n, t in module.public_tensors()}
    assert differing(expected, weights(engine_state(plan))) == []
