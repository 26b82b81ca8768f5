"""What the driver of a search tells, and what becomes of one, in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from laminar.config import Config
from service.api.streams import parse_lines
from service.commands.in_words import ledger_line
from service.jobs import entry
from service.jobs.models import AttemptReport, JobRequest
from service.jobs.search_driver import is_barren, outcome_of, progress_of
from tests.service.ledgers import write_ledger
from tests.service.scripted_cluster import (
    SEARCH_FILE,
    search_request,
)
from tuning.config import parse_search
from tuning.ledger import Ledger
from tuning.search import SearchResult


def test_the_driver_tells_where_a_search_is(tmp_path: Path):
    reporter = entry.Reporter(tmp_path, 1)
    found = parse_search(SEARCH_FILE)
    trials = list(write_ledger(tmp_path / "run").trials.values())

    def told() -> AttemptReport:
        return AttemptReport.model_validate_json((tmp_path / "attempts/0001.json").read_bytes())

    reporter.starting()
    reporter.search(progress_of(found.settings, 3, trials[:1]))
    assert (told().phase, told().search_progress.num_done) == ("running", 1)
    reporter.search(progress_of(found.settings, 3, trials))  # within a second: not written
    assert told().search_progress.num_done == 1
    reporter.ended("stopped", "asked for")
    progress = told().search_progress
    assert (progress.num_trials, progress.num_done, progress.num_running) == (3, 2, 1)
    assert (progress.best_trial, progress.best) == (0, {"test_accuracy": 0.75})


def test_what_came_of_a_search_is_said_in_words(tmp_path: Path):
    found = parse_search(SEARCH_FILE)
    done, failed, running = trials = tuple(write_ledger(tmp_path / "a").trials.values())
    result = SearchResult(str(tmp_path), trials, (done,), is_complete=False)
    assert outcome_of(found, result) == ("stopped", "stopped; 2 of 3 trials are done")
    result = SearchResult(str(tmp_path), (done,), (done,), is_complete=True)
    assert outcome_of(found, result) == (
        "succeeded", "best of 1 trials: number 0, test_accuracy 0.75",
    )  # fmt: skip
    result = SearchResult(str(tmp_path), (done, done), (done, done), is_complete=True)
    assert outcome_of(found, result)[1] == "2 of 2 trials are on the Pareto front"
    result = SearchResult(str(tmp_path), (failed,), (), is_complete=True)
    assert outcome_of(found, result) == ("refused", "no trial came to an end: a stage died")
    assert running.status == "running"


def test_only_a_search_of_which_all_failed_tries_those_again(tmp_path: Path):
    ledger = Ledger(tmp_path)
    assert not is_barren(tmp_path)
    ledger.note("a", {}, "failed", "no")
    assert is_barren(tmp_path)
    ledger.note("b", {}, "finished")
    assert not is_barren(tmp_path)


def test_the_kinds_of_requests_are_told_apart():
    """As the spec of a job on storage holds them."""
    from pydantic import TypeAdapter

    from service.jobs.models import AnyRequest

    adapter = TypeAdapter[Any](AnyRequest)
    chosen = Config.model_validate({"parallel": {"lateness": "auto"}})
    for one in (JobRequest(), JobRequest(config=chosen), search_request()):
        assert adapter.validate_json(one.model_dump_json()) == one
    assert adapter.validate_python({}) == JobRequest()


def test_lines_of_a_ledger_are_told_in_words(tmp_path: Path):
    write_ledger(tmp_path)
    lines = parse_lines((tmp_path / "trials.jsonl").read_bytes())
    assert [ledger_line(line) for line in lines if ledger_line(line)][3:] == [
        "trial aa epoch 1: test accuracy 0.5",
        "trial aa epoch 2: test accuracy 0.75",
        "trial aa finished",
        "trial bb failed: a stage died",
        "trial cc epoch 1: test accuracy not finite",
    ]
