"""Engine = reference = plain torch for every optimiser, schedule, clipping and average."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from laminar.data import open_inputs, open_labels
from laminar.evaluation import evaluate_run
from laminar.networks import build_blocks
from laminar.one_process import OneProcessEngine
from tests.pairwise import covering
from tests.tiny import differing, run_reference, tiny_plan, write_run

ADAMW = {"name": "adamw", "lr": 0.01, "weight_decay": 0.1}
OPTIMIZERS = {
    "sgd": {"lr": 0.1},
    "nesterov": {"lr": 0.1, "nesterov": True},
    "adamw": ADAMW,
}
SCHEDULES = {
    "cosine": {},
    "step": {"name": "step", "milestones": [1.0, 1.5]},
    "linear": {"name": "linear", "final_fraction": 0.1},
    "one cycle": {"name": "one_cycle"},
}
FACTORS = (
    tuple(OPTIMIZERS),
    tuple(SCHEDULES),
    (None, 0.05),
    (None, {"decay": 0.9}),
    (True, False),
    (2, 3),
)
CASES = covering(FACTORS)


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_engine_equals_reference(case):
    optimizer, schedule, clip_norm, ema, lookahead, num_stages = case
    plan = tiny_plan(
        12,
        num_stages=num_stages,
        optimizer={**OPTIMIZERS[optimizer], "clip_norm": clip_norm},
        schedule=SCHEDULES[schedule],
        ema=ema,
        parallel={"micro_batches": 1, "lookahead": lookahead},
        filters={"pool": 2, "cast": "int8"},
        phases=[{"phase": "correction", "epochs": 1}, {"phase": "parallel", "epochs": 1}],
    )
    engine = OneProcessEngine(plan)
    engine.run()
    state = run_reference(plan).state()
    assert differing(state, engine.state()) == []
    groups = {name.partition(".")[0] for name in state}
    assert groups == {"model", "optimizer"} | ({"ema"} if ema else set())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("change", [{"lookahead": False}, {"clip_norm": 0.05}, {"schedule": {}}])
def test_every_setting_matters(optimizer, change):
    def weights(schedule=SCHEDULES["linear"], lookahead=True, **options):
        plan = tiny_plan(
            6,
            optimizer={**OPTIMIZERS[optimizer], **options},
            schedule=schedule,
            parallel={"micro_batches": 1, "lookahead": lookahead},
            phases=[{"phase": "parallel", "epochs": 2}],
        )
        return run_reference(plan).state()["model.stem.conv1.weight"]

    assert not torch.equal(weights(), weights(**change))


def test_one_stage_is_plain_torch_with_adamw_clipping_and_averages():
    plan = tiny_plan(
        num_stages=1,
        optimizer={**ADAMW, "clip_norm": 0.5},
        schedule={"name": "linear", "warmup_epochs": 0},
        ema={"decay": 0.5},
        parallel={"micro_batches": 2},
        phases=[{"phase": "parallel", "epochs": 2}],
    )
    blocks = build_blocks(plan.config.model, in_channels=3, num_classes=4, seed=0)
    network = nn.Sequential(*(block.module for block in blocks))
    average = [p.detach().clone() for p in network.parameters()]
    adamw = torch.optim.AdamW(network.parameters(), lr=0.01, weight_decay=0.1)
    linear = torch.optim.lr_scheduler.LinearLR(adamw, 1.0, 0.0, plan.num_batches)
    inputs, labels = open_inputs(plan.config), open_labels(plan.config)
    for step in range(plan.num_batches):
        at = divmod(step, plan.batches_per_epoch)
        pairs = zip(inputs.train(*at).chunk(2), labels.train(*at).chunk(2), strict=True)
        for x, y in pairs:
            (F.cross_entropy(network(x), y) / 2).backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), 0.5)
        assert norm > 0.5 or step
        adamw.step()
        adamw.zero_grad()
        linear.step()
        decay = min(0.5, (2 + step) / (11 + step))
        for a, p in zip(average, network.parameters(), strict=True):
            a.mul_(decay).add_(p.detach(), alpha=1 - decay)
    state = run_reference(plan).state()
    names = [f"{block.name}.{n}" for block in blocks for n, _ in block.module.named_parameters()]
    for name, p, a in zip(names, network.parameters(), average, strict=True):
        torch.testing.assert_close(state[f"model.{name}"], p.detach(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(state[f"ema.{name}"], a, rtol=1e-4, atol=1e-5)
        assert state[f"optimizer.step.{name}"] == plan.num_batches


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_state_goes_on_at_other_cuts(optimizer):
    """Two epochs of exact training: unbroken with K=1, and K=2 in the first, K=3 in the second."""

    def engine(num_stages):
        plan = tiny_plan(
            num_stages=num_stages,
            optimizer=OPTIMIZERS[optimizer],
            ema={"decay": 0.9},
            filters={},
            phases=[{"phase": "correction", "epochs": 2}],
        )
        return OneProcessEngine(plan)

    unbroken, first, second = engine(1), engine(2), engine(3)
    unbroken.run()
    first.train(first.plan.segments[0])
    for stage in second.stages:
        stage.load_state(first.state())
    assert differing(first.state(), second.state()) == []
    second.train(second.plan.segments[1])
    assert differing(unbroken.state(), second.state()) == []


def test_evaluation_uses_the_average_in_the_run_and_after_it(tmp_path):
    plan = tiny_plan(num_stages=2, ema={"decay": 0.9}, optimizer=ADAMW)
    engine = OneProcessEngine(plan)
    engine.run()
    accuracy = engine.evaluate(2)
    state = engine.state()
    inputs, labels = open_inputs(plan.config), open_labels(plan.config)

    def loss_and_accuracy(group):
        module = plan.build_stage_module(0, 5).eval()
        for name, tensor in module.public_tensors():
            tensor.data.copy_(state.get(f"{group}.{name}", state[f"model.{name}"]))
        logits = torch.cat([module(inputs.test(b)).detach() for b in range(2)])
        y = torch.cat([labels.test(b) for b in range(2)])
        return float(F.cross_entropy(logits, y)), float((logits.argmax(1) == y).float().mean())

    averaged, newest = loss_and_accuracy("ema"), loss_and_accuracy("model")
    assert averaged[0] != pytest.approx(newest[0], rel=1e-3)
    assert accuracy == pytest.approx(averaged[1])
    write_run(tmp_path / "run", plan)
    found = evaluate_run(tmp_path / "run")
    assert (found["loss"], found["accuracy"]) == pytest.approx(averaged, rel=1e-5)
