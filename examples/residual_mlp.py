"""Bring your own: a residual MLP on a table of measurements, layer-parallel on two stages.

Network, data and loss are functions of this file. The data, 569 biopsies with 30 measurements
each, ships with scikit-learn. Run it with: python examples/residual_mlp.py
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import ray.train
import torch
import torch.nn.functional as F
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn

from actors import LayerParallelTrainer
from laminar.config import AdamWConfig, Config, FilterConfig
from laminar.dropout import SampleDropout
from laminar.evaluation import evaluate_run
from laminar.problem import Problem

WIDTH, NUM_BLOCKS = 64, 6


class Residual(nn.Module):
    """x + F(x), F of two linear layers: [B, WIDTH] to [B, WIDTH]."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.hidden = nn.Linear(WIDTH, 2 * WIDTH)
        self.dropout = SampleDropout(0.1)  # not nn.Dropout: masks must not depend on the cuts
        self.out = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        inner: Tensor = self.out(self.dropout(F.gelu(self.hidden(self.norm(x)))))
        return x + inner


def blocks(problem: Problem) -> dict[str, Callable[[], nn.Module]]:
    """Return what builds each block, by name and in order."""
    (num_measurements,) = problem.image_shape
    return {
        "stem": partial(nn.Linear, num_measurements, WIDTH),
        **{f"body.{i}": Residual for i in range(NUM_BLOCKS)},
        "head": partial(nn.Linear, WIDTH, problem.num_classes),
    }


def load(split: str) -> tuple[Tensor, Tensor]:
    """Return measurements, standardised over the training half, [N, 30], and classes, [N]."""
    table = load_breast_cancer()
    x, y = torch.from_numpy(table.data).float(), torch.from_numpy(table.target)
    train, test = slice(None, None, 2), slice(1, None, 2)
    mean, std = x[train].mean(0), x[train].std(0)
    rows = train if split == "train" else test
    return ((x - mean) / std)[rows], y[rows]


def loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return cross entropy in which a tumour that is missed (class 0) weighs twice."""
    return F.cross_entropy(logits, targets, weight=logits.new_tensor([2.0, 1.0]))


def main() -> None:
    """Train, then evaluate the checkpoint: whoever opens the run must bring the same functions."""
    own = {
        "blocks": blocks,
        "datasets": {"train": partial(load, "train"), "test": partial(load, "test")},
        "loss": loss,
    }
    config = Config(
        num_stages=2,
        epochs=12,
        batch_size=32,
        optimizer=AdamWConfig(lr=2e-3),
        filters=FilterConfig(cast="fp16"),  # rows are no images, so there is nothing to pool
    )
    run_config = ray.train.RunConfig(storage_path="runs", name="residual_mlp")
    result = LayerParallelTrainer(config, **own, run_config=run_config).fit()
    print(evaluate_run(result.path, **own)["accuracy"])


if __name__ == "__main__":
    main()
