"""Micro-batches and hop delay that are chosen, not given."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laminar.lateness import (
    MAX_HOP_DELAY,
    MAX_UPDATES_LATE,
    MIN_SAMPLES,
    choose_hop_delay,
    choose_micro_batches,
)
from laminar.schedule import Order, lateness_ticks
from tests.tiny import tiny_plan

STAGES, DELAYS, BATCHES = st.integers(1, 8), st.integers(1, 16), st.integers(1, 512)


@given(STAGES, DELAYS, BATCHES)
def test_no_smaller_number_of_micro_batches_would_do(num_stages: int, delay: int, size: int):
    found = choose_micro_batches(num_stages, delay, size)
    ticks = lateness_ticks(0, num_stages, delay)
    assert size % found == 0
    assert found == 1 or size // found >= MIN_SAMPLES
    is_early = ticks <= MAX_UPDATES_LATE * found
    larger = [m for m in range(found + 1, size + 1) if size % m == 0 and size // m >= MIN_SAMPLES]
    assert is_early or not larger
    smaller = [m for m in range(1, found) if size % m == 0]
    assert not any(ticks <= MAX_UPDATES_LATE * m for m in smaller)


@given(st.floats(1e-4, 10), st.floats(0, 20), st.sampled_from(["forward_first", "backward_first"]))
def test_no_smaller_hop_delay_hides_a_round_trip(tick_s: float, round_trip_s: float, order: Order):
    found = choose_hop_delay(lambda delay: tick_s / delay, round_trip_s, order)
    num = {"forward_first": 1, "backward_first": 2}[order]
    hidden = [(2 * d - num) * tick_s / d >= round_trip_s for d in range(1, found + 1)]
    assert hidden[-1] or found == MAX_HOP_DELAY
    assert not any(hidden[:-1])


@pytest.mark.parametrize(("num_stages", "micro_batches"), [(1, 1), (2, 2), (4, 4)])
def test_what_is_chosen_is_written_out(num_stages: int, micro_batches: int):
    parallel = {"lateness": "auto", "lookahead": False}
    config = tiny_plan(
        40, num_stages=num_stages, batch_size=32, parallel=parallel, model={"name": "resnet8"}
    ).config
    found = config.parallel
    assert (found.lateness, found.micro_batches, found.hop_delay) == ("given", micro_batches, 1)
    assert not found.lookahead
    given_all = {"micro_batches": micro_batches, "lookahead": False}
    assert (
        config
        == tiny_plan(
            40, num_stages=num_stages, batch_size=32, parallel=given_all, model={"name": "resnet8"}
        ).config
    )
