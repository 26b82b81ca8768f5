"""A tiny network and tiny data for tests of exactness."""

from __future__ import annotations

import torch

from laminar.config import Config
from laminar.plan import Plan, Problem, make_plan

NUM_BATCHES, BATCH_SIZE, SIZE = 5, 8, 8


class TinyInputs:
    """Images that are a function of (epoch, batch)."""

    def train(self, epoch, batch):
        g = torch.Generator().manual_seed(1000 * epoch + batch)
        return torch.randn(BATCH_SIZE, 3, SIZE, SIZE, generator=g)

    def test(self, batch):
        return self.train(99, batch)[: BATCH_SIZE - batch]


class TinyLabels:
    def train(self, epoch, batch):
        g = torch.Generator().manual_seed(7 + 1000 * epoch + batch)
        return torch.randint(0, 4, (BATCH_SIZE,), generator=g)

    def test(self, batch):
        return self.train(99, batch)[: BATCH_SIZE - batch]


def tiny_config(**changes) -> Config:
    """ResNet-8 of width 4 on 8x8 images, 5 batches of 8 an epoch; `changes` by dotted path."""
    tree: dict = {
        "epochs": 2,
        "batch_size": BATCH_SIZE,
        "eval_batch_size": BATCH_SIZE,
        "model": {"name": "resnet8", "width": 4},
        "data": {"name": "synthetic", "image_size": SIZE, "num_classes": 4, "num_train": 41, "num_test": 15},
    }
    for path, value in changes.items():
        node = tree
        *parents, leaf = path.split("__")
        for key in parents:
            node = node.setdefault(key, {})
        node[leaf] = value
    return Config.model_validate(tree)


def tiny_plan(num_batches: int = NUM_BATCHES, **changes) -> Plan:
    problem = Problem((3, SIZE, SIZE), 4, num_batches * BATCH_SIZE + 1, 15)
    return make_plan(tiny_config(**changes), problem)
