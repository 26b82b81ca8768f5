"""The updates of lambda, kappa and rho against hand-computed values and closed forms."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from laminar.config import BalancedPenalty, Config, FixedPenalty, ScheduledPenalty
from laminar.constraints import (
    auxiliary,
    balanced_penalty,
    chosen_penalty,
    constraint_gradient,
    multiplier,
    offset,
)
from laminar.data import open_inputs
from laminar.filters import unpack
from laminar.stage import Stage
from tests.tiny import tiny_plan


def test_updates_by_hand():
    x, kappa, p = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.0]), torch.tensor([0.25, -1.0])
    rho = 0.5
    lam = auxiliary(x, kappa, p, rho)
    assert lam.tolist() == [1.5, 4.0]
    # The gradient step of arXiv 2009.01462v2 from any lambda, with eta = 1/rho.
    before = torch.tensor([7.0, -3.0])
    assert lam.tolist() == (before - (rho * (before - x) - kappa + p) / rho).tolist()
    assert auxiliary(x, 0.0, p, rho).tolist() == [0.5, 4.0]
    assert (kappa + rho * (x - lam)).tolist() == multiplier(kappa, p, 1.0).tolist() == p.tolist()
    assert multiplier(kappa, p, 0.5).tolist() == [0.375, -0.5]
    assert constraint_gradient(p, x + 1.0, x, rho).tolist() == [0.75, -0.5]
    assert (kappa + rho * (x + 1.0 - lam)).tolist() == [0.75, -0.5]
    assert offset(kappa, p, 0.0).tolist() == [0.0, 0.0]


def test_the_order_of_the_updates_matters():
    """With (kappa_old, lambda_new) the gradient at x is p; with (kappa_new, .) 2p - kappa_old."""
    x, kappa, p = (torch.randn(5, dtype=torch.float64) for _ in range(3))
    lam = auxiliary(x, kappa, p, 0.3)
    new = multiplier(kappa, p, 1.0)
    assert torch.allclose(kappa + 0.3 * (x - lam), p)
    assert torch.allclose(new + 0.3 * (x - lam), 2 * p - kappa)


def test_rho_by_hand():
    p, x, sent = torch.tensor([3.0, 4.0]), torch.tensor([10.0, 0.0]), torch.tensor([10.0, 2.0])
    assert balanced_penalty(p, x, sent, 1.0) == 2.5
    assert balanced_penalty(p, x, sent, 0.5) == 1.25
    # What did not move is taken for having moved by a thousandth, and nothing for nothing.
    assert balanced_penalty(p, x, x, 1.0) == pytest.approx(500.0)
    assert balanced_penalty(p, 0 * x, 0 * x, 1.0) == 0.0
    assert chosen_penalty(FixedPenalty(name="fixed", rho=0.5), 3, 10) == 0.5
    rising = ScheduledPenalty(name="scheduled", first=0.01, last=1.0)
    assert [chosen_penalty(rising, batch, 10) for batch in (0, 5, 10)] == pytest.approx(
        [0.01, 0.1, 1.0]
    )


class _Constraint(torch.autograd.Function):
    """<kappa, x> + rho/2 |x - lambda|^2 with the gradient that is sent to it."""

    @staticmethod
    def forward(ctx, x, kappa, p, x_sent, rho):
        ctx.save_for_backward(x, p, x_sent)
        ctx.rho = rho
        lam = auxiliary(x_sent, kappa, p, rho)
        return (kappa * x).sum() + rho / 2 * (x - lam).square().sum()

    @staticmethod
    def backward(ctx, g):
        x, p, x_sent = ctx.saved_tensors
        return g * constraint_gradient(p, x, x_sent, ctx.rho), None, None, None, None


def test_the_constraint_gradient_is_one():
    x, kappa, p, x_sent = (torch.randn(2, 3, dtype=torch.float64) for _ in range(4))
    arguments = (x.requires_grad_(), kappa, p, x_sent, 0.7)
    assert torch.autograd.gradcheck(_Constraint.apply, arguments)


@pytest.mark.parametrize("pool", [1, 2])
def test_a_stage_descends_its_own_loss(pool):
    """Through the filter, against autograd of the loss as it is written."""
    plan = tiny_plan(
        num_stages=2, filters={"pool": pool, "cast": "fp32"}, correction={"micro_batches": 1}
    )
    stage, images = Stage(plan, 0), open_inputs(plan.config).train(0, 0)
    weights = {n: p.detach().clone() for n, p in stage.module.named_parameters()}
    x = stage.forward(0, images, None, num_micro=1)
    p, x_sent, kappa = (0.01 * torch.randn(x[0].shape) for _ in range(3))
    rho = 0.05
    pull = constraint_gradient(p, unpack(x), x_sent, rho)
    stage.backward(0, (pull * stage._scale,))
    found = stage.take_gradient()

    lam = auxiliary(x_sent, kappa, p, rho)
    leaves = {n: w.requires_grad_() for n, w in weights.items()}
    y = functional_call(stage.module, leaves, (images,))
    y = F.avg_pool2d(y, pool)
    loss = (kappa * y).sum() + rho / 2 * (y - lam).square().sum()
    for expected, gradient in zip(
        torch.autograd.grad(loss, list(leaves.values())), found, strict=True
    ):
        assert torch.allclose(gradient, expected, rtol=1e-3, atol=1e-5)


def linear_problem():
    """x = W u, phi = 1/2 |V x - y|^2 over more samples than W can fit, with its solution."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    u, y, v = randn(3, 12), randn(2, 12), torch.eye(2, dtype=torch.float64) + 0.3 * randn(2, 2)
    w = torch.linalg.solve(v, y @ u.T @ torch.linalg.inv(u @ u.T))
    return u, y, v, w


STEP_SIZE = 0.004


def sweep(rho, multiplier_step=1.0):
    """Solve the linear problem by the augmented Lagrangian; return w, lambda and kappa."""
    u, y, v, _ = linear_problem()
    w = torch.zeros(2, 3, dtype=torch.float64)
    x_sent = w @ u
    lam, p = x_sent, v.T @ (v @ x_sent - y)
    kappa = torch.zeros_like(p)
    for _ in range(5000):
        x = w @ u
        pull = constraint_gradient(p, x, x_sent, rho)
        p = v.T @ (v @ lam - y)
        w = w - STEP_SIZE * pull @ u.T
        lam, kappa, x_sent = auxiliary(x, kappa, p, rho), multiplier(kappa, p, multiplier_step), x
    return w, lam, kappa


@pytest.mark.parametrize("multiplier_step", [1.0, 0.5])
@pytest.mark.parametrize("share", [0.9, 1.1])
def test_what_penalties_converge(share, multiplier_step):
    """Above 2h / (2 - multiplier_step) and below one over the step before it, by ten per cent."""
    u, _, v, w_best = linear_problem()
    h, before = (torch.linalg.eigvalsh(m).max() for m in (v.T @ v, STEP_SIZE * u @ u.T))
    for rho, is_inside in (
        (share * 2 * h / (2 - multiplier_step), share > 1),
        (share / before, share < 1),
    ):
        w, _, _ = sweep(rho, multiplier_step)
        assert torch.allclose(w, w_best, atol=1e-6) == is_inside


@pytest.mark.parametrize("rho", [3.0, 6.0])
def test_multipliers_converge_to_the_adjoint(rho):
    """Augmented Lagrangian on a linear network: kappa = p, lambda = x, W the least squares."""
    u, y, v, w_best = linear_problem()
    w, lam, kappa = sweep(rho)
    assert torch.allclose(w, w_best, atol=1e-6)
    adjoint = v.T @ (v @ (w_best @ u) - y)
    assert adjoint.norm() > 1
    assert torch.allclose(kappa, adjoint, atol=1e-6)
    assert torch.allclose(lam, w_best @ u, atol=1e-6)


def test_the_penalty_method_stays_off_the_constraint_by_p_over_rho():
    u, y, v, _ = linear_problem()
    rho, w = 3.0, torch.zeros(2, 3, dtype=torch.float64)
    x_sent = w @ u
    p = v.T @ (v @ x_sent - y)
    lam = auxiliary(x_sent, 0.0, p, rho)
    for _ in range(5000):
        x = w @ u
        pull = constraint_gradient(p, x, x_sent, rho)
        p = v.T @ (v @ lam - y)
        w = w - STEP_SIZE * pull @ u.T
        lam, x_sent = auxiliary(x, 0.0, p, rho), x
    # In closed form: p = V^T (V (x - p / rho) - y) and p u^T = 0.
    v2 = v.T @ v
    a = torch.linalg.inv(torch.eye(2, dtype=torch.float64) + v2 / rho)
    assert torch.allclose(p, a @ (v2 @ x_sent - v.T @ y), atol=1e-6)
    assert (p @ u.T).norm() < 1e-6
    assert torch.allclose((lam - x_sent).norm(), p.norm() / rho)


def stored_config(method, **changes):
    return Config.model_validate({"method": method, "parallel": {"feed": "stored"}, **changes})


def visit_settings(config):
    assert isinstance(config.penalty, BalancedPenalty)
    return config.penalty_ratio(config.penalty), config.visit_step_size(), config.visit_momentum()


def test_each_method_has_its_own_defaults_and_what_is_given_goes_first():
    assert visit_settings(stored_config("augmented_lagrangian")) == (1.0, 1.0, None)
    assert visit_settings(stored_config("delayed_gradient")) == (1.0, 1.0, None)
    assert visit_settings(stored_config("penalty")) == (3.0, 0.3, 0.0)
    adamw = stored_config("penalty", optimizer={"name": "adamw"})
    assert visit_settings(adamw) == (3.0, 0.3, None)
    given = {"penalty": {"ratio": 2.0}, "stored": {"step_size": 0.5, "momentum": 0.9}}
    for method in ("augmented_lagrangian", "penalty"):
        assert visit_settings(stored_config(method, **given)) == (2.0, 0.5, 0.9)
