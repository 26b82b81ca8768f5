"""The ledger of a search, its best trials, its report: from files alone, without Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from laminar.config_file import load_config
from laminar.errors import ConfigError
from tests.unit.test_tuning_space import FILTERS, search
from tuning.config import Search, parse_search
from tuning.display import SearchDisplay
from tuning.ledger import LEDGER_FILE, SEARCH_FILE, Ledger, best_trials, open_search
from tuning.report import importances, number, write_report


def metrics(epoch: int, accuracy: float, cut_bytes: int = 100, **more: Any) -> dict[str, Any]:
    values = dict.fromkeys(("test_loss", "train_loss", "train_accuracy", "seconds"), 1.0)
    told = {"epoch": epoch, "num_epochs": 2, "done": epoch == 2, "epoch_cut_bytes": 10}
    return {**values, **told, "test_accuracy": accuracy, "cut_bytes": cut_bytes, **more}


def written(folder: Path, num: int = 8, **settings: Any) -> tuple[Search, Ledger]:
    """A search of which the step size decides nearly all, and a ledger of finished trials."""
    tree = search(settings, optimizer={"lr": {"uniform": [0.1, 0.9]}}, filters=FILTERS)
    (folder / SEARCH_FILE).write_text(yaml.safe_dump(tree, sort_keys=False))
    ledger = Ledger(folder)
    ledger.begin()
    for n in range(num):
        params: dict[str, Any] = {"optimizer.lr": 0.1 + 0.1 * n, "filters": "{pool: 1}"}
        if n % 2:
            params["filters"] = "{pool: 2, cast: {choice: [fp16, int8]}}"
            params["filters[1].cast"] = "int8"
        for epoch in (1, 2):
            accuracy = 0.1 * n + 0.01 * epoch
            ledger.report(f"t{n}", params, metrics(epoch, accuracy, cut_bytes=100 + 10 * n))
        ledger.note(f"t{n}", params, "finished")
    return parse_search(tree), ledger


def test_a_ledger_reads_back_what_was_written(tmp_path: Path):
    _, ledger = written(tmp_path, num=2)
    ledger.note("t2", {"optimizer.lr": 0.5}, "failed", "ConfigError: no")
    with (tmp_path / LEDGER_FILE).open("a") as file:
        file.write('{"time": 1, "event": "rep')  # a kill in the middle of a line
    again = Ledger(tmp_path)
    assert again.trials == ledger.trials
    assert [t.status for t in again.trials.values()] == ["finished", "finished", "failed"]
    assert [m["epoch"] for m in again.trials["t1"].epochs] == [1, 2]
    assert again.cut_bytes == 40
    again.begin()
    again.note("t3", {}, "running")
    lines = (tmp_path / LEDGER_FILE).read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines[-2:]] == ["session", "status"]


def test_an_epoch_told_twice_counts_once_and_a_clone_goes_on_from_the_other(tmp_path: Path):
    ledger = Ledger(tmp_path)
    for epoch in (1, 2, 2):
        ledger.report("a", {"x": 1}, metrics(epoch, 0.5))
    assert ledger.cut_bytes == 20
    ledger.report("a", {"x": 2}, metrics(2, 0.7, cloned_from="b"))
    trial = ledger.trials["a"]
    assert [(m["epoch"], m["test_accuracy"]) for m in trial.epochs] == [(1, 0.5), (2, 0.7)]
    assert trial.params == {"x": 2}


def test_seconds_are_those_of_the_sessions(tmp_path: Path):
    lines = [("session", 100), ("status", 130), ("session", 1000), ("status", 1005)]
    rest = {"trial": "a", "params": {}, "status": "running", "error": None}
    text = "".join(json.dumps({"event": e, "time": t, **rest}) + "\n" for e, t in lines)
    (tmp_path / LEDGER_FILE).write_text(text)
    assert Ledger(tmp_path).seconds == 35


def test_the_best_came_to_its_end(tmp_path: Path):
    found, ledger = written(tmp_path, num=3)
    ledger.report("early", {"optimizer.lr": 0.1}, metrics(1, 0.99))
    (best,) = best_trials(found.settings, list(ledger.trials.values()))
    assert best.id == "t2"
    only = [ledger.trials["early"]]
    assert best_trials(found.settings, only) == only
    assert best_trials(found.settings, []) == []


def test_the_front_is_what_no_other_beats(tmp_path: Path):
    found, ledger = written(tmp_path, num=3, metric=["test_accuracy", "cut_bytes"])
    ledger.report("worse", {"optimizer.lr": 0.1}, metrics(2, 0.1, cut_bytes=115))
    front = best_trials(found.settings, list(ledger.trials.values()))
    assert [trial.id for trial in front] == ["t2", "t1", "t0"]


def test_importance_finds_what_matters_among_what_all_trials_have(tmp_path: Path):
    found, ledger = written(tmp_path)
    shares = importances(found, list(ledger.trials.values()))
    assert list(shares) == ["optimizer.lr", "filters"]
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["optimizer.lr"] > 0.8


def test_where_all_trials_are_alike_nothing_matters(tmp_path: Path):
    found, ledger = written(tmp_path)
    for trial in ledger.trials.values():
        for line in trial.epochs:
            line["test_accuracy"] = 1.0
    assert importances(found, list(ledger.trials.values())) == {}


@pytest.mark.parametrize(
    ("metric", "titles"),
    [
        ("test_accuracy", ("Learning curves", "Parallel coordinates: test_accuracy", "Importance")),
        (["test_accuracy", "cut_bytes"], ("Pareto front", "Parallel coordinates: cut_bytes")),
    ],
)
def test_the_report_is_one_file_that_needs_no_network(tmp_path: Path, metric: Any, titles: Any):
    _, ledger = written(tmp_path, metric=metric)
    ledger.note("t9", {"optimizer.lr": 0.5, "filters": "{pool: 1}"}, "failed", "no <room>")
    page = write_report(tmp_path).read_text()
    assert [title for title in titles if f"<h2>{title}</h2>" not in page] == []
    assert "plotly.js v" in page
    assert 'src="http' not in page
    assert "failed: no &lt;room&gt;" in page


def test_the_report_of_a_search_that_has_just_begun(tmp_path: Path):
    written(tmp_path, num=0)
    assert "0 of 10 trials" in write_report(tmp_path).read_text()


def test_no_search_is_one_line(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"must contain search\.yaml"):
        open_search(tmp_path)


def test_the_best_configuration_is_one_that_train_takes(tmp_path: Path):
    from tuning.search import best_config

    found, ledger = written(tmp_path)
    (best,) = best_trials(found.settings, list(ledger.trials.values()))
    path = tmp_path / "best.yaml"
    path.write_text(best_config(found, best))
    config = load_config(path)
    assert config == found.configs(best.params)[0]
    assert config.filters.cast == "int8"  # type: ignore[union-attr]
    assert path.read_text().startswith("# Trial 7: test_accuracy 0.72\n")


def test_the_table_shows_the_best_and_the_values(tmp_path: Path):
    found, ledger = written(tmp_path)
    console = Console(width=120, record=True, force_terminal=True, file=(tmp_path / "o").open("w"))
    with SearchDisplay(found, console) as display:
        display(ledger)
    text = console.export_text()
    assert "8 of 10 trials" in text
    assert "best 7: test_accuracy 0.72" in text
    assert "finished" in text
    console.file.close()


def test_without_a_terminal_each_change_is_a_line(tmp_path: Path):
    found, ledger = written(tmp_path, num=1)
    console = Console(width=500, file=(tmp_path / "o").open("w"))
    display = SearchDisplay(found, console)
    display(ledger)
    display(ledger)
    ledger.note("t0", ledger.trials["t0"].params, "retried", "a [bad] end")
    display(ledger)
    console.file.close()
    lines = (tmp_path / "o").read_text().splitlines()
    assert [line.partition(" (")[0] for line in lines] == [
        "trial 0 finished, epoch 2, test_accuracy 0.02",
        "trial 0 retried: a [bad] end, epoch 2, test_accuracy 0.02",
    ]


def test_numbers_are_short():
    values = (0.123456, 1234567, 1e-7, True, None, "fp16")
    assert [number(v) for v in values] == ["0.1235", "1,234,567", "1e-07", "true", "null", "fp16"]
