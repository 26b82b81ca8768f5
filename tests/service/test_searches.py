"""Searches as jobs: submitted, admitted, followed, fetched; cluster and drivers are played."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from laminar.errors import ConfigError
from laminar.storage import Storage
from service.api.streams import parse_lines
from service.client import LaminarClient, ServiceError
from service.commands.in_words import ledger_line
from service.jobs import entry
from service.jobs.admission import fitting
from service.jobs.manager import Conflict
from service.jobs.models import AttemptReport, JobRequest, Needs, NodeInfo
from service.jobs.search_driver import is_barren, outcome_of, progress_of
from service.jobs.searches import estimate_search
from service.jobs.settings import Settings
from service.jobs.store import JobStore
from tests.service.conftest import Served
from tests.service.scripted_cluster import (
    SEARCH_FILE,
    ScriptedCluster,
    Service,
    request,
    search_request,
)
from tests.service.test_commands import Laminar, here  # noqa: F401 - a fixture
from tuning.config import parse_search
from tuning.ledger import Ledger
from tuning.search import SearchResult


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path / "jobs", ScriptedCluster((2, 0)))


def with_search(**changes: Any) -> dict[str, Any]:
    return {**SEARCH_FILE, "search": {**SEARCH_FILE["search"], **changes}}


def epoch_of(epoch: int, accuracy: float, *, is_last: bool = False) -> dict[str, Any]:
    return {
        "epoch": epoch, "num_epochs": 2, "test_accuracy": accuracy, "seconds": 1.0,
        "epoch_cut_bytes": 10, "done": is_last,
    }  # fmt: skip


def write_ledger(run: Path) -> Ledger:
    """What a search leaves: a trial that was finished, one that failed, one under way."""
    run.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(run)
    ledger.begin()
    for name, lr in (("aa", 0.02), ("bb", 0.05), ("cc", 0.09)):
        ledger.note(name, {"optimizer.lr": lr}, "running")
    ledger.report("aa", {"optimizer.lr": 0.02}, epoch_of(1, 0.5))
    ledger.report("aa", {"optimizer.lr": 0.02}, epoch_of(2, 0.75, is_last=True))
    ledger.note("aa", {"optimizer.lr": 0.02}, "finished")
    ledger.note("bb", {"optimizer.lr": 0.05}, "failed", "a stage died")
    ledger.report("cc", {"optimizer.lr": 0.09}, epoch_of(1, math.inf))
    return ledger


# -- what is asked for -----------------------------------------------------------------------------


def test_a_search_from_queue_to_success(served: Served, client: LaminarClient, tmp_path: Path):
    job = client.submit(search_request(name="lr", priority=2))
    assert (job.kind, job.name, job.config, job.keep) == ("search", "lr", None, None)
    assert job.search_file == with_search(max_concurrent=1)
    assert (job.needs.num_bundles, job.needs.num_groups, job.estimate.num_trials) == (2, 1, 3)
    served.tick()
    served.say(job.id, "running")
    served.tick()
    (row,) = client.jobs("running")
    assert (row.progress, row.search_progress.num_done) == (None, 1)
    assert row.search_progress.best == {"test_accuracy": 0.75}
    assert client.stop(job.id).state == "stopping"
    served.say(job.id, "ended", "stopped", "stopped; 1 of 3 trials are done")
    served.tick()
    assert client.resume(job.id).state == "queued"
    served.tick()
    run = served.run(job.id)
    write_ledger(run)
    (run / "best.yaml").write_text("epochs: 2\n")
    served.say(job.id, "ended", "succeeded", "best of 3 trials: number 0, test_accuracy 0.75")
    served.tick()
    client.download(job.id, "best.yaml", tmp_path / "best.yaml")
    assert (tmp_path / "best.yaml").read_text() == "epochs: 2\n"
    assert [a.path for a in client.artifacts(job.id)] == ["best.yaml", "trials.jsonl"]
    client.delete(job.id)
    assert not run.exists()


def test_a_restarted_service_reads_searches_and_the_same_key_is_the_same_one(service: Service):
    first, _ = service.manager.submit(search_request(), "ada", "k")
    service.restart()
    again, is_new = service.manager.submit(search_request(), "ada", "k")
    assert (again.id, is_new) == (first.id, False)
    assert service.store.job(first.id) == first
    with pytest.raises(Conflict, match="used before for another job"):
        service.manager.submit(request(), "ada", "k")


def test_a_job_of_before_there_were_searches_is_read(service: Service):
    job_id = service.submit()
    path = service.folder / job_id / "job.json"
    tree = json.loads(path.read_text())
    for name in ("num_trials", "num_concurrent"):
        del tree["estimate"][name]
    del tree["needs"]["num_groups"]
    path.write_text(json.dumps(tree))
    store = JobStore(Storage.open(str(service.folder)))
    assert store.job(job_id) == service.store.job(job_id)


def test_needs_are_those_of_the_largest_trial_and_of_all_seeds_at_once(service: Service):
    choice = [
        {"num_stages": 1, "resources": {"cpus_per_stage": 0.5}},
        {"num_stages": 3, "resources": {"cpus_per_stage": 0.25}},
    ]
    tree = {**with_search(seeds=2, max_concurrent=2), "together": {"choice": choice}}
    del tree["resources"]
    needs, found = estimate_search(json.dumps(tree))
    assert needs == Needs(num_bundles=6, cpus=0.5, gpus=0, num_groups=2)
    assert (found.num_workers, found.cpus, found.num_concurrent) == (12, 6, 2)
    assert len(found.stage_bytes) in (1, 3)


def test_time_grows_with_the_trials_and_ends_with_the_budget():
    def seconds(**changes: Any) -> float:
        found = estimate_search(json.dumps(with_search(**changes)))[1].seconds
        assert found is not None
        return found

    one = seconds(num_trials=1)
    assert seconds(num_trials=6) == pytest.approx(6 * one)
    assert seconds(num_trials=6, max_concurrent=4) == pytest.approx(2 * one)
    assert seconds(num_trials=100, time_budget_s=7) == 7


def test_a_search_waits_for_its_trials_at_once_but_never_for_more_than_there_can_be(
    service: Service,
):
    """Four CPUs are wanted at once, of two; with another job's half there is no room for two."""
    small = service.submit(stages=1, cpus=0.5)
    service.tick()
    wide = service.submit_search(tree=with_search(max_concurrent=8, num_trials=20, seeds=1))
    service.tick()
    assert service.state(wide) == "queued"
    assert service.reason(wide) == "waits for room: needs 2 CPUs, busy with other jobs"
    service.say(small, "ended", "succeeded")
    service.tick()
    assert service.state(wide) == "starting"
    behind = service.submit(stages=1, cpus=0.5)
    service.tick()
    assert "waits for room" in service.reason(behind)


def test_a_trial_that_never_fits_says_so(service: Service):
    tree = {**SEARCH_FILE, "num_stages": {"choice": [1, 3]}, "resources": {"cpus_per_stage": 1}}
    job_id = service.submit_search(tree=tree)
    service.tick()
    assert service.reason(job_id) == "needs 3 CPUs, the cluster has 2"


def test_groups_are_as_many_as_the_empty_cluster_has_room_for():
    nodes = [NodeInfo(cpus=4, gpus=0), NodeInfo(cpus=3, gpus=0)]
    wanted = Needs(num_bundles=2, cpus=1.5, gpus=0, num_groups=9)
    assert fitting(wanted, nodes).num_groups == 2
    assert fitting(wanted.model_copy(update={"num_groups": 1}), nodes).num_groups == 1
    assert fitting(wanted.model_copy(update={"cpus": 5.0}), nodes).num_groups == 1


# -- what is refused -------------------------------------------------------------------------------

OUTSIDE = "must be inside a folder that the service allows"
MNIST = {"name": "mnist", "root": "set"}
FOLDER = {"name": "image_folder", "root": "set"}
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("root", {"data": {**MNIST, "root": "/etc"}}, OUTSIDE),
    ("root among others", {"data": {**MNIST, "root": {"choice": ["set", "../.."]}}}, OUTSIDE),
    ("data among others", {"data": {"choice": [MNIST, {**MNIST, "root": "link"}]}}, OUTSIDE),
    (
        "far down",
        {"together": {"choice": [{"data": {**MNIST, "root": {"grid": [{"choice": ["/etc"]}]}}}]}},
        OUTSIDE,
    ),
    ("one of very many", {"data": {**MNIST, "root": {"choice": ["a"] * 999 + ["/"]}}}, OUTSIDE),
    ("weights", {"model": {"weights": {"choice": [None, "/root/.ssh/id_rsa"]}}}, OUTSIDE),
    ("split", {"data": {**FOLDER, "train_split": {"choice": ["train", "../.."]}}}, OUTSIDE),
    ("linked split", {"data": {**FOLDER, "root": ".", "test_split": "link"}}, OUTSIDE),
    (
        "folders without end",
        {"data": {**FOLDER, "train_split": {"choice": [str(n) for n in range(1001)]}}},
        "not try more than 1000 folders",
    ),
    ("cache", {"data": {**FOLDER, "cache_dir": {"choice": [None, "/x"]}}}, "must be left out"),
    ("scratch", {"stored": {"scratch_dir": "/var/tmp"}}, "scratch_dir must be left out"),
    ("own network", {"model": {"name": {"choice": ["resnet8", "custom"]}}}, "never code"),
    ("own loss", {"loss": {"choice": [{"name": "custom"}]}}, "data and never code"),
    ("epochs without end", {"epochs": {"randint": [1, 10**9]}}, "epochs must be <="),
    ("trials without end", with_search(num_trials=10**9), "search.num_trials must be <="),
    ("seeds without end", with_search(seeds=10**6), "search.seeds must be <="),
    ("huge bound", {"optimizer": {"lr": {"uniform": [0, 10**400]}}}, "list of finite numbers"),
    ("huge range", {"optimizer": {"lr": {"quniform": [-1e308, 1e308, 1e-9]}}}, "can measure"),
    ("tiny step", {"optimizer": {"lr": {"quniform": [0.1, 1e300, 1e-300]}}}, "a multiple of its"),
    (
        "a grid without end",
        {
            **with_search(algorithm="grid", num_trials=None),
            "together": {"grid": [{"optimizer": {"lr": n}} for n in range(1, 200)]},
            "seed": {"grid": list(range(200))},
            "optimizer": {},
        },
        "must have <= 10,000 combinations",
    ),
    ("no distribution", {"optimizer": {"lr": 0.1}}, "must vary at least one value"),
    ("unknown key", with_search(trials=3), "`search.trials` must be a known key"),
    ("unknown key of the training", {"epochss": 3}, "did you mean `epochs`?"),
    ("a corner that is none", {"optimizer": {"lr": {"uniform": [-1, 1]}}}, "greater than 0"),
    ("a plan that is none", {"num_stages": {"choice": [2, 9]}}, "num_stages must be <= number of"),
    ("a section of another kind", {"search": 5}, "`search` must be"),
]  # fmt: skip


@pytest.fixture
def fenced(service: Service, tmp_path: Path) -> Service:
    root = tmp_path / "data"
    (root / "set").mkdir(parents=True)
    (root / "link").symlink_to("/etc")
    service.settings = Settings(data_roots=(root,))
    service.restart()
    return service


@pytest.mark.parametrize(("name", "changes", "words"), REFUSED, ids=[row[0] for row in REFUSED])
def test_a_search_is_data_never_code_and_within_measure(
    fenced: Service, name: str, changes: dict[str, Any], words: str
):
    with pytest.raises(ConfigError) as refused:
        fenced.submit_search(tree={**SEARCH_FILE, **changes})
    assert words in str(refused.value)
    assert fenced.store.ids() == []


def test_a_search_too_deep_is_refused(fenced: Service):
    tree: Any = 1
    for _ in range(200):
        tree = [tree]
    with pytest.raises(ConfigError, match="must have <= 50 levels"):
        fenced.submit_search(tree={**SEARCH_FILE, "cuts": tree})


def test_paths_are_within_the_first_root_and_nobodys_home(fenced: Service, tmp_path: Path):
    """Also where `laminar tune` would expand them; and the driver finds a link that was moved."""
    choice = [{"name": "synthetic"}, {"name": "cifar10", "root": "~root"}]
    found = fenced.manager._checked(search_request({**SEARCH_FILE, "data": {"choice": choice}}))
    tree = found.search_file
    root = tmp_path / "data" / "~root"
    assert tree["data"]["choice"][1]["root"] == str(root)
    assert parse_search(tree).tree == tree
    spec = fenced.store.spec(fenced.submit_search())
    spec = spec.model_copy(update={"request": found})
    entry.check(spec)
    root.symlink_to("/etc")
    with pytest.raises(ConfigError, match=r"data\.root must lead where it led"):
        entry.check(spec)


BODIES: list[tuple[dict[str, Any], str]] = [
    ({"kind": "search"}, "`search_file`: Field required"),
    ({"kind": "search", "search_file": []}, "`search_file`: Input should be"),
    ({"kind": "search", "search_file": {}, "config": {}}, "`config`: Extra inputs"),
    ({"kind": "search", "search_file": SEARCH_FILE, "keep": 2}, "`keep`: Extra inputs"),
    ({"kind": "train", "search_file": SEARCH_FILE}, "`search_file`: Extra inputs"),
    ({"kind": "Search", "search_file": SEARCH_FILE}, "is train or search"),
    ({"kind": ["search"]}, "is train or search"),
    ({"kind": "search", "search_file": {"epochs": 2}}, "must vary at least one value"),
    ({"kind": "search", "search_file": SEARCH_FILE, "priority": 1000}, "`priority`: Input"),
]


@pytest.mark.parametrize(("body", "words"), BODIES)
def test_a_body_that_is_no_search_is_one_clear_problem(
    served: Served, body: dict[str, Any], words: str
):
    for path in ("jobs", "estimate"):
        answer = httpx.post(f"{served.url}/v1/{path}", json=body)
        assert (answer.status_code, answer.json()["status"]) == (422, 422), answer.text
        assert words in answer.json()["detail"]
    assert served.store.ids() == []


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (
            b'{"choice":["\\ud800"]}',
            "texts of a search file must be of whole characters",
        ),
        (b'{"\\udfff":1}', "texts of a search file must be of whole characters"),
        (
            b'{"uniform":[0,1e999]}',
            "`search_file.epochs.uniform.1`: Input should be a finite number",
        ),
    ],
)
def test_what_no_file_can_hold_is_refused(served: Served, value: bytes, words: str):
    content = b'{"kind":"search","search_file":{"epochs":' + value + b"}}"
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{served.url}/v1/jobs", content=content, headers=headers)
    assert (answer.status_code, words in answer.json()["detail"]) == (422, True), answer.text


def test_a_pasted_search_is_read_as_data(served: Served):
    def read(text: str, path: str = "search-file") -> httpx.Response:
        return httpx.post(f"{served.url}/v1/{path}", json={"text": text})

    assert read(yaml.safe_dump(SEARCH_FILE)).json() == SEARCH_FILE
    for text, words in (
        ("a: &a [x]\nb: *a", "an alias"),
        ("epochs: [", "valid YAML"),
        ("a:\n  choice: [x, 2001-01-01]", "`a.choice.1` must be text, a number"),
    ):
        answer = read(text)
        assert (answer.status_code, words in answer.json()["detail"]) == (422, True), answer.text
    answer = read("search: {}", "config")
    assert "of one training" in answer.json()["detail"]


# -- what is told of it ----------------------------------------------------------------------------


def test_trials_are_put_together_and_come_live(served: Served, client: LaminarClient):
    job_id = served.submit_search()
    assert (client.trials(job_id).trials, client.metrics(job_id)) == ((), [])
    ledger = write_ledger(served.run(job_id))
    found = client.trials(job_id)
    assert (found.metrics, found.modes, found.num_trials, found.best) == (
        ("test_accuracy",), ("max",), 3, (0,),
    )  # fmt: skip
    assert [(t.status, t.epoch, t.values) for t in found.trials] == [
        ("finished", 2, {"test_accuracy": 0.75}),
        ("failed", 0, {}),
        ("running", 1, {"test_accuracy": None}),
    ]
    assert found.trials[0].curve == [(1, 0.5), (2, 0.75)]
    assert found.trials[1].error == "a stage died"

    lines = client.metrics(job_id)
    assert lines[-1]["metrics"]["test_accuracy"] is None  # infinite: JSON has no word for it
    events = client.follow_metrics(job_id)
    seen = [next(events) for _ in range(len(lines) + 1)]
    assert [event.event for event in seen] == ["state", *["trial"] * len(lines)]
    assert [event.json() for event in seen[1:]] == lines
    ledger.note("cc", {"optimizer.lr": 0.09}, "stopped")
    last = next(events)
    assert (last.json()["status"], last.id) == ("stopped", str(len(lines) + 1))
    served.tick()
    served.say(job_id, "running")
    served.tick()
    served.say(job_id, "ended", "stopped")
    served.tick()
    rest = list(events)
    assert {event.event for event in rest} == {"state", "search", "end"}
    from_there = client.follow_metrics(job_id, start=len(lines))
    assert [event.event for event in from_there if event.event == "trial"] == ["trial"]


def test_a_training_has_no_trials(served: Served, client: LaminarClient):
    with pytest.raises(ServiceError, match="a training and has no trials") as refused:
        client.trials(served.submit())
    assert refused.value.status == 404


def test_prometheus_counts_trials(served: Served):
    job_id = served.submit_search()
    served.tick()
    served.say(job_id, "running")
    served.tick()
    text = httpx.get(f"{served.url}/metrics").text
    assert f'laminar_job_trials_done{{job="{job_id}",owner="ada"}} 1.0' in text
    assert f'laminar_job_trials{{job="{job_id}",owner="ada"}} 3.0' in text


# -- the command line ------------------------------------------------------------------------------


def test_submit_knows_a_search_by_its_section(here: Served, laminar: Laminar):  # noqa: F811
    Path("search.yaml").write_text(yaml.safe_dump(SEARCH_FILE))
    code, out, err = laminar("submit", "search.yaml", "--set", "epochs=3", "--name", "lr")
    assert (code, err) == (0, "")
    job_id, estimate = out.splitlines()
    assert estimate.startswith("estimate: 3 trials, 1 at once, 2 workers, ")
    assert here.store.job(job_id).search_file == {**with_search(max_concurrent=1), "epochs": 3}
    here.tick()
    here.say(job_id, "running")
    here.tick()
    out = laminar("list")[1]
    assert [w for w in ("search", "trials 1/3, test_accuracy 0.75") if w not in out] == []
    out = laminar("status", job_id)[1]
    assert "a search of local" in out
    assert "1/3 trials done, 1 under way; best: trial 0, test_accuracy 0.75" in out
    write_ledger(here.run(job_id))
    here.say(job_id, "ended", "succeeded", "best of 3 trials")
    here.tick()
    code, _, err = laminar("submit", "search.yaml", "--wait", "--key", "other", "--dry-run")
    assert (code, err) == (0, "")
    code, _, err = laminar("submit", "search.yaml", "--keep", 2)
    assert (code, "--keep must go with a training" in err) == (2, True)
    code, _, err = laminar("submit", "search.yaml", "--set", "search.num_trials=0")
    assert (code, "`search.num_trials` must be greater than or equal to 1" in err) == (2, True)
    Path("dated.yaml").write_text("epochs: 2001-01-01\nsearch: {}\n")
    code, _, err = laminar("submit", "dated.yaml")
    assert (code, "put quotes around a date" in err) == (2, True)
    assert here.store.ids() == [job_id]


# -- the driver ------------------------------------------------------------------------------------


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
    for one in (JobRequest(), search_request()):
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
