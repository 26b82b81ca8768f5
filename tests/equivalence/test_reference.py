"""The reference against plain torch, and the engine's programs against the reference."""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from laminar.data import open_inputs, open_labels
from laminar.networks import build_blocks
from laminar.one_process import OneProcessEngine
from tests.tiny import descend, differing, far, run_reference, tiny_plan


def plain_training(plan, network, per_batch):
    """Ordinary backprop with gradient accumulation and torch's SGD, as anybody would write it."""
    o = plan.config.optimizer
    sgd = torch.optim.SGD(
        network.parameters(), lr=o.lr, momentum=o.momentum, weight_decay=o.weight_decay
    )
    inputs, labels = open_inputs(plan.config), open_labels(plan.config)
    network.train()
    for step in range(plan.num_batches):
        at = divmod(step, plan.batches_per_epoch)
        for x, y in zip(
            inputs.train(*at).chunk(per_batch), labels.train(*at).chunk(per_batch), strict=True
        ):
            (F.cross_entropy(network(x), y) / per_batch).backward()
        sgd.param_groups[0]["lr"] = plan.learning_rate(step)
        sgd.step()
        sgd.zero_grad()
    return network


@pytest.mark.parametrize("phase", ["parallel", "correction"])
@pytest.mark.parametrize("per_batch", [1, 2, 4])
def test_one_stage_is_ordinary_backprop(phase, per_batch):
    plan = tiny_plan(
        num_stages=1,
        phases=[{"phase": phase, "epochs": 2}],
        parallel={"micro_batches": per_batch},
        correction={"micro_batches": per_batch},
    )
    blocks = build_blocks(plan.config.model, in_channels=3, num_classes=4, seed=0)
    network = plain_training(plan, nn.Sequential(*(b.module for b in blocks)), per_batch)
    expected = list(network.state_dict().values())
    for state in (run_reference(plan).state(), _engine(plan).state()):
        ours = {n: t for n, t in state.items() if n.startswith("model.")}
        names = [f"model.{b.name}.{n}" for b in blocks for n in b.module.state_dict()]
        for name, tensor in zip(names, expected, strict=True):
            assert torch.equal(ours[name], tensor), name


@pytest.mark.parametrize("num_stages", [2, 3, 4])
@pytest.mark.parametrize(("pool", "cast"), [(1, "fp32"), (2, "fp16"), (2, "int8")])
def test_correction_is_gradient_accumulation_in_one_process(num_stages, pool, cast):
    plan = tiny_plan(
        num_stages=num_stages,
        phases=[{"phase": "correction", "epochs": 2}],
        filters={"pool": pool, "cast": cast},
    )
    network = plain_training(plan, plan.build_stage_module(0, 5), 4)
    expected = {f"model.{n}": t.detach() for n, t in network.public_tensors()}
    state = _engine(plan, seed=num_stages).state()
    assert differing(expected, {n: t for n, t in state.items() if n.startswith("model.")}) == []


NUM_EXACT = 2
"""Batches of a correction phase."""

PLANS = {
    "parallel": ["parallel", "parallel"],
    "alternating": ["parallel", "correction"],
    "warm-up": ["correction", "parallel"],
}


def case_plan(num_stages, delay, per_batch, order, filters, phases, **parallel):
    """A plan whose parallel phases are the shortest allowed: two epochs of them, or one mixed."""
    num = max(2, math.ceil(4 * (num_stages - 1) * delay / per_batch))
    is_mixed = "correction" in PLANS[phases]
    num_batches = num + NUM_EXACT if is_mixed else num
    length = {"parallel": num / num_batches, "correction": NUM_EXACT / num_batches}
    return tiny_plan(
        num_batches,
        num_stages=num_stages,
        filters=filters,
        parallel={"hop_delay": delay, "micro_batches": per_batch, "order": order, **parallel},
        epochs=1 if is_mixed else 2,
        phases=[{"phase": phase, "epochs": length[phase]} for phase in PLANS[phases]],
    )


FULL = list(
    itertools.product(
        (1, 2, 3, 4),
        (1, 2),
        (1, 2, 4),
        ("forward_first", "backward_first"),
        ({"pool": 1, "cast": "fp32"}, {"pool": 2, "cast": "fp16"}, {"pool": 2, "cast": "int8"}),
        PLANS,
    )
)


@pytest.mark.parametrize("num_stages", [1, 2, 3, 4])
@pytest.mark.parametrize("delay", [1, 2])
def test_full_product_on_a_scripted_network(num_stages, delay):
    cases = [case for case in FULL if case[:2] == (num_stages, delay)]
    assert len(cases) == 54
    for number, case in enumerate(cases):
        plan = case_plan(*case)
        assert differing(run_reference(plan).state(), _engine(plan, number).state()) == [], case


@pytest.mark.parametrize("lookahead", [True, False])
@pytest.mark.parametrize("shrink", [1.0, 0.8])
def test_lookahead_and_shrinking(lookahead, shrink):
    options = {"lookahead": lookahead, "shrink": shrink}
    case = (3, 2, 2, "backward_first", {"pool": 1, "cast": "int8"}, "alternating")
    plan = case_plan(*case, **options)
    state = run_reference(plan).state()
    assert differing(state, _engine(plan).state()) == []
    if options != {"lookahead": True, "shrink": 1.0}:
        assert differing(state, run_reference(case_plan(*case)).state())


@pytest.mark.parametrize(
    "changes",
    [
        {"num_stages": 2},
        {"num_stages": 4, "parallel": {"micro_batches": 4}, "method": "augmented_lagrangian"},
        {
            "num_stages": 3,
            "parallel": {"hop_delay": 2, "order": "backward_first", "shrink": 0.9},
            "filters": {"pool": 2, "cast": "int8"},
            "optimizer": {"name": "adamw"},
        },
        {
            "num_stages": 3,
            "parallel": {"micro_batches": 1, "lookahead": False},
            "model": {"name": "wrn10_1", "width": 4, "dropout": 0.3},
            "precision": {"compute": "bf16"},
        },
    ],
)
def test_curvature(changes):
    """Late forwards run again: neither dropout nor batch norm may notice."""
    phases = [{"phase": phase, "epochs": 1} for phase in ("parallel", "correction")]

    def plan(strength):
        parallel = changes.get("parallel", {}) | {"curvature": strength}
        return tiny_plan(12, phases=phases, **changes | {"parallel": parallel})

    state = run_reference(plan(1.0)).state()
    assert differing(state, _engine(plan(1.0)).state()) == []
    assert differing(state, run_reference(plan(0.0)).state())


@pytest.mark.parametrize("num_stages", [1, 3])
@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_smoothing_and_augmentation(num_stages, mixup):
    """Images are mixed at one end and labels at the other, in phases of different micro-batches."""
    data = tiny_plan().config.data.model_dump() | {
        "mixup": mixup,
        "cutout": 3,
        "crop_padding": 0,
        "resized_crop": {"scale": [0.3, 1.0]},
    }
    plan = tiny_plan(
        num_stages=num_stages,
        data=data,
        loss={"label_smoothing": 0.1},
        parallel={"micro_batches": 4},
        correction={"micro_batches": 2},
        phases=[{"phase": phase, "epochs": 1} for phase in PLANS["alternating"]],
    )
    assert differing(run_reference(plan).state(), _engine(plan).state()) == []


def late_epoch(num_batches, **parallel):
    """K=2, M=1, d=1, plain SGD: the plan, the engine after an epoch, both stages before it."""
    plan = tiny_plan(
        num_batches,
        num_stages=2,
        filters={"pool": 1, "cast": "fp32"},
        parallel={"micro_batches": 1, "lookahead": False, **parallel},
        phases=[{"phase": "parallel", "epochs": 2}],
        optimizer={"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0},
        schedule={"warmup_epochs": 0},
    )
    engine = OneProcessEngine(plan)
    engine.train(plan.segments[0])
    cut = plan.bounds[1]
    return plan, engine, plan.build_stage_module(0, cut), plan.build_stage_module(cut, 5)


def test_late_gradients_by_hand():
    """Stage 0's first three gradients meet its initial weights."""
    plan, engine, first, second = late_epoch(4)
    inputs, labels = open_inputs(plan.config), open_labels(plan.config)
    pending = []
    for batch in range(4):
        # The forward of batch t meets the weights that batches 0..t-3 have made.
        if batch >= 3:
            descend(first, pending.pop(0), plan.learning_rate(batch - 3))
        x = first(inputs.train(0, batch))
        loss = F.cross_entropy(second(x), labels.train(0, batch))
        grads = torch.autograd.grad(loss, [*first.parameters(), *second.parameters()])
        pending.append(grads[: len(list(first.parameters()))])
        descend(second, grads[len(pending[-1]) :], plan.learning_rate(batch))
    for batch, gradient in enumerate(pending, 1):
        descend(first, gradient, plan.learning_rate(batch))
    assert far(engine.state(), [first, second], atol=1e-6) == []


@pytest.mark.parametrize("strength", [0.5, 50.0])
def test_curvature_by_hand(strength):
    """The same with late forwards run again; at the larger strength changes are held back."""
    plan, engine, first, second = late_epoch(5, curvature=strength)
    inputs, labels = open_inputs(plan.config), open_labels(plan.config)
    sent, changes = [], []

    def update(batch):
        images, x, p = sent.pop(0)
        # A copy: batch norm counts no image twice.
        x_now = functional_call(copy.deepcopy(first), dict(first.named_parameters()), (images,))
        moved = (x_now - x).detach()
        along = [float(8 * (a * b).sum()) for a, b in zip(p, moved, strict=True)]
        changes.extend(max(-0.25, min(0.25, strength * a)) for a in along)
        factors = torch.tensor(changes[-len(along) :])
        gradient = torch.autograd.grad(
            x_now, list(first.parameters()), p * (1 + factors[:, None, None, None])
        )
        descend(first, gradient, plan.learning_rate(batch))

    for batch in range(5):
        if batch >= 3:
            update(batch - 3)
        images = inputs.train(0, batch)
        x = first(images).detach().requires_grad_()
        loss = F.cross_entropy(second(x), labels.train(0, batch))
        p, *gradient = torch.autograd.grad(loss, [x, *second.parameters()])
        sent.append((images, x.detach(), p))
        descend(second, gradient, plan.learning_rate(batch))
    for batch in (2, 3, 4):
        update(batch)
    assert max(map(abs, changes)) == 0.25 if strength > 1 else 0 < max(map(abs, changes)) < 0.25
    assert far(engine.state(), [first, second], atol=1e-6) == []


def test_evaluation_counts_every_sample_once():
    plan = tiny_plan(num_stages=3, filters={"pool": 2, "cast": "int8"})
    engine = OneProcessEngine(plan)
    engine.run()
    accuracy = engine.evaluate(2)
    module = plan.build_stage_module(0, 5).eval()
    state = engine.state()
    for name, tensor in module.public_tensors():
        tensor.data.copy_(state[f"model.{name}"])
    inputs, labels = open_inputs(plan.config), open_labels(plan.config)
    correct = sum(int((module(inputs.test(b)).argmax(1) == labels.test(b)).sum()) for b in range(2))
    assert accuracy == correct / 15


def _engine(plan, seed=0):
    engine = OneProcessEngine(plan, seed)
    engine.run()
    return engine
