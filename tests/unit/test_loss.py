"""The loss: smoothing and soft targets by hand, and the serial baseline beside the reference."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from benchmarks.serial import train_serial
from laminar.loss import CrossEntropy
from tests.tiny import run_reference, tiny_plan

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0], [1.0, 1.5, 0.0]])
LABELS = torch.tensor([0, 2, 1])
SHARES = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.4, 0.6], [0.5, 0.5, 0.0]])


def by_hand(targets: torch.Tensor, eps: float) -> torch.Tensor:
    smooth = (1 - eps) * targets + eps / 3
    return -(smooth * LOGITS.log_softmax(1)).sum(1).mean()


@pytest.mark.parametrize("eps", [0.0, 0.1, 0.9])
def test_smoothing_spreads_a_share_of_each_label_evenly(eps: float):
    loss = CrossEntropy(eps)
    for targets, hard in ((F.one_hot(LABELS, 3).float(), LABELS), (SHARES, SHARES)):
        torch.testing.assert_close(loss.train(LOGITS, hard), by_hand(targets, eps))
    torch.testing.assert_close(loss.test(LOGITS, LABELS), by_hand(F.one_hot(LABELS, 3).float(), 0))


def test_without_smoothing_it_is_torchs_cross_entropy_to_the_bit():
    loss = CrossEntropy()
    for found in (loss.train(LOGITS, LABELS), loss.test(LOGITS, LABELS)):
        assert torch.equal(found, F.cross_entropy(LOGITS, LABELS))


def test_the_serial_baseline_trains_with_the_same_loss_and_data():
    """One stage, one micro-batch, all exact: the reference is then a serial run."""
    plan = tiny_plan(
        num_stages=1,
        epochs=1,
        phases=[{"phase": "correction", "epochs": 1}],
        correction={"micro_batches": 1},
        loss={"label_smoothing": 0.2},
        data={
            "name": "synthetic",
            "image_size": 8,
            "num_classes": 4,
            "num_train": 40,
            "num_test": 9,
            "mixup": 0.5,
            "cutout": 3,
        },
    )
    losses = run_reference(plan).losses
    (line,) = train_serial(plan.config, 1)
    assert line["train_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-6)
