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
NUM_EARLY: dict[Order, int] = {"forward_first": 0, "backward_first": 1}
ORDERS = st.sampled_from(list(NUM_EARLY))


@given(STAGES, DELAYS, BATCHES, ORDERS)
def test_no_smaller_number_of_micro_batches_would_do(
    num_stages: int, delay: int, size: int, order: Order
):
    found = choose_micro_batches(num_stages, delay, size, order)
    ticks = lateness_ticks(0, num_stages, delay) - NUM_EARLY[order]
    assert size % found == 0
    assert found == 1 or size // found >= MIN_SAMPLES
    is_early = ticks <= MAX_UPDATES_LATE * found
    larger = [m for m in range(found + 1, size + 1) if size % m == 0 and size // m >= MIN_SAMPLES]
    assert is_early or not larger
    smaller = [m for m in range(1, found) if size % m == 0]
    assert not any(ticks <= MAX_UPDATES_LATE * m for m in smaller)


@given(st.floats(1e-4, 10), st.floats(0, 20), ORDERS | st.none())
def test_no_smaller_hop_delay_hides_a_round_trip(
    tick_s: float, round_trip_s: float, named: Order | None
):
    delay, order = choose_hop_delay(lambda d, _: tick_s / d, round_trip_s, named)

    def hides(d: int, order: Order) -> bool:
        return (2 * d - 1 - NUM_EARLY[order]) * tick_s / d >= round_trip_s

    assert order == (named or order)
    assert hides(delay, order) or delay == MAX_HOP_DELAY
    assert not any(hides(d, named or "forward_first") for d in range(1, delay))
    if named is None and order == "forward_first" and 1 < delay < MAX_HOP_DELAY:
        assert not hides(delay, "backward_first")


@pytest.mark.parametrize(("num_stages", "micro_batches"), [(1, 1), (2, 2), (4, 4)])
def test_what_is_chosen_is_written_out(num_stages: int, micro_batches: int):
    parallel = {"lateness": "auto", "lookahead": False}
    config = tiny_plan(
        40, num_stages=num_stages, batch_size=32, parallel=parallel, model={"name": "resnet8"}
    ).config
    found = config.parallel
    assert (found.lateness, found.micro_batches, found.hop_delay) == ("given", micro_batches, 1)
    assert not found.lookahead
    given_all = {"micro_batches": micro_batches, "order": "forward_first", "lookahead": False}
    assert (
        config
        == tiny_plan(
            40, num_stages=num_stages, batch_size=32, parallel=given_all, model={"name": "resnet8"}
        ).config
    )
