"""The decoupling rules beside delayed gradients: greedy against the reference, and by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from laminar.auxiliary import AuxNet, Classifier, build_auxnet, build_classifier
from laminar.data import open_inputs, open_labels
from laminar.engine import Send
from laminar.errors import ConfigError
from laminar.inference import load_network
from laminar.one_process import OneProcessEngine
from laminar.plan import Plan
from laminar.planning import make_plan
from laminar.repartition import repartition
from laminar.training import training_phase
from tests.own import own_plan
from tests.tiny import descend, differing, far, run_reference, tiny_plan, write_run

INT8 = {"pool": 2, "cast": "int8"}


def greedy_plan(num_batches: int = 6, **changes: Any) -> Plan:
    phases = [{"phase": phase, "epochs": 1} for phase in ("parallel", "correction", "parallel")]
    return tiny_plan(
        num_batches,
        **{"method": "greedy", "num_stages": 3, "epochs": 3, "phases": phases, **changes},
    )


def run_engine(plan: Plan, seed: int = 0) -> OneProcessEngine:
    engine = OneProcessEngine(plan, seed)
    engine.run()
    return engine


@pytest.mark.parametrize(
    "changes",
    [
        {"num_stages": 1},
        {"num_stages": 2, "filters": INT8, "parallel": {"micro_batches": 4}},
        {"filters": {"cast": "fp16"}, "ema": {"decay": 0.9}, "optimizer": {"clip_norm": 0.1}},
        {
            "num_stages": 4,
            "parallel": {"micro_batches": 4, "shrink": 0.5},
            "optimizer": {"name": "adamw"},
            "precision": {"compute": "bf16", "memory_format": "channels_last"},
        },
        {
            "num_stages": 2,
            "model": {"name": "wrn10_1", "width": 4, "dropout": 0.3},
            "parallel": {"micro_batches": 1, "hop_delay": 2},
            "loss": {"label_smoothing": 0.1},
        },
    ],
)
def test_greedy_engine_equals_reference(changes: dict[str, Any]):
    plan = greedy_plan(8 if "hop_delay" in changes.get("parallel", {}) else 6, **changes)
    expected = run_reference(plan).state()
    assert differing(expected, run_engine(plan, seed=3).state()) == []
    names = {name for name in expected if name.startswith("model.auxiliary.")}
    assert {int(name.split(".")[2]) for name in names} == set(plan.bounds[1:-1])
    plain = plan.config.model_copy(update={"method": "delayed_gradient"})
    late = run_reference(make_plan(plain, plan.problem)).state()
    changed = [n for n in late if n.startswith("model.") and not torch.equal(late[n], expected[n])]
    assert bool(changed) == (plan.config.num_stages > 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_stages": 1},
        {"num_stages": 2, "filters": INT8, "parallel": {"micro_batches": 4}},
        {"filters": {"cast": "fp16", "pool": 3}, "ema": {"decay": 0.9}},
        {
            "num_stages": 4,
            "parallel": {"micro_batches": 4, "order": "backward_first", "shrink": 0.5},
            "optimizer": {"name": "adamw", "clip_norm": 0.1},
            "precision": {"compute": "bf16", "memory_format": "channels_last"},
        },
        {
            "num_stages": 2,
            "model": {"name": "wrn10_1", "width": 4, "dropout": 0.3},
            "parallel": {"micro_batches": 1, "hop_delay": 2, "lookahead": False},
        },
    ],
)
def test_auxnet_engine_equals_reference(changes: dict[str, Any]):
    num = 8 if "hop_delay" in changes.get("parallel", {}) else 6
    plan = greedy_plan(num, method="auxnet", **changes)
    expected = run_reference(plan).state()
    assert differing(expected, run_engine(plan, seed=3).state()) == []
    names = {name for name in expected if name.startswith("model.auxnet.")}
    assert {int(name.split(".")[2]) for name in names} == set(plan.bounds[1:-1])


def test_auxnet_by_hand():
    """K=2, M=1, d=1: the last stage at once, the first and the network a batch later."""
    plan = greedy_plan(
        num_stages=2,
        cuts=[3],
        method="auxnet",
        filters={},
        parallel={"micro_batches": 1, "lookahead": False},
        epochs=1,
        phases=[{"phase": "parallel", "epochs": 1}],
        optimizer={"momentum": 0.0, "weight_decay": 0.0},
        schedule={"warmup_epochs": 0},
    )
    first, second = plan.build_stage_module(0, 3), plan.build_stage_module(3, 5)
    network = build_auxnet(plan, 3)
    inputs, labels = open_inputs(plan.config), open_labels(plan.config)
    late: list[Any] = []
    for batch in range(7):
        if batch < 6:
            x = inputs.train(0, batch)
            with torch.no_grad():
                lam = network(x)
            lam.requires_grad_()
            sent = first(x)
            loss = F.cross_entropy(second(lam), labels.train(0, batch))
            p, *gradient = torch.autograd.grad(loss, [lam, *second.parameters()])
            descend(second, gradient, plan.learning_rate(batch))
            # Differentiated at the weights of the forward, applied after the next one.
            late.append((torch.autograd.grad(sent, list(first.parameters()), p), x, sent, p))
        if batch > 0:
            gradient, x, sent, p = late.pop(0)
            descend(first, gradient, plan.learning_rate(batch - 1))
            error = (network(x) - (sent.detach() - 8 * p)).square().mean()
            fitted = torch.autograd.grad(error, list(network.parameters()))
            descend(network, fitted, plan.learning_rate(batch - 1))
    assert far(run_engine(plan).state(), [first, second, network], atol=1e-5) == []


def test_greedy_by_hand():
    """Two networks that ordinary backprop trains apart: blocks 0..2 with a classifier, the rest."""
    plan = greedy_plan(
        num_stages=2,
        cuts=[3],
        filters={},
        parallel={"micro_batches": 1},
        epochs=1,
        phases=[{"phase": "parallel", "epochs": 1}],
    )
    first, second = plan.build_stage_module(0, 3), plan.build_stage_module(3, 5)
    classifier = build_classifier(plan, 3)
    o = plan.config.optimizer
    rules = {"momentum": o.momentum, "weight_decay": o.weight_decay}
    parts = [nn.Sequential(first, classifier), second]
    optimizers = [torch.optim.SGD(part.parameters(), lr=o.lr, **rules) for part in parts]
    inputs, labels = open_inputs(plan.config), open_labels(plan.config)
    for batch in range(6):
        x, y = inputs.train(0, batch), labels.train(0, batch)
        sent = first(x)
        losses = F.cross_entropy(classifier(sent), y), F.cross_entropy(second(sent.detach()), y)
        for loss, optimizer in zip(losses, optimizers, strict=True):
            optimizer.param_groups[0]["lr"] = plan.learning_rate(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    state = run_engine(plan).state()
    for module in (first, second, classifier):
        for name, tensor in module.public_tensors():
            assert torch.equal(state[f"model.{name}"], tensor), name


def test_no_adjoint_crosses_a_cut():
    plan = greedy_plan(num_stages=2)
    engine = OneProcessEngine(plan)
    program = training_phase(engine.stages[0], plan.segments[0], engine.inputs[0], engine.labels[0])
    steps = list(program)  # it asks for nothing
    sent = [step for step in steps if isinstance(step, Send)]
    assert [step.direction for step in sent] == ["forward"] * len(sent)
    assert len(sent) == 6 * plan.config.parallel.micro_batches


def test_the_small_networks_by_their_shapes():
    images, features = Classifier((8, 10, 12), 5), Classifier((8,), 5)
    assert images(torch.rand(3, 8, 10, 12)).shape == features(torch.rand(3, 8)).shape == (3, 5)
    sizes = [tuple(p.shape) for n, p in images.named_parameters() if n.endswith("weight")]
    linear = [(32, 32), (32,)] * 3
    assert sizes == [(8, 8, 1, 1), (8,)] * 3 + [*linear, (5, 32)]
    one, other = (build_classifier(tiny_plan(seed=seed), 2) for seed in (0, 1))
    assert not torch.equal(next(one.parameters()), next(other.parameters()))
    for size, wanted, num in ((8, 8, 1), (8, 4, 2), (9, 5, 2), (32, 8, 3), (8, 3, 2), (8, 1, 4)):
        made = AuxNet((3, size, size), (6, wanted, wanted))
        assert made(torch.rand(2, 3, size, size)).shape == (2, 6, wanted, wanted)
        assert sum(isinstance(m, nn.Conv2d) for m in made.modules()) == num + 1
    again = build_classifier(tiny_plan(num_stages=3), 2)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))


def test_classifiers_go_by_boundary_when_the_cuts_move():
    plan = greedy_plan(num_stages=3, cuts=[2, 3])
    state = run_engine(plan).state()
    other = make_plan(repartition(plan, 3, (1, 3)), plan.problem)
    moved = OneProcessEngine(other, is_new=False)
    for stage in moved.stages:
        stage.load_state(state)
    found = moved.state()
    shared = found.keys() & state.keys()
    assert differing({n: found[n] for n in shared}, {n: state[n] for n in shared}) == []
    assert any("auxiliary.3." in name for name in shared)
    fresh = {f"model.{n}": t.detach() for n, t in build_classifier(other, 1).public_tensors()}
    assert differing(fresh, {n: t for n, t in found.items() if "model.auxiliary.1." in n}) == []
    moved.train(other.segments[-1])


def test_what_is_evaluated_and_exported_has_no_classifier(tmp_path: Path):
    plan = greedy_plan(num_stages=2, epochs=1, phases=[{"phase": "parallel", "epochs": 1}])
    write_run(tmp_path, plan)
    network = load_network(tmp_path)
    names = [name for name, _ in network.module.blocks.public_tensors()]
    assert names
    assert not any("auxiliary" in name for name in names)
    engine = run_engine(plan)
    images, labels = open_inputs(plan.config), open_labels(plan.config)
    correct = sum(
        int((network.module.blocks(images.test(b)).argmax(1) == labels.test(b)).sum())
        for b in range(2)
    )
    assert engine.evaluate(2) == correct / 15


def test_features_can_be_classified_and_sequences_cannot():
    plan = own_plan(method="greedy")
    assert differing(run_reference(plan).state(), run_engine(plan).state()) == []
    blocks = {
        "stem": lambda: nn.Sequential(nn.Linear(5, 6), nn.Unflatten(1, (2, 3))),
        "head": lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 3)),
    }
    with pytest.raises(ConfigError, match=r"\[C, H, W\] or \[F\] on .* \(got shape \[2, 3\]"):
        own_plan({"blocks": lambda problem: blocks}, method="greedy")
    with pytest.raises(ConfigError, match=r"method auxnet must have .*got shape \[6\]"):
        own_plan(method="auxnet")


def test_exact_is_the_correction_phase_all_along():
    plan = tiny_plan(method="exact", num_stages=3)
    assert [s.phase for s in plan.segments] == ["correction"] * plan.config.epochs
    assert plan.parallel_fraction == 0
    assert make_plan(plan.config, plan.problem) == plan
    phases = [{"phase": "correction", "epochs": 2}]
    expected = run_engine(tiny_plan(num_stages=3, phases=phases)).state()
    assert differing(expected, run_engine(plan).state()) == []
    with pytest.raises(ConfigError, match="must sum to"):
        tiny_plan(method="exact", phases=[{"phase": "parallel", "epochs": 1}])
