"""A user's own small network, data and loss, for tests: rows of numbers, no images."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import nn

from laminar.config import Config
from laminar.data import describe_data
from laminar.dropout import SampleDropout
from laminar.factories import Factories
from laminar.plan import Plan
from laminar.planning import make_plan

NUM_TRAIN, NUM_TEST, WIDTH = 49, 15, 6


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)
        self.inner = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), SampleDropout(0.25))

    def forward(self, x):
        return x + self.inner(self.norm(x))


def blocks(problem):
    return {
        "stem": lambda: nn.Linear(problem.image_shape[0], WIDTH),
        **{f"body.{i}": Residual for i in range(3)},
        "head": lambda: nn.Linear(WIDTH, problem.num_classes),
    }


def data(split):
    rng = np.random.default_rng(split == "train")
    num = NUM_TRAIN if split == "train" else NUM_TEST
    return rng.standard_normal((num, 5)), np.arange(num) % 3


def loss(logits, targets):
    return F.cross_entropy(logits, targets) + 0.01 * logits.square().mean()


OWN: dict[str, Any] = {
    "blocks": blocks,
    "datasets": {split: partial(data, split) for split in ("train", "test")},
    "loss": loss,
}


def own_plan(own: dict[str, Any] | None = None, **changes: Any) -> Plan:
    """A plan of two epochs of six batches; `own` replaces or, with None, removes a factory."""
    factories = Factories(**{**OWN, **(own or {})})
    tree = {
        "epochs": 2,
        "batch_size": 8,
        "eval_batch_size": 8,
        "filters": {"pool": 1, "cast": "fp16"},
        "resources": {"cpus_per_stage": 0.25},
        **changes,
    }
    config = factories.mark(Config.model_validate(tree))
    return make_plan(config, describe_data(config, factories.datasets), factories)
