"""A user's own network, data and loss: the same algorithm, on rows instead of images."""

import pytest
import torch
from torch import nn

from laminar.data import open_inputs
from laminar.errors import ConfigError
from laminar.evaluation import evaluate_run
from laminar.one_process import OneProcessEngine
from laminar.profile import measure
from tests.own import NUM_TEST, OWN, WIDTH, own_plan
from tests.tiny import differing, run_reference, write_run

MIXED = [{"phase": "correction", "epochs": 1}, {"phase": "parallel", "epochs": 1}]


def engine_state(plan, seed=0):
    engine = OneProcessEngine(plan, seed)
    engine.run()
    return engine.state()


@pytest.mark.parametrize("num_stages", [1, 2, 4])
@pytest.mark.parametrize("cast", ["fp32", "fp16", "int8"])
def test_engine_equals_reference(num_stages, cast):
    plan = own_plan(num_stages=num_stages, filters={"pool": 1, "cast": cast}, phases=MIXED)
    assert differing(run_reference(plan).state(), engine_state(plan, num_stages)) == []


def test_mixup_works_on_rows():
    plan = own_plan(num_stages=3, data={"name": "custom", "mixup": 0.4}, phases=MIXED)
    state = run_reference(plan).state()
    assert differing(state, engine_state(plan)) == []
    assert differing(state, run_reference(own_plan(num_stages=3, phases=MIXED)).state())


def test_initial_weights_and_exact_training_do_not_depend_on_the_cuts():
    plans = [
        own_plan(num_stages=k, filters={"pool": 1, "cast": "fp32"},
                 phases=[{"phase": "correction", "epochs": 2}])
        for k in (1, 3)
    ]  # fmt: skip
    assert differing(*(engine_state(plan) for plan in plans)) == []


def test_names_are_those_that_the_user_gave():
    plan = own_plan()
    names = [name for name, _ in plan.build_stage_module(0, 5).public_tensors()]
    assert names[:2] == ["stem.weight", "stem.bias"]
    assert "body.1.inner.0.weight" in names
    assert plan.config.model.name == plan.config.data.name == plan.config.loss.name == "custom"
    assert plan.shapes == ((5,), *[(WIDTH,)] * 4, (3,))


@pytest.mark.parametrize("given", ["blocks", "datasets", "loss"])
def test_one_of_the_three_alone(given):
    """The rest is configured: a ResNet needs images, so own rows come as images here."""
    nothing = dict.fromkeys(("blocks", "datasets", "loss"))
    flat = {
        "stem": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, WIDTH)),
        "head": lambda: nn.Linear(WIDTH, 10),
    }
    images = torch.rand(20, 1, 8, 8), torch.arange(20) % 3
    own = {
        "blocks": {"blocks": lambda problem: flat},
        "datasets": {"datasets": dict.fromkeys(("train", "test"), lambda: images)},
        "loss": {"loss": lambda logits, y: nn.functional.nll_loss(logits.log_softmax(1), y)},
    }[given]
    model = {} if given == "blocks" else {"model": {"name": "resnet8", "width": 4}}
    plan = own_plan(nothing | own, **model, epochs=1)
    if given != "datasets":
        assert plan.problem.num_classes == 10
        return
    with pytest.raises(ConfigError, match=r"must be given images.*\[5\]"):
        own_plan(nothing | {"datasets": OWN["datasets"]}, epochs=1)
    assert differing(run_reference(plan).state(), engine_state(plan)) == []


def test_tokens_stay_integers():
    rows = torch.arange(40).view(20, 2) % 7, torch.arange(20) % 2
    own = {
        "datasets": dict.fromkeys(("train", "test"), lambda: rows),
        "blocks": lambda problem: {
            "stem": lambda: nn.Sequential(nn.Embedding(7, WIDTH), nn.Flatten(), nn.Linear(12, 8)),
            "head": lambda: nn.Linear(8, problem.num_classes),
        },
    }
    plan = own_plan(own, precision={"memory_format": "auto"})
    measured = measure(plan.config, plan, torch.device("cpu"), num_repeats=1)
    assert measured.precision.memory_format != "auto"
    plan = own_plan(own)
    assert plan.problem.dtype == "int64"
    assert open_inputs(plan.config, plan.factories.datasets).train(0, 0).dtype == torch.int64
    assert differing(run_reference(plan).state(), engine_state(plan)) == []


def test_evaluation_of_a_checkpoint(tmp_path):
    plan = own_plan(num_stages=2)
    write_run(tmp_path, plan)
    engine = OneProcessEngine(plan)
    engine.run()
    f = plan.factories
    found = evaluate_run(tmp_path, blocks=f.blocks, datasets=f.datasets, loss=f.loss)
    assert found["num_samples"] == NUM_TEST
    assert found["accuracy"] == engine.evaluate(2)
