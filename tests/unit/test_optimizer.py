"""Schedules, look-ahead, clipping and averages against torch's own and by hand."""

import pytest
import torch

from laminar.config import (
    AdamWConfig,
    CosineConfig,
    LinearConfig,
    OneCycleConfig,
    SgdConfig,
    StepConfig,
)
from laminar.learning_rate import learning_rate
from laminar.optimizer import STATE_FIELDS, Optimizer, clip, ema_decay, lookahead


def rates(schedule, num_batches=6, batches_per_epoch=2):
    size = {"num_batches": num_batches, "batches_per_epoch": batches_per_epoch}
    return [learning_rate(schedule, b, peak=1.0, **size) for b in range(num_batches)]


def test_learning_rates_by_hand():
    cosine = [0.5, 1.0, 1.0, 0.8535533906, 0.5, 0.1464466094]
    assert rates(CosineConfig()) == pytest.approx(cosine)
    assert rates(LinearConfig()) == pytest.approx([0.5, 1.0, 1.0, 0.75, 0.5, 0.25])
    line = LinearConfig(warmup_epochs=0, final_fraction=0.4)
    assert rates(line, 4) == pytest.approx([1.0, 0.85, 0.7, 0.55])
    step = StepConfig(milestones=(1.5, 2.5), gamma=0.2)
    assert rates(step) == pytest.approx([0.5, 1.0, 1.0, 0.2, 0.2, 0.04])


@pytest.mark.parametrize("num_batches", [7, 50])
@pytest.mark.parametrize("rise", [0.3, 0.5])
def test_one_cycle_is_that_of_torch(num_batches, rise):
    weight = torch.zeros(1, requires_grad=True)
    sgd = torch.optim.SGD([weight], lr=1.0)
    torchs = torch.optim.lr_scheduler.OneCycleLR(
        sgd, 1.0, num_batches, pct_start=rise, cycle_momentum=False, final_div_factor=100.0
    )
    expected = []
    for _ in range(num_batches):
        expected += torchs.get_last_lr()
        sgd.step()
        if len(expected) < num_batches:
            torchs.step()
    found = rates(OneCycleConfig(rise=rise, final_divisor=100.0), num_batches)
    assert found == pytest.approx(expected)
    assert found[-1] == pytest.approx(1 / 25 / 100)


@pytest.mark.parametrize("schedule", [CosineConfig(), LinearConfig(), OneCycleConfig()])
@pytest.mark.parametrize("num_batches", [1, 2, 3])
def test_the_shortest_runs_have_a_rate(schedule, num_batches):
    assert all(0 <= rate <= 1 for rate in rates(schedule, num_batches, num_batches))


OPTIMIZERS = {
    "sgd": SgdConfig(momentum=0.8, weight_decay=0.0),
    "nesterov": SgdConfig(momentum=0.8, weight_decay=0.0, nesterov=True),
    "adamw": AdamWConfig(weight_decay=0.0, beta2=0.9, eps=1e-3),
    "adamw without momentum": AdamWConfig(weight_decay=0.0, beta1=0.0),
}


@pytest.mark.parametrize("config", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("updates", [1, 4])
@pytest.mark.parametrize("s", [0, 1, 2, 5])
def test_lookahead_is_where_the_moments_alone_would_go(config, updates, s):
    w = torch.randn(7, dtype=torch.float64, requires_grad=True)
    optimizer = Optimizer([w], config)
    for _ in range(updates):
        optimizer.step([torch.randn(7, dtype=torch.float64)], config.lr)
    assert tuple(optimizer.state[w]) == STATE_FIELDS[config.name]
    before = w.detach().clone()
    ahead = lookahead(w, optimizer.state[w], config, lr=config.lr, s=s)
    for _ in range(s):
        optimizer.step([torch.zeros_like(w)], config.lr)
    assert torch.allclose(ahead, w.detach(), rtol=1e-12, atol=0)
    assert not ahead.requires_grad
    assert ahead.data_ptr() != w.data_ptr()
    moves = s > 0 and getattr(config, "beta1", 1) > 0
    assert torch.equal(before, ahead) == (not moves)


def test_before_the_first_update_the_weights_head_nowhere():
    w = torch.randn(3, requires_grad=True)
    ahead = lookahead(w, {}, AdamWConfig(), lr=1.0, s=3)
    assert torch.equal(ahead, w)
    assert ahead.data_ptr() != w.data_ptr()


@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_clipping_is_that_of_torch(max_norm):
    gradients = [torch.randn(3, 4), torch.randn(5)]
    parameters = [torch.zeros_like(g, requires_grad=True) for g in gradients]
    for parameter, g in zip(parameters, gradients, strict=True):
        parameter.grad = g.clone()
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    for parameter, g in zip(parameters, clip(gradients, max_norm), strict=True):
        assert torch.allclose(parameter.grad, g)
    norm = torch.cat([g.flatten() for g in clip(gradients, max_norm)]).norm()
    assert norm <= max_norm


def test_clipping_scales_a_gradient_that_two_parameters_share_once():
    g = torch.tensor([3.0])
    assert torch.cat(clip([g, g], 1.0)).norm().item() == pytest.approx(1.0, rel=1e-5)
    assert g.item() == 3.0


def test_decay_of_averages_by_hand():
    assert ema_decay(0.9, 0) == 2 / 11
    assert ema_decay(0.9, 8) == 10 / 19
    assert ema_decay(0.9, 1000) == 0.9
