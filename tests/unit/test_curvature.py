"""Adjoints corrected for where a stage's output has moved."""

import pytest
import torch

from laminar.curvature import MAX_CHANGE, moved_adjoint
from laminar.stage import Stage
from laminar.visit import Again
from tests.tiny import tiny_plan


def test_by_hand():
    """Two samples of a batch of four; <g, dx> is 4 (.01 - .04) and 4 (.02 + .02)."""
    p = torch.tensor([[0.1, 0.2], [0.1, -0.1]])
    dx = torch.tensor([[0.1, -0.2], [0.2, -0.2]])
    found = moved_adjoint(p, dx, 4, strength=1.0)
    assert torch.allclose(found, torch.tensor([[0.088, 0.176], [0.116, -0.116]]))
    assert torch.equal(moved_adjoint(p, dx, 4, strength=0.0), p)
    clipped = moved_adjoint(p, dx, 4, strength=100.0)
    assert torch.allclose(clipped, p * torch.tensor([[1 - MAX_CHANGE], [1 + MAX_CHANGE]]))


@pytest.mark.parametrize("shape", [(5, 3), (5, 2, 3, 3)])
def test_exact_to_first_order_where_the_curvature_is_the_outer_product(shape):
    """Of loss -log(c - <a, x>) it is: the error falls with the square of dx, without with dx."""
    rng = torch.Generator().manual_seed(0)
    a, x, dx = (torch.randn(shape, generator=rng, dtype=torch.float64) for _ in range(3))

    def adjoint(x):
        inner = (a * x).flatten(1).sum(1)
        room = (20 - inner).view(-1, *[1] * (x.dim() - 1))
        return a / room / len(x)

    def errors(step):
        now, moved = adjoint(x + step * dx), moved_adjoint(adjoint(x), step * dx, len(x), 1.0)
        return float((moved - now).norm()), float((adjoint(x) - now).norm())

    (corrected, late), (smaller, less_late) = errors(0.1), errors(0.01)
    assert smaller / corrected == pytest.approx(0.01, rel=0.1)
    assert less_late / late == pytest.approx(0.1, rel=0.1)
    assert corrected < 0.1 * late


def test_a_late_forward_keeps_only_both_ends():
    plan = tiny_plan(parallel={"micro_batches": 1, "curvature": 1.0})
    stage, kept = Stage(plan, 0), []
    x = torch.rand(8, *plan.shapes[0])

    def keep(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        message = stage.forward(0, x, None, num_micro=1, s=1)
        assert kept == []
        assert message is not None
        mean = {n: b.clone() for n, b in stage.module.named_buffers()}
        stage.backward(0, plan.filters[plan.bounds[1]].encode_adjoint(message[0].float(), 1.0))
        assert kept
    assert all(torch.equal(mean[n], b) for n, b in stage.module.named_buffers())


def test_a_block_that_draws_random_numbers_draws_them_again(monkeypatch):
    """A user's own may. At the same weights the output has then not moved."""
    plan = tiny_plan(parallel={"micro_batches": 1, "curvature": 1.0, "lookahead": False})
    stage, seen = Stage(plan, 0), []

    def moved(p, dx, batch_size, strength):
        seen.append(dx)
        return p

    monkeypatch.setattr("laminar.stage.moved_adjoint", moved)
    stage.module.register_forward_hook(lambda module, args, out: out + torch.rand_like(out))
    x = torch.rand(8, *plan.shapes[0])
    outs = []
    for micro in (0, 1):
        outs += stage.forward(micro, x, None, num_micro=1, s=1)
    assert not torch.equal(*outs)
    p = plan.filters[plan.bounds[1]].encode_adjoint(torch.rand(8, *plan.shapes[1]), 1.0)
    for micro in (0, 1):
        stage.backward(micro, p)
    assert [float(dx.abs().max()) for dx in seen] == [0.0, 0.0]


def test_random_numbers_go_on_as_if_none_had_been_drawn_again():
    torch.manual_seed(0)
    again = Again.of(torch.zeros(1), None)
    first, then = torch.rand(3), torch.rand(3)
    torch.manual_seed(0)
    torch.rand(3)
    with again.random_numbers():
        assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.rand(3), then)
