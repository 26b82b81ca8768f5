"""The methods of the parallel phase against each other."""

from __future__ import annotations

import pytest
import torch

from laminar.data import open_inputs, open_labels
from laminar.one_process import OneProcessEngine
from laminar.reference import Reference
from tests.tiny import differing, run_reference, tiny_plan


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

    def backward(self, k, graph, adjoint, gradient, factor):
        if adjoint is not None:
            x = self.filters[k].encode(graph[0].detach())[0]
            p = adjoint[0] / self.scale
            kappa = torch.zeros_like(p)
            if self.plan.config.method == "augmented_lagrangian":
                kappa = p.abs().mean() * torch.randn(p.shape, generator=self.generator)
            lam = x + (kappa - p) / self.rho
            adjoint = ((kappa + self.rho * (x - lam)) * self.scale,)
            self.num_formed += 1
        return super().backward(k, graph, adjoint, gradient, factor)


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
