import pytest
from hypothesis import given
from hypothesis import strategies as st

from laminar.schedule import (
    Backward,
    Fit,
    Forward,
    correction_actions,
    late_share,
    lateness_ticks,
    num_ticks,
    parallel_actions,
    unlocked_actions,
    updates_until_own,
)

F, B = Forward, Backward
ORDERS = ("forward_first", "backward_first")


def test_parallel_table_of_three_stages():
    table = [list(parallel_actions(k, 3, 3, 1, "forward_first")) for k in range(3)]
    assert table[0] == [(0, F(0)), (1, F(1)), (2, F(2)), (4, B(0)), (5, B(1)), (6, B(2))]
    assert table[1] == [(1, F(0)), (2, F(1)), (3, F(2)), (3, B(0)), (4, B(1)), (5, B(2))]
    assert table[2] == [(2, F(0)), (2, B(0)), (3, F(1)), (3, B(1)), (4, F(2)), (4, B(2))]
    assert num_ticks(3, 3, 1) == 7


def test_backward_first_swaps_all_but_the_last_stage():
    assert list(parallel_actions(1, 3, 3, 1, "backward_first"))[2:4] == [(3, B(0)), (3, F(2))]
    assert list(parallel_actions(2, 3, 1, 1, "backward_first")) == [(2, F(0)), (2, B(0))]


@given(
    num_stages=st.integers(1, 6),
    delay=st.integers(1, 4),
    per_batch=st.integers(1, 5),
    num_batches=st.integers(1, 12),
    order=st.sampled_from(ORDERS),
)
def test_s_counts_the_updates_between_forward_and_own_update(
    num_stages, delay, per_batch, num_batches, order
):
    for stage in range(num_stages):
        updates, applied = {}, 0
        for _, action in parallel_actions(stage, num_stages, num_batches * per_batch, delay, order):
            if isinstance(action, Forward):
                updates[action.micro] = applied
            elif (action.micro + 1) % per_batch == 0:
                applied += 1
        assert applied == num_batches
        for micro, before in updates.items():
            s = updates_until_own(micro, stage, num_stages, per_batch, delay, order)
            assert s == micro // per_batch - before
            assert s <= -(-lateness_ticks(stage, num_stages, delay) // per_batch)


@given(num_stages=st.integers(1, 6), per_batch=st.integers(1, 9), depth=st.integers(1, 3))
def test_correction_visits_all_in_order_and_never_deadlocks(num_stages, per_batch, depth):
    lists = [list(correction_actions(k, num_stages, per_batch, depth)) for k in range(num_stages)]
    for actions in lists:
        assert [a.micro for a in actions if isinstance(a, Forward)] == list(range(per_batch))
        assert [a.micro for a in actions if isinstance(a, Backward)] == list(range(per_batch))
    done: set = set()
    position = [0] * num_stages
    while any(position[k] < len(lists[k]) for k in range(num_stages)):
        moved = False
        for k in range(num_stages):
            if position[k] == len(lists[k]):
                continue
            action = lists[k][position[k]]
            needs = (k - 1, action) if isinstance(action, Forward) else (k + 1, action)
            if needs[0] in (-1, num_stages) or needs in done:
                done.add((k, action))
                position[k] += 1
                moved = True
        assert moved, "deadlock"


def test_unlocked_table_of_three_stages():
    table = [list(unlocked_actions(k, 3, 2, 1, "forward_first")) for k in range(3)]
    assert table[0] == [F(0), F(1), B(0), B(1)]
    assert table[1] == [F(0), F(1), B(0), Fit(0), B(1), Fit(1)]
    assert table[2] == [F(0), B(0), F(1), B(1), Fit(0), Fit(1)]
    assert list(unlocked_actions(0, 1, 2, 1, "backward_first")) == [F(0), B(0), F(1), B(1)]
    first = list(unlocked_actions(1, 3, 2, 1, "backward_first"))
    assert first == [F(0), B(0), F(1), Fit(0), B(1), Fit(1)]


@given(
    num_stages=st.integers(1, 6),
    delay=st.integers(1, 4),
    per_batch=st.integers(1, 5),
    num_batches=st.integers(1, 12),
    order=st.sampled_from(ORDERS),
)
def test_s_where_no_forward_waits(num_stages, delay, per_batch, num_batches, order):
    for stage in range(num_stages):
        applied, num_micro = 0, num_batches * per_batch
        seen = []
        for action in unlocked_actions(stage, num_stages, num_micro, delay, order):
            if isinstance(action, Forward):
                s = updates_until_own(
                    action.micro, stage, num_stages, per_batch, delay, order, is_unlocked=True
                )
                assert s == action.micro // per_batch - applied
            elif isinstance(action, Backward):
                applied += (action.micro + 1) % per_batch == 0
            else:
                seen.append(action.micro)
        assert applied == num_batches
        assert seen == (list(range(num_micro)) if stage else [])


def test_one_f_one_b_by_hand():
    assert list(correction_actions(0, 2, 3)) == [F(0), F(1), B(0), F(2), B(1), B(2)]
    assert list(correction_actions(1, 2, 3)) == [F(0), B(0), F(1), B(1), F(2), B(2)]
    assert list(correction_actions(0, 2, 2, depth=9)) == [F(0), F(1), B(0), B(1)]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("per_batch", [1, 2, 4, 7])
@pytest.mark.parametrize("delay", [1, 2])
def test_the_share_of_late_forwards(delay, per_batch, order):
    """Counted over batches far from the start of the phase, of each of four stages."""
    for stage in range(4):
        micros = range(40 * per_batch, 50 * per_batch)
        late = [updates_until_own(i, stage, 4, per_batch, delay, order) > 0 for i in micros]
        found = late_share(stage, 4, per_batch, delay, order)
        assert found == pytest.approx(sum(late) / len(late))
