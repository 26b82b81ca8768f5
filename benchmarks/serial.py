"""Serial baseline: ordinary backprop in plain torch, one process, same data, batch and schedule."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from laminar.blocks import BlockSequence
from laminar.config import AdamWConfig, Config, OptimizerConfig
from laminar.data import (
    SampleIndices,
    describe,
    open_inputs,
    open_labels,
    with_absolute_paths,
)
from laminar.dropout import Samples
from laminar.networks import build_blocks
from laminar.plan import Plan
from laminar.planning import make_plan
from laminar.tally import Tally


def train_serial(config: Config, num_threads: int) -> list[dict[str, Any]]:
    """Train without cuts, filters, micro-batches or averages; return one metrics line an epoch.

    The weights start where the layer-parallel run's start, and every batch is the same.
    """
    torch.set_num_threads(num_threads)
    config = with_absolute_paths(config)
    plan = make_plan(config, describe(config.data))
    problem = plan.problem
    blocks = build_blocks(
        config.model,
        in_channels=problem.image_shape[0],
        num_classes=problem.num_classes,
        seed=config.seed,
    )
    network = BlockSequence(blocks, first=0, filters={}, adjoint_scale=1.0)
    indices = SampleIndices(config, problem.num_train)
    optimizer = torch_optimizer(network.parameters(), config.optimizer)
    inputs, labels = open_inputs(config), open_labels(config)
    lines = []
    for epoch in range(config.epochs):
        started, tally = time.perf_counter(), Tally()
        network.train()
        for batch in range(plan.batches_per_epoch):
            x, y = inputs.train(epoch, batch), labels.train(epoch, batch)
            network.set_samples(Samples(config.seed, epoch, indices.train(epoch, batch)))
            logits = network(x)
            loss = plan.loss.train(logits, y)
            optimizer.zero_grad()
            loss.backward()
            if config.optimizer.clip_norm is not None:
                nn.utils.clip_grad_norm_(network.parameters(), config.optimizer.clip_norm)
            optimizer.param_groups[0]["lr"] = plan.learning_rate(
                epoch * plan.batches_per_epoch + batch
            )
            optimizer.step()
            tally.add(logits.detach(), y, loss.detach())
        seconds = time.perf_counter() - started
        lines.append(
            {
                "epoch": epoch + 1,
                **{f"train_{name}": value for name, value in tally.means().items()},
                "seconds": {"serial": seconds},
                "samples_per_s": tally.num_samples / seconds,
                **_test(network, plan, inputs, labels),
            }
        )
        print(f"epoch {epoch + 1}: test accuracy {lines[-1]['test_accuracy']:.4f}", flush=True)
    return lines


def torch_optimizer(parameters: Iterable[Tensor], config: OptimizerConfig) -> torch.optim.Optimizer:
    """Return torch's own optimiser of these settings; the caller sets `lr` at every update."""
    parameters = list(parameters)
    on_gpu = any(p.is_cuda for p in parameters)
    if isinstance(config, AdamWConfig):
        return torch.optim.AdamW(
            parameters,
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            weight_decay=config.weight_decay,
            foreach=on_gpu,
        )
    return torch.optim.SGD(
        parameters,
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.nesterov,
        foreach=on_gpu,
    )


@torch.no_grad()
def _test(network: nn.Module, plan: Plan, inputs: Any, labels: Any) -> dict[str, float]:
    network.eval()
    tally = Tally()
    for batch in range(plan.num_test_batches):
        logits, y = network(inputs.test(batch)), labels.test(batch)
        tally.add_test(logits, y, plan.loss.test(logits, y))
    return {f"test_{name}": value for name, value in tally.means().items()}
