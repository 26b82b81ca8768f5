"""Memory of stages: counted by hand, against what a stage really keeps, and as a limit on cuts."""

import itertools
import math

import pytest
import torch

from laminar.config import Config
from laminar.data import open_inputs, open_labels
from laminar.errors import ConfigError
from laminar.memory import InFlight, block_memories, in_flight, stage_bytes
from laminar.partition import check_memory, choose_cuts, exchange_seconds
from laminar.planning import make_plan
from laminar.stage import Stage
from tests.tiny import tiny_plan


@pytest.mark.parametrize(
    ("num_stages", "per_batch", "delay", "order", "expected"),
    [
        (1, 2, 1, "forward_first", [(1, 0)]),
        (2, 1, 1, "forward_first", [(3, 3), (1, 0)]),
        # An update behind every forward: only the forwards between two updates share weights.
        (2, 1, 1, "backward_first", [(2, 2), (1, 0)]),
        (2, 4, 1, "forward_first", [(3, 1), (1, 0)]),
        (3, 1, 2, "forward_first", [(9, 9), (5, 5), (1, 0)]),
    ],
)
def test_what_is_in_flight_by_hand(num_stages, per_batch, delay, order, expected):
    parallel = {"micro_batches": per_batch, "hop_delay": delay, "order": order}
    config = Config.model_validate({"num_stages": num_stages, "parallel": parallel})
    assert [in_flight(config, k) for k in range(num_stages)] == [InFlight(*e) for e in expected]


@pytest.mark.parametrize("compute", ["fp32", "bf16"])
def test_forwards_that_run_again_wait_as_input_and_output(compute):
    """Two run at other weights before the first update, one and two updates ahead."""
    parallel = {"micro_batches": 1, "curvature": 1}
    config = Config.model_validate({"num_stages": 2, "parallel": parallel})
    assert [in_flight(config, k) for k in range(2)] == [InFlight(1, 2, 3), InFlight(1, 0)]
    precision = {"compute": compute}
    plan, plain = (
        tiny_plan(parallel=parallel | {"curvature": c}, precision=precision) for c in (1, 0)
    )
    memories, bounds = block_memories(plan), plan.bounds[:2]
    own, after = memories[0], memories[bounds[1]]
    fewer = stage_bytes(memories, plain, 0, *bounds)
    fewer -= stage_bytes(memories, plan, 0, *bounds)
    # Of four times what one keeps, backward included, two and of the weights one stay.
    ends = 3 * 8 * (own.crossing_per_sample + after.crossing_per_sample)
    assert [m.crossing_per_sample for m in memories] == [4 * math.prod(s) for s in plan.shapes[:5]]
    visits = 8 * own.saved_per_sample + own.saved_per_micro_batch
    assert fewer == pytest.approx(3 * visits + own.parameters - ends)


@pytest.mark.parametrize("compute", ["fp32", "bf16"])
@pytest.mark.parametrize("index", [0, 1])
def test_the_estimate_is_what_a_stage_keeps(compute, index):
    plan = tiny_plan(
        cuts=[2],
        batch_size=16,
        filters={"pool": 2},
        parallel={"micro_batches": 1},
        correction={"micro_batches": 1},
        precision={"compute": compute},
    )
    stage, kept = Stage(plan, index), {}
    ignored = {t.untyped_storage().data_ptr() for t in stage.module.state_dict().values()}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in ignored:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    x = open_inputs(plan.config).train(0, 0)
    message = x if index == 0 else plan.filters[2].encode(torch.rand(16, *plan.shapes[2]))
    labels = open_labels(plan.config).train(0, 0) if index else None
    num = in_flight(plan.config, index).num_visits
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        for micro in range(num):
            own = message.clone() if index == 0 else message
            stage.forward(micro, own, labels, num_micro=1)
    found = sum(t.untyped_storage().nbytes() for t in kept.values())
    memories = block_memories(plan)
    weights = sum(p.nbytes for p in stage.module.parameters())
    whole = stage_bytes(memories, plan, index, *plan.bounds[index : index + 2])
    copies = 1 + 1 + 2 + in_flight(plan.config, index).num_weights + 2  # of the ledger
    found *= (num + 1) / num if num > 1 else 1  # and room for a backward
    assert whole - copies * weights == pytest.approx(found, rel=0.05)


@pytest.mark.parametrize(
    ("changes", "num_copies"),
    [
        ({}, 1),
        ({"optimizer": {"momentum": 0}}, 0),
        ({"optimizer": {"name": "adamw"}}, 2),
        ({"optimizer": {"name": "adamw"}, "ema": {"decay": 0.9}}, 3),
    ],
)
def test_optimisers_and_averages_count(changes, num_copies):
    plan, plain = tiny_plan(**changes), tiny_plan(optimizer={"momentum": 0})
    memories = block_memories(plan)
    parameters = sum(m.parameters for m in memories)
    grown = stage_bytes(memories, plan, 1, 0, 5)
    grown -= stage_bytes(memories, plain, 1, 0, 5)
    assert grown == num_copies * parameters


def megabytes(plan):
    memories, pairs = block_memories(plan), enumerate(itertools.pairwise(plan.bounds))
    return [stage_bytes(memories, plan, k, *bounds) / 1e6 for k, bounds in pairs]


def test_a_limit_moves_cuts_and_is_kept():
    """Stage 0 keeps more micro-batches than the last one, so it must take fewer blocks."""
    options = {"parallel": {"micro_batches": 1, "hop_delay": 2}, "model": {"name": "resnet20"}}
    options["data"] = {"name": "synthetic", "num_train": 200, "num_test": 8}
    free = tiny_plan(**options)
    limit = 0.7 * max(megabytes(free))
    held = tiny_plan(**options, partition={"memory_limit_mb": limit})
    assert held.config.cuts < free.config.cuts
    assert max(megabytes(held)) <= limit
    assert make_plan(held.config, held.problem) == held


def test_a_limit_that_no_partition_keeps_says_how_much_is_needed():
    with pytest.raises(ConfigError, match="memory_limit_mb must be enough") as raised:
        tiny_plan(num_stages=3, partition={"memory_limit_mb": 0.001})
    needed = float(str(raised.value.expected).split()[1])
    tiny_plan(num_stages=3, partition={"memory_limit_mb": needed})
    with pytest.raises(ConfigError, match=r"stage 0, blocks 0\.\.3, must fit"):
        check_memory(tiny_plan(cuts=[4], partition={"memory_limit_mb": 0.001}))
    check_memory(tiny_plan(cuts=[4], partition={"memory_limit_mb": 2 * needed}))
    check_memory(tiny_plan(cuts=[4]))


def test_a_slow_network_moves_cuts_to_small_maps():
    """ResNet-8 of width 4 at 8x8: the boundaries carry 256, 256, 128 and 64 values a sample."""
    plan = tiny_plan(filters={"pool": 1, "cast": "int8"}, partition={"bandwidth_mb_s": 0.001})
    seconds = exchange_seconds(plan)
    values = 4 * 256 + 4 * 4 * 4  # of a micro-batch, and the scales of 4 channels
    assert seconds(1, 1) == seconds(1, 2) == pytest.approx(values / 1000)
    costs = [1.0, 1.0, 1.0, 1.0, 1.0]
    assert choose_cuts(plan, costs) == (2,)
    assert choose_cuts(plan, costs, exchange_seconds(tiny_plan(partition={}))) == (2,)
    small = [0.001] * 5
    assert choose_cuts(plan, small, seconds) == (4,)


def test_a_stage_that_runs_forwards_twice_gets_less_work():
    """Of .9 .9 .9 1 1 three are 2.7, or 3.6 with a third more; two are 2.4, against 2.9 behind.

    With one forward of four late three are 2.93, with one of eight 2.81.
    """
    costs = [0.9, 0.9, 0.9, 1, 1]
    assert choose_cuts(tiny_plan(), costs) == (3,)
    late = {"micro_batches": 1, "curvature": 1}
    assert choose_cuts(tiny_plan(parallel=late), costs) == (2,)
    assert choose_cuts(tiny_plan(parallel=late | {"micro_batches": 8}), costs) == (2,)
    early = late | {"micro_batches": 8, "order": "backward_first"}
    assert choose_cuts(tiny_plan(parallel=early), costs) == (3,)
    assert choose_cuts(tiny_plan(parallel={"curvature": 1, "feed": "stored"}), costs) == (3,)


@pytest.mark.parametrize(
    ("stored", "method", "num_batches"),
    [({}, "penalty", 5), ({"window": 2}, "penalty", 3), ({}, "delayed_gradient", 5)],
)
def test_the_stored_feed_keeps_its_store(stored, method, num_batches):
    """Instead of weights in flight: lambda, kappa and what is sent, for each sample of a window."""
    changes = {"num_stages": 3, "method": method}
    feed = {"micro_batches": 1, "feed": "stored"}
    plan = tiny_plan(parallel=feed, stored=stored, **changes)
    none = tiny_plan(parallel=feed, stored={**stored, "memory_limit_mb": 0}, **changes)
    memories = block_memories(plan)
    at_2, at_3 = (8 * memories[b].crossing_per_sample for b in (2, 3))
    num = 2 if method == "penalty" else 1
    for stage, first, last, kept in (
        (0, 0, 2, 2 * at_2),
        (1, 2, 3, num * at_2 + 2 * at_3),
        (2, 3, 5, num * at_3),
    ):
        grown = stage_bytes(memories, plan, stage, first, last)
        grown -= stage_bytes(memories, none, stage, first, last)
        assert grown == num_batches * kept
    alone = tiny_plan(num_stages=1, parallel=feed)
    rest = tiny_plan(num_stages=1, parallel=feed, stored={"memory_limit_mb": 0})
    assert stage_bytes(memories, alone, 0, 0, 5) == stage_bytes(memories, rest, 0, 0, 5)


def test_of_a_large_store_the_limit_counts():
    feed = {"micro_batches": 1, "feed": "stored"}
    plan, none = (tiny_plan(2000, parallel=feed, stored={"memory_limit_mb": n}) for n in (1, 0))
    memories = block_memories(plan)
    bare = stage_bytes(memories, none, 0, 0, 3)
    assert stage_bytes(memories, plan, 0, 0, 3) - bare == pytest.approx(1e6)
    streamed = tiny_plan(2000, parallel={"micro_batches": 1})
    assert bare < stage_bytes(memories, streamed, 0, 0, 3)  # no weights in flight
