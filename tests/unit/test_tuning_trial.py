"""What a trial reports, where it begins, and its runs side by side: without a cluster."""

from __future__ import annotations

import json
import math
import random
import shutil
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from ray.tune.execution.class_cache import _ActorClassCache

from actors import RunStopped
from laminar.checkpoint import list_checkpoints, load_tensors, read_manifest
from laminar.errors import ResourceError
from laminar.plan import Plan
from laminar.run_directory import RunDirectory
from tests.tiny import differing, tiny_config, tiny_plan, write_run
from tests.unit.test_tuning_space import FILTERS, search
from tuning.algorithms import Explore, Suggest, make_sampler, make_scheduler, make_searcher
from tuning.config import parse_search
from tuning.ledger import Ledger
from tuning.room import bundles, check_room, is_one_size
from tuning.search import Budget, _without_credentials
from tuning.trial import Lanes, State, prepare, run_folder, summarise


def line(epoch: int, **changes: Any) -> dict[str, Any]:
    values = dict.fromkeys(("train_loss", "train_accuracy", "test_loss", "test_accuracy"), 0.5)
    seconds = {"parallel": 2.0, "correction": 1.0, "evaluation": 5.0, "checkpoint": 5.0}
    cuts = [{"boundary": 2, "inline_bytes": 3, "store_bytes": 4}]
    return {"epoch": epoch, **values, "seconds": seconds, "cuts": cuts, **changes}


def test_what_is_reported_are_means_over_seeds_and_sums_over_epochs():
    runs = [[line(1), line(2, test_accuracy=0.9)], [line(1), line(2, test_accuracy=0.7)]]
    found = summarise(runs)
    assert found["test_accuracy"] == pytest.approx(0.8)
    assert found["by_seed"]["test_accuracy"] == [0.9, 0.7]
    assert (found["epoch"], found["seconds"], found["cut_bytes"]) == (2, 6, 14)
    assert found["epoch_cut_bytes"] == 14
    assert "by_seed" not in summarise(runs[:1])


def test_a_loss_that_is_no_number_is_the_worst():
    assert summarise([[line(1, test_loss=math.nan)]])["test_loss"] == math.inf


# -- where a trial begins --------------------------------------------------------------------------


PARAMS = {"optimizer.lr": 0.1}


def home_of(folder: Path, plan: Plan, trial_id: str) -> Path:
    """The folder of a trial that has trained its two epochs, and told of both."""
    home = folder / trial_id / "runs"
    write_run(run_folder(home, plan.config), plan)
    run = RunDirectory(run_folder(home, plan.config))
    run.metrics_file.write_text("".join(json.dumps(line(epoch)) + "\n" for epoch in (1, 2)))
    State(trial_id, 2, PARAMS).write(home)
    return home


def checkpoint_of(home: Path, name: str = "checkpoint") -> Path:
    return Path(shutil.copytree(home, home.parent / name))


def weights(home: Path, plan: Plan) -> dict[str, Any]:
    saved = list_checkpoints(run_folder(home, plan.config) / "checkpoints")
    return load_tensors(read_manifest(saved[-1]))


def test_a_new_trial_begins_with_nothing(tmp_path: Path):
    home = tmp_path / "a" / "runs"
    new = State("a", 0, PARAMS)
    assert prepare(home, [tiny_plan()], new, None) == new == State.read(home)


def test_a_trial_goes_on_from_its_own_folder_even_if_tune_knows_less(tmp_path: Path):
    plan = tiny_plan(3)
    home = home_of(tmp_path, plan, "a")
    before = weights(home, plan)
    saved = checkpoint_of(home)
    new, known = State("a", 0, PARAMS), State("a", 1, PARAMS)
    known.write(saved)
    shutil.rmtree(run_folder(saved, plan.config) / "checkpoints")
    assert prepare(home, [plan], new, saved) == known
    assert differing(weights(home, plan), before) == []
    assert prepare(home, [plan], new, None) == new
    assert differing(weights(home, plan), before) == []


def test_a_lost_folder_comes_back_from_the_checkpoint(tmp_path: Path):
    plan = tiny_plan(3)
    home = home_of(tmp_path, plan, "a")
    before, saved = weights(home, plan), checkpoint_of(home)
    shutil.rmtree(home)
    assert prepare(home, [plan], State("a", 0, PARAMS), saved) == State("a", 2, PARAMS)
    assert differing(weights(home, plan), before) == []


def test_a_clone_takes_weights_and_epochs_of_the_other_and_keeps_its_own_values(tmp_path: Path):
    good, own = tiny_plan(3), tiny_plan(3, optimizer={"lr": 0.01})
    other = home_of(tmp_path, good, "good")
    home = home_of(tmp_path, tiny_plan(3, optimizer={"lr": 1e-9}), "bad")
    assert differing(weights(home, own), weights(other, good)) != []
    new = State("bad", 0, {"optimizer.lr": 0.01})
    state = prepare(home, [own], new, checkpoint_of(other))
    assert state == State("bad", 2, new.params, cloned_from="good")
    assert differing(weights(home, own), weights(other, good)) == []
    run = RunDirectory(run_folder(home, own.config))
    (saved,) = list_checkpoints(run.checkpoints)
    assert run.open_config() == read_manifest(saved).plan.config == own.config
    # A failure later: what it goes on from is its own again, and where it came from stays known.
    assert prepare(home, [own], new, checkpoint_of(home)) == state


def write_records(home: Path, plan: Plan, whose: str) -> None:
    run = RunDirectory(run_folder(home, plan.config))
    run.write_tracking(whose)
    (run.wandb / f"offline-run-{whose}").mkdir(parents=True)
    (home / "mlflow.db").write_text(whose)


def records(home: Path, plan: Plan) -> tuple[str, list[str], str | None]:
    run, store = RunDirectory(run_folder(home, plan.config)), home / "mlflow.db"
    files = sorted(path.name for path in run.wandb.glob("*"))
    return run.read_tracking(), files, store.read_text() if store.exists() else None


def test_a_clone_keeps_what_trackers_know_of_its_own_runs(tmp_path: Path):
    plan = tiny_plan(3)
    other = home_of(tmp_path, plan, "good")
    write_records(other, plan, "good")
    saved = checkpoint_of(other)
    fresh, home = tmp_path / "fresh" / "runs", home_of(tmp_path, plan, "bad")
    write_records(home, plan, "bad")
    prepare(fresh, [plan], State("fresh", 0, PARAMS), saved)
    assert records(fresh, plan) == ("{}", [], None)
    prepare(home, [plan], State("bad", 0, PARAMS), saved)
    assert records(home, plan) == ("bad", ["offline-run-bad"], "bad")
    # What a trial gets back of itself is whole.
    shutil.rmtree(other)
    prepare(other, [plan], State("good", 0, PARAMS), saved)
    assert records(other, plan) == ("good", ["offline-run-good"], "good")


# -- side by side ----------------------------------------------------------------------------------


def test_lanes_wait_for_each_other_at_each_epoch():
    begun: list[tuple[str, int]] = []

    def lane(name: str, pause: float) -> Any:
        def run(tell: Any) -> None:
            for epoch in (1, 2, 3):
                begun.append((name, epoch))
                time.sleep(pause)
                tell({"epoch": epoch})

        return run

    seen = []
    with Lanes([lane("a", 0), lane("b", 0.02)]) as lanes:
        for told in lanes:
            seen.append([metrics["epoch"] for metrics in told])
            time.sleep(0.02)
            assert {epoch for _, epoch in begun} == set(range(1, told[0]["epoch"] + 1))
    assert seen == [[1, 1], [2, 2], [3, 3]]


def test_an_error_of_one_lane_ends_the_others():
    ended = []

    def broken(tell: Any) -> None:
        raise FloatingPointError("broken on purpose")

    def endless(tell: Any) -> None:
        try:
            while True:
                tell(None)
                time.sleep(0.01)
        except RunStopped:
            ended.append(True)
            raise

    with pytest.raises(FloatingPointError, match="on purpose"), Lanes([endless, broken]) as lanes:
        list(lanes)
    assert ended == [True]


# -- algorithms, budgets, room ---------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["random", "tpe", "nsga2"])
def test_samplers_respect_conditions(algorithm: str):
    found = parse_search(search({"algorithm": algorithm}, filters=FILTERS))
    study = optuna.create_study(sampler=make_sampler(found.settings, 20))
    for value in range(12):
        trial = study.ask()
        Suggest(found.space)(trial)
        assert found.space.config(trial.params)
        study.tell(trial, value)
    pools = [found.space.config(trial.params).filters for trial in study.trials]
    assert {(f.pool, f.cast) for f in pools} >= {(1, "fp32"), (2, "int8")}  # type: ignore[union-attr]


def test_a_grid_suggests_every_combination_once():
    found = parse_search(search({"algorithm": "grid"}, seed={"grid": [1, 2]}, filters=FILTERS))
    searcher = make_searcher(found)
    assert searcher is not None
    suggested = [searcher.suggest(str(n)) for n in range(found.num_trials)]
    assert sorted(map(str, suggested)) == sorted(map(str, found.space.combinations()))


def test_pbt_stays_in_the_range():
    leaves = {"optimizer": {"lr": {"loguniform": [0.01, 0.1]}},
              "parallel": {"hop_delay": {"randint": [1, 3]}}}  # fmt: skip
    found = parse_search(search({"algorithm": "random", "scheduler": "pbt"}, **leaves))
    assert make_searcher(found) is None
    scheduler = make_scheduler(found)
    explored = Explore(found.space)({"optimizer.lr": 0.12, "parallel.hop_delay": 3.6})
    assert explored == {"optimizer.lr": 0.1, "parallel.hop_delay": 3}
    random.seed(0)
    for _ in range(20):
        new, _ = scheduler._get_new_config(  # type: ignore[union-attr]
            None, type("Trial", (), {"config": {"optimizer.lr": 0.1, "parallel.hop_delay": 2}})
        )
        assert found.space.config(new)


def test_budgets_count_what_earlier_sessions_spent(tmp_path: Path):
    ledger = Ledger(tmp_path)
    assert not Budget(ledger, None, None).stop_all()
    ledger.seconds, ledger.cut_bytes = 50.0, 1000
    assert Budget(ledger, 49, None).stop_all()
    assert Budget(ledger, 60, 1000).stop_all()
    assert not Budget(ledger, 60, 1001).stop_all()


def test_a_trial_has_a_bundle_for_each_stage_of_each_seed():
    changes = {"seeds": 2}, {"num_stages": {"choice": [2, 3]}}
    found = parse_search(search(changes[0], **changes[1]))
    factory = bundles(found, {"num_stages": 3})
    assert factory.bundles == [{"CPU": 0.25}] * 6
    assert factory.head_bundle_is_empty
    assert not is_one_size(found)


@pytest.mark.parametrize(
    ("nodes", "fits"),
    [([{"CPU": 1.5}], True), ([{"CPU": 1.25}], False), ([{"CPU": 0.9}, {"CPU": 0.6}], False)],
)
def test_room_is_counted_in_wholebundles(nodes: list[dict[str, float]], fits: bool):
    found = parse_search(search({"seeds": 2}, num_stages={"choice": [2, 3]}))
    if fits:
        check_room(found, nodes, "here")
    else:
        with pytest.raises(ResourceError, match=r"room for \d of .* expected 6, for num_stages 3"):
            check_room(found, nodes, "here")


def test_configs_of_seeds_differ_in_the_seed_only():
    a, b = parse_search(search({"seeds": 2})).configs({"optimizer.lr": 0.05})
    assert (a.seed, b.seed) == (0, 1)
    assert a == b.model_copy(update={"seed": 0})
    assert a.model_copy(update={"optimizer": tiny_config().optimizer}) == tiny_config()


def test_credentials_of_this_process_are_not_sent_along_with_trials(
    monkeypatch: pytest.MonkeyPatch,
):
    """Ray would write them to its logs."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("RAY_TRAIN_V2_ENABLED", "1")

    def sent(trainable: type) -> dict[str, str]:
        options = _ActorClassCache().get(trainable)._default_options
        return dict(options["runtime_env"]["env_vars"])

    with _without_credentials():
        found = sent(type("One", (), {}))
    assert found["RAY_TRAIN_V2_ENABLED"] == "1"
    assert "AWS_SECRET_ACCESS_KEY" not in found
    assert "AWS_SECRET_ACCESS_KEY" in sent(type("Other", (), {}))
