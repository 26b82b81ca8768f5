import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laminar.config import Config, ModelConfig
from laminar.config.training import default_filter
from laminar.cuts import best_cuts, block_costs, equal_cost_cuts
from laminar.errors import ConfigError
from laminar.networks import build_blocks
from laminar.planning import make_plan
from laminar.problem import Problem
from tests.tiny import tiny_plan


@given(st.lists(st.floats(0, 10), min_size=1, max_size=8), st.data())
@settings(deadline=None)
def test_cuts_are_optimal(costs, data):
    num_stages = data.draw(st.integers(1, len(costs)))
    cuts = equal_cost_cuts(costs, num_stages)

    def worst(inner):
        bounds = (0, *inner, len(costs))
        return max(sum(costs[a:b]) for a, b in itertools.pairwise(bounds))

    assert len(cuts) == num_stages - 1
    assert all(a < b for a, b in itertools.pairwise((0, *cuts, len(costs))))
    best = min(worst(c) for c in itertools.combinations(range(1, len(costs)), num_stages - 1))
    assert worst(cuts) == pytest.approx(best)


@given(st.integers(1, 7), st.data())
@settings(deadline=None)
def test_cuts_by_any_cost_are_those_of_brute_force(num_blocks, data):
    """Compute or exchange, whichever is slower, and stages that cannot be."""
    num_stages = data.draw(st.integers(1, num_blocks))
    numbers = st.floats(0, 10)
    compute = data.draw(st.lists(numbers, min_size=num_blocks, max_size=num_blocks))
    exchange = data.draw(st.lists(numbers, min_size=num_blocks, max_size=num_blocks))
    limit = data.draw(st.floats(1, 40))

    def cost(k, first, last):
        if (num_stages - k) * sum(compute[first:last]) > limit:  # more in flight further ahead
            return math.inf
        return max(sum(compute[first:last]), exchange[first] * (k + 1) if k else 0.0)

    def worst(cuts):
        pairs = itertools.pairwise((0, *cuts, num_blocks))
        return max(cost(k, first, last) for k, (first, last) in enumerate(pairs))

    found = best_cuts(num_blocks, num_stages, cost)
    best = min(worst(c) for c in itertools.combinations(range(1, num_blocks), num_stages - 1))
    if best == math.inf:
        assert found is None
    else:
        assert found is not None
        assert worst(found) == best


def test_cuts_of_resnet20_share_the_work():
    blocks = build_blocks(ModelConfig(), in_channels=3, num_classes=10, seed=0)
    costs = block_costs(blocks, (3, 32, 32))
    assert costs[1] > costs[5] > costs[8] > costs[10]
    assert equal_cost_cuts(costs, 2) == (4,)


@pytest.mark.parametrize("epochs", [1, 2, 3, 5, 10, 40])
@pytest.mark.parametrize("num_stages", [2, 3])
def test_default_plan_is_mostly_parallel_and_alternates(epochs, num_stages):
    config = Config(epochs=epochs, num_stages=num_stages)
    plan = make_plan(config, Problem((1, 28, 28), 10, 6400, 100))
    assert plan.parallel_fraction >= 0.85
    assert sum(s.num_batches for s in plan.segments) == plan.num_batches == 100 * epochs
    assert plan.segments[0].phase == plan.segments[-1].phase == "correction"
    kinds = [k for k, _ in itertools.groupby(s.phase for s in plan.segments)]
    assert kinds == ["correction", "parallel"] * 2 + ["correction"]


def test_segments_are_consecutive_and_end_with_the_epoch():
    plan = make_plan(Config(epochs=7), Problem((1, 8, 8), 10, 898, 899))
    position = 0
    for s in plan.segments:
        assert (s.epoch, s.first_batch) == divmod(position, plan.batches_per_epoch)
        assert s.first_batch + s.num_batches <= plan.batches_per_epoch
        position += s.num_batches


def test_a_resolved_configuration_resolves_to_itself():
    for plan in (
        tiny_plan(30, num_stages=3),
        make_plan(Config(epochs=7), Problem((1, 8, 8), 10, 898, 899)),
    ):
        again = make_plan(plan.config, plan.problem)
        assert again == plan


@pytest.mark.parametrize(
    ("num_stages", "cuts", "wanted"),
    [
        (1, None, []),
        (2, [2], ["2x2 fp16"]),
        (2, [1], ["1x1 fp16"]),  # the stem's output is never pooled
        (4, [1, 2, 3], ["1x1 int8", "2x2 int8", "2x2 int8"]),
    ],
)
def test_filters_that_nobody_set_go_by_the_cut(num_stages, cuts, wanted):
    plan = tiny_plan(num_stages=num_stages, cuts=cuts)
    assert [f"{f.pool}x{f.pool} {f.cast}" for f in plan.config.filter_list()] == wanted
    assert make_plan(plan.config, plan.problem) == plan


def test_nothing_is_pooled_before_the_first_smaller_image_with_more_than_two_stages():
    """ResNet-20's blocks 4 and 7 have a stride of two; 4 reads what the first group has made."""
    for num_stages, first in ((8, 4), (3, 4), (2, 2)):
        shapes = tiny_plan(model={"name": "resnet20", "width": 4}).shapes
        pools = [default_filter(num_stages, b, shapes).pool for b in range(1, len(shapes) - 1)]
        assert pools == [1] * (first - 1) + [2] * (len(pools) - first + 1)


@pytest.mark.parametrize(("num_stages", "pools"), [(2, [1, 2, 2]), (3, [1, 1, 1])])
def test_images_that_keep_their_size_are_never_pooled_with_more_than_two_stages(num_stages, pools):
    shapes = [(3, 8, 8), *[(16, 8, 8)] * 3, (10,)]  # the last block is the head
    assert [default_filter(num_stages, b, shapes).pool for b in (1, 2, 3)] == pools


@pytest.mark.parametrize(("shape", "pool"), [((8, 4, 4), 2), ((8, 1, 4), 1), ((8,), 1)])
def test_a_filter_that_nobody_set_fits_what_crosses(shape, pool):
    assert default_filter(3, 2, [(3, 8, 8), (8, 8, 8), shape, (8,)]).pool == pool


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "exact"},
        {"parallel": {"feed": "stored"}},
        {"parallel": {"lateness": "auto"}},
        {"parallel": {"micro_batches": 3}},
    ],
)
def test_micro_batches_of_the_parallel_phase_divide_the_batch_where_they_are_read(changes):
    """The default, 2, does not divide 15."""
    odd = {"batch_size": 15, "correction": {"micro_batches": 5}}
    assert 15 % tiny_plan(**odd, **changes).config.num_micro_of("correction") == 0
    with pytest.raises(ValueError, match=r"multiple of parallel.micro_batches .got 15 and 2"):
        tiny_plan(**odd)


def test_short_parallel_pieces_are_exact_by_default_and_refused_when_written():
    plan = tiny_plan(3, num_stages=4)
    assert {s.phase for s in plan.segments} == {"correction"}
    with pytest.raises(ConfigError, match=r"4\(K-1\)d"):
        tiny_plan(3, num_stages=4, phases=[{"phase": "parallel", "epochs": 2}])
