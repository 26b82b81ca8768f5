"""What is counted of the network's answers, against scikit-learn and by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sklearn.metrics import confusion_matrix, top_k_accuracy_score

from laminar.evaluation import evaluate_run
from laminar.one_process import OneProcessEngine
from laminar.tally import Tally
from tests.tiny import tiny_plan, write_run


def answers(num: int, num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(num)
    logits = torch.randn(num, num_classes, generator=generator)
    return logits, torch.randint(0, num_classes, (num,), generator=generator)


def test_counts_of_batches_are_those_of_scikit_learn():
    logits, labels = answers(50, 8)
    tally = Tally()
    for x, y in zip(logits.split(20), labels.split(20), strict=True):
        tally.add_test(x, y, torch.tensor(2.0))
    means = tally.means()
    assert means["loss"] == pytest.approx(2.0)
    for k, name in ((1, "accuracy"), (5, "top5_accuracy")):
        expected = top_k_accuracy_score(labels, logits, k=k, labels=range(8))
        assert means[name] == pytest.approx(expected)
    assert tally.confusion is not None
    expected = confusion_matrix(labels, logits.argmax(1), labels=range(8))
    assert tally.confusion.tolist() == expected.tolist()


@pytest.mark.parametrize(("num_classes", "has_top5"), [(2, False), (5, False), (6, True)])
def test_five_of_five_classes_say_nothing(num_classes: int, has_top5: bool):
    tally = Tally()
    tally.add_test(*answers(9, num_classes), torch.tensor(1.0))
    assert ("top5_accuracy" in tally.means()) == has_top5


def test_losses_are_weighted_by_the_samples_of_a_batch():
    tally = Tally()
    for num, loss in ((3, 1.0), (1, 5.0)):
        tally.add(*answers(num, 4), torch.tensor(loss))
    assert tally.means()["loss"] == 2.0
    assert tally.confusion is None


def test_a_mixed_sample_counts_by_its_larger_share():
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0], [1.0, 1.5, 0.0]])
    shares = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.4, 0.6], [0.2, 0.8, 0.0]])
    tally = Tally()
    tally.add(logits, shares, torch.tensor(0.0))
    assert (tally.num_correct, tally.num_samples) == (2, 3)


def test_engine_and_evaluation_of_its_checkpoint_count_alike(tmp_path: Path):
    data = tiny_plan().config.data.model_dump() | {"num_classes": 7}
    plan = tiny_plan(num_stages=2, data=data)
    write_run(tmp_path / "run", plan)
    engine = OneProcessEngine(plan)
    engine.run()
    tally = engine.count_test(2)
    found = evaluate_run(tmp_path / "run")
    assert tally.confusion is not None
    assert found["confusion_matrix"] == tally.confusion.tolist()
    assert found["class_names"] == list("0123456")
    assert sum(map(sum, found["confusion_matrix"])) == 15
    assert [sum(row) for row in found["confusion_matrix"]] == [3, 2, 2, 2, 2, 2, 2]
    for name, value in tally.means().items():
        assert found[name] == pytest.approx(value)
    assert found["top5_accuracy"] >= found["accuracy"]
