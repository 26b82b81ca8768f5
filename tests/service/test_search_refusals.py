"""A search is data, never code, and within measure: what is refused of one, and how."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from laminar.errors import ConfigError
from service.jobs import entry
from service.jobs.settings import Settings
from tests.service.conftest import Served
from tests.service.scripted_cluster import (
    SEARCH_FILE,
    Service,
    search_request,
    with_search,
)
from tuning.config import parse_search

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
