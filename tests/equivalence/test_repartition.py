"""Going on at other cuts: the function stays, exact training too, and engine = reference."""

import pytest

from laminar.config import ResourceConfig
from laminar.config_file import dump_config, load_config
from laminar.engine import evaluation
from laminar.errors import ConfigError
from laminar.one_process import OneProcessEngine
from laminar.planning import make_plan
from laminar.repartition import changes, is_same_run, repartition
from tests.tiny import differing, run_reference, tiny_plan

INT8 = {"pool": 2, "cast": "int8"}


def at_other_cuts(plan, num_stages, cuts=None):
    return make_plan(repartition(plan, num_stages, cuts), plan.problem)


def engine_at(plan, state):
    engine = OneProcessEngine(plan)
    for stage in engine.stages:
        stage.load_state(state)
    return engine


def loss_of(engine):
    engine.stages[-1].take_tally()
    engine._drive(lambda stage, x, y: evaluation(stage, 2, x, y))
    return engine.stages[-1].take_tally().loss_sum


@pytest.mark.parametrize(("num_stages", "cuts"), [(1, ()), (2, (1,)), (3, None), (4, (1, 2, 4))])
@pytest.mark.parametrize("parallel_only", [False, True])
def test_the_function_and_exact_training_stay(num_stages, cuts, parallel_only):
    """K=3 with filters before blocks 2 and 3, an epoch of each phase; then an exact one."""
    plan = tiny_plan(
        8,
        num_stages=3,
        epochs=3,
        cuts=[2, 3],
        filters=[{**INT8, "parallel_only": parallel_only}, {"cast": "bf16"}],
        phases=[{"phase": "parallel", "epochs": 1}, {"phase": "correction", "epochs": 2}],
    )
    engine = OneProcessEngine(plan)
    for segment in plan.segments[:2]:
        engine.train(segment)
    state = engine.state()
    other = at_other_cuts(plan, num_stages, cuts)
    assert other.config.num_stages == num_stages
    assert is_same_run(plan, other, 0)
    moved = engine_at(other, state)
    assert differing(moved.state(), state) == []
    assert loss_of(moved) == loss_of(engine)
    engine.train(plan.segments[2])
    moved.train(other.segments[2])
    assert differing(moved.state(), engine.state()) == []


@pytest.mark.parametrize("parallel_only", [False, True])
def test_engine_equals_reference_with_filters_inside_stages(parallel_only):
    plan = tiny_plan(
        8,
        num_stages=3,
        cuts=[2, 3],
        filters={**INT8, "parallel_only": parallel_only},
        phases=[{"phase": "parallel", "epochs": 1}, {"phase": "correction", "epochs": 1}],
    )
    other = at_other_cuts(plan, 2, (4,))
    assert [f.boundary for f in other.config.kept_filters] == [2, 3]
    assert other.filters[4].is_identity
    engine = OneProcessEngine(other)
    engine.run()
    state = run_reference(other).state()
    assert differing(state, engine.state()) == []
    bare = tiny_plan(8, cuts=[4], filters={}, phases=[p.model_dump() for p in other.config.phases])
    assert differing(state, run_reference(bare).state())


def test_there_and_back_again(tmp_path):
    plan = tiny_plan(30, num_stages=3, cuts=[2, 3], filters=[INT8, {}])
    other = at_other_cuts(plan, 2)
    assert other.filters[2] == plan.filters[2]
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(other.config))
    assert make_plan(load_config(path), plan.problem) == other
    back = at_other_cuts(other, 3, (2, 3))
    assert back == plan
    assert changes(plan, plan) == []
    assert "cuts" in changes(plan, other)[0]


def test_a_cut_at_a_kept_filter_takes_it():
    plan = tiny_plan(cuts=[2], filters=INT8)
    other = at_other_cuts(plan, 3, (1, 2))
    assert other.config.kept_filters == ()
    assert [f.cast for f in other.config.filter_list()] == ["fp32", "int8"]


def test_segments_that_become_too_short_are_trained_exactly():
    plan = tiny_plan(4, num_stages=2, phases=[{"phase": "parallel", "epochs": 2}])
    other = at_other_cuts(plan, 4)
    assert other.parallel_fraction == 0.0
    assert "0% of the whole plan is parallel, not 100%" in changes(plan, other)[-1]
    assert make_plan(other.config, plan.problem) == other
    assert is_same_run(plan, other, 0)


def test_a_number_of_stages_that_trained_nothing_leaves_no_trace():
    """Five stages make short pieces exact; back at two, the checkpoint's phases hold."""
    plan = tiny_plan(16, epochs=5)
    five = at_other_cuts(plan, 5)
    assert five.parallel_fraction < plan.parallel_fraction
    back = repartition(five, 2, plan.config.cuts, plan.config.phases)
    assert back.phases == plan.config.phases
    assert is_same_run(plan, make_plan(back, plan.problem), 0)
    assert not is_same_run(plan, at_other_cuts(five, 2, plan.config.cuts), 0)


@pytest.mark.parametrize(
    ("epoch", "on_divergence", "is_same"),
    [(1, "correct", True), (2, "correct", False), (1, "stop", False)],
)
def test_a_run_that_went_back_may_be_resumed(epoch, on_divergence, is_same):
    """It wrote down that it is exact from the second epoch on, and ended before its checkpoint."""
    phases = [{"phase": "correction", "epochs": 1}, {"phase": "parallel", "epochs": 2}]
    plan = tiny_plan(8, epochs=3, phases=phases, on_divergence=on_divergence)
    corrected = make_plan(plan.corrected_from(1).config, plan.problem)
    assert is_same_run(plan, corrected, epoch) == is_same


@pytest.mark.parametrize(
    ("num_stages", "cuts", "message"),
    [
        (6, None, "num_stages must be <= number of blocks"),
        (2, (5,), "inside the network"),
        (3, (2,), "cuts must name the first block"),
        (2, (0,), "strictly increasing"),
    ],
)
def test_what_the_network_cannot_be_cut_into_is_refused(num_stages, cuts, message):
    with pytest.raises(ConfigError, match=message):
        repartition(tiny_plan(), num_stages, cuts)


@pytest.mark.parametrize(
    ("change", "is_same"),
    [
        ({"optimizer": {"lr": 0.2}}, False),
        ({"filters": {"pool": 4}}, False),
        ({"cuts": [3]}, False),  # the filter would move with the cut
        ({"phases": [{"phase": "correction", "epochs": 2}]}, False),
        ({"precision": {"compute": "bf16"}}, False),
        ({"resources": ResourceConfig(cpus_per_stage=2)}, True),
        ({"partition": {"memory_limit_mb": 1000}}, True),
    ],
)
def test_what_else_may_change(change, is_same):
    base = {"cuts": [2], "filters": INT8}
    assert is_same_run(tiny_plan(**base), tiny_plan(**base | change), 0) == is_same
