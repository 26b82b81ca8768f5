"""The space of a search and the section `search`: read, walked, checked, before Ray starts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laminar.config import FilterConfig
from laminar.errors import ConfigError
from tests.tiny import tiny_config
from tuning.algorithms import make_scheduler, population
from tuning.config import check_plans, load_search, parse_search
from tuning.space import Options, Range, Space

FILTERS = {"choice": [{"pool": 1}, {"pool": 2, "cast": {"choice": ["fp16", "int8"]}}]}


def tiny(**changes: Any) -> dict[str, Any]:
    return tiny_config().model_dump(mode="json", exclude_defaults=True) | changes


def search(settings: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    changes = changes or {"optimizer": {"lr": {"loguniform": [0.01, 0.1]}}}
    return tiny(**changes, search=settings or {})


def test_a_walk_names_distributions_and_a_lookup_rebuilds_the_tree():
    space = Space({"optimizer": {"lr": {"uniform": [0.1, 1]}}, "filters": FILTERS, "cuts": [1]})
    seen = {}

    def visit(name, distribution):
        seen[name] = distribution.corners[-1]
        return seen[name]

    tree = space.build(visit)
    assert seen == {
        "optimizer.lr": 1.0,
        "filters": "{pool: 2, cast: {choice: [fp16, int8]}}",
        "filters[1].cast": "int8",
    }
    assert tree == {
        "optimizer": {"lr": 1.0},
        "filters": {"pool": 2, "cast": "int8"},
        "cuts": [1],
    }
    assert space.build(lambda name, _: seen[name]) == tree
    assert list(space.unconditional()) == ["optimizer.lr", "filters"]


def test_what_lies_inside_an_option_exists_only_there():
    """int8 goes with pooling only, in each of all combinations."""
    found = [corner.config.filters for corner in Space({"filters": FILTERS}).corners()]
    assert found == [
        FilterConfig(pool=1),
        FilterConfig(pool=2, cast="fp16"),
        FilterConfig(pool=2, cast="int8"),
    ]


def test_values_that_go_together_are_merged_into_the_configuration():
    pairs = [{"num_stages": 2, "cuts": [2]}, {"num_stages": 3, "parallel": {"shrink": 0.5}}]
    space = Space({"together": {"choice": pairs}, "parallel": {"hop_delay": 2}})
    found = [corner.config for corner in space.corners()]
    assert [(c.num_stages, c.cuts, c.parallel.shrink) for c in found] == [
        (2, (2,), 1.0),
        (3, None, 0.5),
    ]
    assert {c.parallel.hop_delay for c in found} == {2}


def test_lists_are_addressed_by_number():
    space = Space({"filters": [{"pool": {"choice": [1, 2]}}, {"pool": {"choice": [2, 4]}}]})
    assert list(space.distributions()) == ["filters.0.pool", "filters.1.pool"]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_combinations_are_all_of_them_once(sizes: list[int]):
    tree = {str(i): {"choice": list(range(size))} for i, size in enumerate(sizes)}
    found = [tuple(p.values()) for p in Space(tree).combinations()]
    assert len(found) == len(set(found))
    expected = 1
    for size in sizes:
        expected *= size
    assert len(found) == expected


def test_of_many_corners_each_bound_and_option_comes_up():
    tree = tiny(
        eval_batch_size={"choice": list(range(1, 40))},
        optimizer={name: {"uniform": [0.1, 0.2]} for name in ("lr", "momentum", "weight_decay")},
        filters=FILTERS,
    )
    space = Space(tree)
    found = list(space.corners(limit=200))
    assert len(found) == 200
    for name, distribution in space.distributions().items():
        seen = {c.params[name] for c in found if name in c.params}
        assert seen == set(distribution.corners), name


def test_bounds_as_yaml_reads_them():
    found = Space({"a": {"loguniform": ["1e-4", 1]}, "b": {"randint": [1, 3]}}).distributions()
    assert found == {"a": Range("loguniform", 1e-4, 1.0), "b": Range("randint", 1, 3)}


def test_clipping_stays_in_the_range():
    assert Range("quniform", 0.5, 1.0, 0.25).clip(0.7) == 0.75
    assert Range("quniform", 0.5, 1.0, 0.25).clip(3) == 1.0
    assert Range("randint", 1, 8).clip(2.4) == 2
    assert Range("loguniform", 0.01, 1.0).clip(0.001) == 0.01


def test_a_search_reads_its_section():
    found = parse_search(search({"metric": ["test_accuracy", "cut_bytes"], "seeds": 2}))
    assert found.settings.metrics == ("test_accuracy", "cut_bytes")
    assert found.settings.modes == ("max", "min")
    assert found.num_trials == 10
    configs = found.configs({"optimizer.lr": 0.05})
    assert [c.seed for c in configs] == [0, 1]
    assert {c.optimizer.lr for c in configs} == {0.05}
    again = parse_search(found.tree)
    assert (again.settings, again.corners) == (found.settings, found.corners)


def test_a_grid_counts_itself():
    grid = {"parallel": {"hop_delay": {"grid": [1, 2, 3]}}, "filters": FILTERS}
    assert parse_search(search({"algorithm": "grid"}, **grid)).num_trials == 9
    assert parse_search(search({"algorithm": "grid", "num_trials": 4}, **grid)).num_trials == 4


def test_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = {"name": "mnist", "root": {"choice": ["a", "/b"]}}
    stored = {"parallel": {"feed": "stored"}, "stored": {"scratch_dir": "c"}}
    found = parse_search(search(None, data=data, **stored))
    assert found.tree["data"]["root"] == {"choice": [str(tmp_path / "a"), "/b"]}
    assert found.tree["stored"]["scratch_dir"] == str(tmp_path / "c")


def test_a_population_draws_steps_from_the_lower_bound():
    momentum = {"momentum": {"quniform": [0.05, 0.85, 0.2]}}
    found = parse_search(search({"scheduler": "pbt", "algorithm": "random"}, optimizer=momentum))
    wanted = [0.05, 0.25, 0.45, 0.65, 0.85]
    assert population(found)["optimizer.momentum"].categories == pytest.approx(wanted)
    make_scheduler(found)


LR = {"optimizer": {"lr": {"uniform": [0.01, 0.1]}}}

WRONG = [
    ("nothing varies", search(None, seed=1), "vary at least one value"),
    ("bounds turned", search(None, optimizer={"lr": {"uniform": [1, 0.1]}}), "low < high"),
    ("one bound", search(None, optimizer={"lr": {"uniform": [1]}}), "[low, high]"),
    ("bound of a text", search(None, optimizer={"lr": {"uniform": ["a", 1]}}), "finite numbers"),
    ("logarithm of 0", search(None, optimizer={"lr": {"loguniform": [0, 1]}}), "low > 0"),
    ("half an integer", search(None, parallel={"hop_delay": {"randint": [1, 2.5]}}), "whole"),
    ("uneven step", search(None, optimizer={"lr": {"quniform": [0.1, 1, 0.4]}}), "multiple of"),
    ("no options", search(None, seed={"choice": []}), "`seed.choice` must be a list of options"),
    ("options twice", search(None, seed={"choice": [1, 1]}), "must differ"),
    ("two at once", search(None, seed={"choice": [1], "grid": [2]}), "and nothing else"),
    ("unknown key", search(None, optimiser={"lr": {"uniform": [1, 2]}}), "did you mean"),
    ("bad bound", search(None, optimizer={"lr": {"uniform": [0, 1]}}),
     "`optimizer.lr` must be greater than 0", "at optimizer.lr=0.0"),
    ("bad option", search(None, filters={"choice": [{"pool": 1}, {"pool": 9}]}), "`filters.pool`"),
    ("bad combination", search(None, batch_size={"choice": [8, 12]},
                               parallel={"micro_batches": {"choice": [2, 8]}}),
     "12 and 8", "at batch_size=12, parallel.micro_batches=8"),
    ("set twice", search(None, seed=1, together={"choice": [{"seed": 2}]}),
     "`together.seed` must not be set elsewhere"),
    ("together with nothing", search(None, together={"choice": [1]}), "must be a mapping"),
    ("unknown setting", search({"metrics": "test_loss"}, **LR), "did you mean `metric`?"),
    ("unknown metric", search({"metric": "accuracy"}, **LR), "`search.metric"),
    ("metric twice", search({"metric": ["test_loss", "test_loss"]}, **LR), "each once"),
    ("one mode for two", search({"metric": ["test_loss", "seconds"], "mode": "min"}, **LR),
     "one entry for each metric"),
    ("two metrics and a scheduler",
     search({"metric": ["test_loss", "seconds"], "scheduler": "asha"}, **LR), "must be none"),
    ("grid of a range", search({"algorithm": "grid"}, **LR), "optimizer.lr is a range"),
    ("grid with tpe", search(None, seed={"grid": [1, 2]}), "search.algorithm grid"),
    ("pbt with tpe", search({"scheduler": "pbt"}, **LR), "must be random with the scheduler pbt"),
    ("pbt of a network", search({"scheduler": "pbt", "algorithm": "random"}, filters=FILTERS),
     "can change in mid-run", "got filters"),
    ("steps of pbt", search({"scheduler": "pbt", "algorithm": "random"},
                            optimizer={"lr": {"quniform": [1e-6, 1 + 1e-6, 1e-6]}}),
     "<= 100,000 steps with pbt", "got 1,000,000 in optimizer.lr"),
    ("scheduler without time", search({"scheduler": {"name": "asha", "grace_period": 2}}, **LR),
     "search.scheduler.grace_period must be < epochs"),
    ("unknown scheduler", search({"scheduler": "hyperband"}, **LR), "`search.scheduler"),
    ("no trials", search({"num_trials": 0}, **LR), "`search.num_trials`"),
]  # fmt: skip


@pytest.mark.parametrize("case", WRONG, ids=[case[0] for case in WRONG])
def test_what_does_not_fit_is_one_line(case: tuple[Any, ...]):
    _, tree, *words = case
    with pytest.raises(ConfigError) as raised:
        parse_search(tree)
    message = str(raised.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == []


def test_options_of_every_kind_are_labels():
    space = Space({"x": {"choice": [None, 1, "a", [1, 2], {"b": 1}]}})
    (options,) = space.distributions().values()
    assert isinstance(options, Options)
    assert options.labels == (None, 1, "a", "[1, 2]", "{b: 1}")


def test_the_presets_are_searches(repository):
    found = sorted((repository / "examples" / "tuning").glob("*.yaml"))
    assert len(found) >= 4
    for path in found:
        search = load_search(path)
        assert search.num_trials >= 8
        check_plans(search)
