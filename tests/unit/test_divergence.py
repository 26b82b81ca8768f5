"""What counts as a divergence, and the plan that corrects it."""

from __future__ import annotations

import json
import math

import pytest

from laminar.divergence import Divergence, find_divergence
from tests.tiny import tiny_plan


def line(*phases, test_loss=1.0, **more):
    entries = [
        {"phase": phase, "num_batches": 1, "train_loss": loss} | more for phase, loss in phases
    ]
    return {"phases": entries, "train_loss": phases[-1][1], "test_loss": test_loss}


GUESSING = math.log(10)
BEFORE = [line(("correction", 2.0)), line(("parallel", 1.3))]


@pytest.mark.parametrize(
    ("now", "before", "expected"),
    [
        (line(("parallel", 1.5)), BEFORE, None),
        (line(("parallel", 2.18)), BEFORE, None),
        (line(("parallel", 2.3)), BEFORE, 0.95 * GUESSING),
        # Hardly learned yet: only an explosion counts.
        (line(("parallel", 2.4)), [], None),
        (line(("parallel", 7.0)), [], 3 * GUESSING),
        (line(("correction", 2.1), ("parallel", 2.4)), [], None),
        # Half learned: what is back at guessing, as a network that is dead, has forgotten it.
        (line(("correction", 1.8), ("parallel", 2.25)), [], None),
        (line(("parallel", 2.3026)), [line(("correction", 1.95))], 0.99 * GUESSING),
        (line(("correction", 2.0), ("parallel", 2.3)), [], 0.99 * GUESSING),
        (line(("correction", 2.4), ("parallel", 7.0)), [], None),
        (line(("correction", 2.4), ("parallel", 7.3)), [], 7.2),
        # A phase of the same epoch is held against as well.
        (line(("correction", 1.0), ("parallel", 2.2)), [], 0.95 * GUESSING),
        # Augmented images after plain ones may have a higher loss, and test images always.
        (line(("correction", 2.4), test_loss=9.0), BEFORE, None),
        (line(("parallel", 1.2), visit_loss=2.3), BEFORE, 0.95 * GUESSING),
        (line(("parallel", 1.2), visit_loss=0.4), BEFORE, None),
        (line(("parallel", math.nan)), BEFORE, 0.95 * GUESSING),
        (line(("parallel", 1.0), test_loss=math.inf), BEFORE, math.inf),
        (line(("correction", math.nan)), [], math.inf),
    ],
)
def test_a_divergence_is_found(now, before, expected):
    found = find_divergence(now, before, 10, 256)
    assert (None if found is None else found.limit) == (expected and pytest.approx(expected))


def test_the_loss_of_a_few_samples_proves_neither_learning_nor_forgetting():
    """One batch of 8 at half the loss of guessing among two, the next phase where it began."""
    now, before = line(("parallel", 0.76)), [line(("correction", 0.5))]
    assert find_divergence(now, before, 2, 8) is None
    assert find_divergence(now, before, 2, 256) is not None
    long = [line(("correction", 0.5), num_batches=32)]
    assert find_divergence(now, long, 2, 8) is None
    assert find_divergence(line(("parallel", 0.76), num_batches=32), long, 2, 8) is not None
    assert find_divergence(line(("parallel", math.nan)), long, 2, 8) is not None
    assert find_divergence(line(("parallel", 2.2)), before, 2, 8) is not None  # exploded


def test_an_own_loss_must_be_a_number_only():
    assert find_divergence(line(("parallel", -5.0)), [line(("parallel", -20.0))], None, 256) is None
    assert find_divergence(line(("parallel", math.nan)), [], None, 256).limit == math.inf


def test_it_says_what_to_do_and_can_be_written():
    found = Divergence(math.nan, math.inf)
    assert "loss nan in epoch 3, expected a number; lower optimizer.lr" in found.describe(3)
    assert json.loads(json.dumps(found.record(), allow_nan=False)) == {"loss": None, "limit": None}
    assert "expected < 1.8;" in Divergence(2.3, 1.8).describe(1)


def test_a_corrected_plan_is_exact_from_an_epoch_on():
    lengths = (("correction", 0.5), ("parallel", 1.75), ("correction", 0.25), ("parallel", 0.5))
    plan = tiny_plan(
        16, epochs=3, phases=[{"phase": phase, "epochs": epochs} for phase, epochs in lengths]
    )
    corrected = plan.corrected_from(1)
    assert [(s.phase, s.epoch, s.num_batches) for s in corrected.segments] == [
        ("correction", 0, 8), ("parallel", 0, 8), ("correction", 1, 16), ("correction", 2, 16),
    ]  # fmt: skip
    assert tiny_plan(16, epochs=3, phases=corrected.config.phases).segments == corrected.segments
    assert corrected.corrected_from(1) == corrected
    assert plan.corrected_from(3) == plan
