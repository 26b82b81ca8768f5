"""The order of an epoch: a permutation that only seed, epoch and sample indices decide."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from laminar.data.augment import epoch_order

seeds, epochs = st.integers(0, 2**63 - 1), st.integers(0, 2**32 - 1)


@given(seed=seeds, epoch=epochs, num=st.integers(0, 300))
@settings(deadline=None)
def test_it_is_a_permutation_and_repeatable(seed, epoch, num):
    order = epoch_order(seed, epoch, num)
    assert np.array_equal(np.sort(order), np.arange(num))
    assert np.array_equal(epoch_order(seed, epoch, num), order)


@given(seed=seeds, epoch=epochs, num=st.integers(0, 200), more=st.integers(0, 100))
@settings(deadline=None)
def test_two_samples_come_in_the_same_order_in_any_larger_data_set(seed, epoch, num, more):
    order = epoch_order(seed, epoch, num + more)
    assert np.array_equal(order[order < num], epoch_order(seed, epoch, num))


@given(a=st.tuples(seeds, epochs), b=st.tuples(seeds, epochs))
@settings(deadline=None)
def test_seeds_and_epochs_differ(a, b):
    same = np.array_equal(epoch_order(*a, 100), epoch_order(*b, 100))
    assert same == (a == b)
