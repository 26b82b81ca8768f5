"""The methods of the parallel phase against each other."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from laminar.curvature import MAX_CHANGE
from laminar.data import open_inputs, open_labels
from laminar.one_process import LedgerEngine, OneProcessEngine
from laminar.reference import Reference
from laminar.store import Store
from tests.tiny import descend, differing, far, run_reference, tiny_plan


def streamed_plan(method="delayed_gradient", pool=2):
    return tiny_plan(
        8,
        num_stages=3,
        method=method,
        filters={"pool": pool, "cast": "fp32"},
        parallel={"micro_batches": 2},
        optimizer={"lr": 0.01},
        phases=[{"phase": phase, "epochs": 1} for phase in ("correction", "parallel")],
    )


class Explicit(Reference):
    """The streamed phase with lambda and kappa written out, which the engine never forms.

    Every sample has a multiplier of its own, which for the penalty method is 0; the stage before
    differentiates <kappa, x> + rho/2 |x - lambda|^2 with the old multiplier and the new lambda.
    """

    def __init__(self, plan, rho):
        super().__init__(plan, open_inputs(plan.config), open_labels(plan.config))
        self.rho = rho
        self.num_formed = 0
        self.generator = torch.Generator().manual_seed(0)

    def backward(self, k, graph, adjoint, gradient, factor, again=None):
        if adjoint is not None:
            x = self.filters[k].encode(graph[0].detach())[0]
            p = adjoint[0] / self.scale
            kappa = torch.zeros_like(p)
            if self.plan.config.method == "augmented_lagrangian":
                kappa = p.abs().mean() * torch.randn(p.shape, generator=self.generator)
            lam = x + (kappa - p) / self.rho
            adjoint = ((kappa + self.rho * (x - lam)) * self.scale,)
            self.num_formed += 1
        return super().backward(k, graph, adjoint, gradient, factor, again)


@pytest.mark.parametrize("method", ["penalty", "augmented_lagrangian"])
@pytest.mark.parametrize("pool", [1, 2])
def test_streamed_methods_are_delayed_gradients(method, pool):
    """With the forward's own weights and eta = 1/rho, for any rho and any multipliers."""
    plan = streamed_plan(method, pool)
    plain = run_reference(streamed_plan(pool=pool)).state()
    engine = OneProcessEngine(plan)
    engine.run()
    assert differing(plain, engine.state()) == []
    explicit = Explicit(plan, rho=1e-3)
    explicit.run()
    assert explicit.num_formed > 0
    for name, tensor in explicit.state().items():
        assert torch.allclose(tensor, plain[name], rtol=1e-3, atol=1e-5), name


WINDOWED = {"window": 3, "sweeps": 3, "step_size": 0.5}
"""Two windows an epoch."""


def stored_plan(method, num_stages=3, stored=WINDOWED, parallel=None, **changes):
    """An exact epoch, a stored one, and one of each."""
    lengths = (("correction", 1.0), ("parallel", 1.5), ("correction", 0.5))
    return tiny_plan(
        7,
        num_stages=num_stages,
        method=method,
        stored=stored,
        parallel={"feed": "stored", **(parallel or {})},
        epochs=3,
        phases=[{"phase": phase, "epochs": epochs} for phase, epochs in lengths],
        **{"correction": {"micro_batches": 2}, "optimizer": {"lr": 0.02}, **changes},
    )


STORED = [
    stored_plan("augmented_lagrangian"),
    stored_plan("penalty"),
    stored_plan("delayed_gradient"),
    stored_plan("penalty", 1),
    stored_plan("augmented_lagrangian", 4, {"window": None, "sweeps": 1}),
    stored_plan("penalty", 2, filters={"pool": 2, "cast": "int8"}, penalty={"ratio": 0.3}),
    stored_plan("penalty", penalty={"name": "fixed", "rho": 0.05}),
    stored_plan(
        "augmented_lagrangian",
        stored={"sweeps": 2, "inner_steps": 2, "momentum": 0.5, "multiplier_step": 0.5},
        penalty={"name": "scheduled", "first": 0.01, "last": 0.1},
    ),
    stored_plan(
        "augmented_lagrangian",
        model={"name": "wrn10_1", "width": 4, "dropout": 0.3},
        optimizer={"name": "adamw", "clip_norm": 1.0},
        ema={"decay": 0.9},
        filters={"pool": 2, "cast": "bf16", "parallel_only": True},
    ),
    stored_plan("delayed_gradient", parallel={"curvature": 4}, filters={"pool": 2, "cast": "int8"}),
    stored_plan("augmented_lagrangian", 2, parallel={"curvature": 4}),
    stored_plan(
        "penalty",
        stored={"window": 3},  # the step size and momentum that come with the method
        data=tiny_plan().config.data.model_dump() | {"mixup": 0.4, "cutout": 3},
        parallel={"augmentation": False},
    ),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(STORED)))
def test_stored_engine_equals_reference(number):
    plan = STORED[number]
    engine = OneProcessEngine(plan, number)
    engine.run()
    state = engine.state()
    assert differing(run_reference(plan).state(), state) == []
    assert all(torch.isfinite(t).all() for t in state.values())


class ByHand:
    """K=2, two batches, plain SGD: what the engine has trained, and its stages before that."""

    def __init__(self, **changes):
        plan = tiny_plan(
            2,
            num_stages=2,
            filters={"pool": 1, "cast": "fp32"},
            correction={"micro_batches": 1},
            epochs=1,
            phases=[{"phase": "parallel", "epochs": 1}],
            optimizer={"lr": 0.05, "momentum": 0.0, "weight_decay": 0.0},
            schedule={"warmup_epochs": 0},
            **changes,
        )
        self.engine = OneProcessEngine(plan)
        self.engine.run()
        self.inputs, self.labels = open_inputs(plan.config), open_labels(plan.config)
        cut = plan.bounds[1]
        self.first, self.second = plan.build_stage_module(0, cut), plan.build_stage_module(cut, 5)
        self.lr = [plan.learning_rate(batch) for batch in range(2)]

    def exact_pass(self):
        """Train it; return x and p of each batch."""
        sent = []
        for batch in range(2):
            x = self.first(self.inputs.train(0, batch))
            leaf = x.detach().requires_grad_()
            F.cross_entropy(self.second(leaf), self.labels.train(0, batch)).backward()
            x.backward(leaf.grad)
            step(self.first, self.lr[batch])
            step(self.second, self.lr[batch])
            sent.append((x.detach(), leaf.grad))
        return sent


@pytest.mark.parametrize("method", ["augmented_lagrangian", "penalty"])
def test_stored_updates_by_hand(method):
    """K=2, two batches, two sweeps: the paper's updates with lambda and kappa of each sample.

    In plain torch: the stage before differentiates its own loss as it is written, at the old
    multiplier and the new lambda, which the engine never does.
    """
    rho, rate, is_penalty = 0.5 / 8, 0.5, method == "penalty"  # rho of a batch of 8
    hand = ByHand(
        method=method,
        penalty={"name": "fixed", "rho": 0.5},
        stored={"sweeps": 2, "step_size": rate},
        parallel={"feed": "stored"},
    )
    first, second, inputs, labels, lr = hand.first, hand.second, hand.inputs, hand.labels, hand.lr
    sent = hand.exact_pass()
    lams = [x - p / rho if is_penalty else x for x, p in sent]
    kappas = [torch.zeros_like(p) if is_penalty else p for _, p in sent]
    olds = list(kappas)
    for _ in range(2):  # sweeps; what a stage needs of its neighbour is of the sweep before
        for batch in range(2):
            lam = lams[batch].requires_grad_()
            F.cross_entropy(second(lam), labels.train(0, batch)).backward()
            step(second, rate * lr[batch])
            x = first(inputs.train(0, batch))
            distance = (x - lam.detach()).square().sum()
            ((olds[batch] * x).sum() + rho / 2 * distance).backward()
            step(first, rate * lr[batch])
            x, kappa = x.detach(), kappas[batch]
            lams[batch] = x + (kappa - lam.grad) / rho
            if not is_penalty:
                kappas[batch] = kappa + rho * (x - lams[batch])
            olds[batch] = kappa
    assert far(hand.engine.state(), [first, second], atol=1e-5) == []


def test_stored_curvature_by_hand():
    """A visit of the stage before descends <p, x> + B c/2 <p, x - x_sent>^2 of each sample."""
    strength, rate = 0.5, 0.5
    parallel = {"feed": "stored", "curvature": strength}
    hand = ByHand(stored={"step_size": rate}, parallel=parallel)
    first, second, inputs, labels, lr = hand.first, hand.second, hand.inputs, hand.labels, hand.lr
    sent = hand.exact_pass()
    for batch, (x_sent, p) in enumerate(sent):  # visits
        F.cross_entropy(second(x_sent), labels.train(0, batch)).backward()
        step(second, rate * lr[batch])
        x = first(inputs.train(0, batch))
        along = (p * (x - x_sent)).flatten(1).sum(1)
        assert 1e-4 < float(strength * 8 * along.detach().abs().max()) < MAX_CHANGE
        ((p * x).sum() + 8 * strength / 2 * along.square().sum()).backward()
        step(first, rate * lr[batch])
    assert far(hand.engine.state(), [first, second], atol=1e-5) == []
    plain = ByHand(stored={"step_size": rate}, parallel={"feed": "stored"})
    assert differing(plain.engine.state(), hand.engine.state())


def step(module, lr):
    """Descend the gradient that autograd has left, and forget it."""
    descend(module, [parameter.grad for parameter in module.parameters()], lr)
    module.zero_grad()


def test_stored_methods_differ():
    states = [run_reference(plan).state() for plan in STORED[:3]]
    for one, other in itertools.combinations(states, 2):
        assert differing(one, other)


def test_files_hold_what_memory_holds(tmp_path, monkeypatch):
    stores = []

    class Seen(Store):
        def __init__(self, *args):
            super().__init__(*args)
            stores.append(self)

    monkeypatch.setattr("laminar.stored.Store", Seen)
    stored = {**WINDOWED, "memory_limit_mb": 0, "scratch_dir": str(tmp_path)}
    engine = OneProcessEngine(stored_plan("augmented_lagrangian", stored=stored))
    engine.run()
    assert differing(run_reference(STORED[0]).state(), engine.state()) == []
    assert {store.memory_bytes for store in stores} == {0}
    assert all(store.file_bytes > 0 for store in stores)
    assert list(tmp_path.iterdir()) == []


def test_a_stored_run_resumed_equals_an_unbroken_one():
    """Nothing of a window outlives its epoch."""
    plan = stored_plan("augmented_lagrangian")
    first, second = OneProcessEngine(plan), OneProcessEngine(plan, seed=5)
    for segment in (s for s in plan.segments if s.epoch < 2):
        first.train(segment)
    state = first.state()
    for stage in second.stages:
        stage.load_state(state)
    for segment in (s for s in plan.segments if s.epoch == 2):
        second.train(segment)
    assert differing(run_reference(plan).state(), second.state()) == []


def test_batch_norm_sees_each_visit_once():
    """An exact epoch of 7 batches, 11 stored ones, 3 exact ones; two micro-batches each."""
    stored = {"sweeps": 2, "inner_steps": 2}
    engine = OneProcessEngine(stored_plan("augmented_lagrangian", stored=stored))
    engine.run()
    num_parallel = 11
    expected = 2 * (21 + 2 * num_parallel)
    assert sum(s.num_batches for s in engine.plan.segments if s.phase == "parallel") == num_parallel
    counts = {int(t) for n, t in engine.state().items() if n.endswith("num_batches_tracked")}
    assert counts == {expected}
    assert engine.plan.parallel_fraction == 2 * num_parallel / (21 + 2 * num_parallel)
    assert engine.stages[-1].tally.num_samples == 21 * engine.plan.config.batch_size


def test_only_samples_of_the_phase_are_varied():
    plan = STORED[-1]
    inputs, labels = open_inputs(plan.config), open_labels(plan.config)
    assert not torch.equal(inputs.train(0, 0), inputs.train(0, 0, False))
    assert labels.train(0, 0).shape == (8, 4)
    assert labels.train(0, 0, False).dtype == torch.int64
    plain = tiny_plan(
        7,
        data=plan.config.data.model_dump()
        | {"mixup": 0.0, "cutout": 0, "crop_padding": 0, "flip": False},
    )
    assert torch.equal(inputs.train(0, 0, False), open_inputs(plain.config).train(0, 0))


class Probed(LedgerEngine):
    """Measures the cuts on the fourth micro-batch of each phase, too."""

    def _drive(self, program):
        for stage in self._measured[:-1]:
            stage._probed_micro = 3
        super()._drive(program)


@pytest.mark.parametrize("number", [0, 1])
def test_measuring_a_stored_phase_changes_nothing(number):
    plan = STORED[number]
    engine = Probed(plan)
    violations = []
    for segment in plan.segments:
        engine.train(segment)
        exactness = [applied.exactness() for applied in engine.applied]
        cuts = [stage.cut for stage in engine._measured[:-1]]
        if segment.phase == "parallel":
            violations += [cut.violation for cut in cuts]
            assert exactness[0].relative_error > 0
        else:
            assert all(cut.violation == 0 for cut in cuts)
            assert all(e.relative_error == 0 for e in exactness)
    assert all(0 < violation < 2 for violation in violations)
    assert differing(run_reference(plan).state(), engine.state()) == []
