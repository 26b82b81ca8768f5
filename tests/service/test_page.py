"""What the web page is served with: its files, its policy, and the routes made for it."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest

from laminar.config import Config
from laminar.config_file import dump_config
from service.api.page import FOLDER
from tests.service.conftest import Serve, Served
from tests.unit.test_report import timeline_line


def test_the_page_needs_no_token_and_its_policy_is_strict(serve: Serve, tokens: Any):
    served = serve(tokens[0])
    answer = httpx.get(served.url)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(
        part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; ")
    )
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert httpx.get(f"{served.url}/v1/jobs").status_code == 401
    assert "/" not in httpx.get(f"{served.url}/openapi.json").json()["paths"]


def test_every_file_that_the_page_names_is_served_here_and_nothing_else(served: Served):
    page = (FOLDER / "index.html").read_text()
    assert "://" not in page.replace("http://www.w3.org", "")
    named = re.findall(r'(?:src|href)="(static/[^"]+)"', page)
    modules = {path.name for path in FOLDER.glob("*.js")}
    imported = {
        name
        for module in modules
        for name in re.findall(r'from "\./([\w.]+)"', (FOLDER / module).read_text())
    }
    entries = {name.removeprefix("static/") for name in named if name.endswith(".js")}
    assert imported | entries == modules  # none is missing, none is left over
    for path in [*named, *(f"static/{name}" for name in imported), "static/plotly.min.js"]:
        answer = httpx.get(f"{served.url}/{path}")
        assert answer.status_code == 200, path
        assert answer.headers["x-content-type-options"] == "nosniff"
        kind = {"js": "javascript", "css": "css", "svg": "svg"}[path.rsplit(".", 1)[1]]
        assert kind in answer.headers["content-type"]
    for path in ("static/", "static/../api/auth.py", "static/%2e%2e/api/auth.py", "static/x.js"):
        assert httpx.get(f"{served.url}/{path}").status_code == 404, path


def test_browsers_keep_files_that_have_not_changed(served: Served):
    url = f"{served.url}/static/plotly.min.js"
    first = httpx.get(url)
    assert first.headers["cache-control"] == "no-cache"
    again = httpx.get(url, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_no_module_of_the_page_makes_markup_of_text():
    for module in FOLDER.glob("*.js"):
        text = module.read_text()
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert word not in text, (module.name, word)


def read(served: Served, text: str) -> httpx.Response:
    return httpx.post(f"{served.url}/v1/config", json={"text": text})


def test_a_pasted_configuration_is_read_and_made_whole(served: Served):
    defaults = Config().model_dump(mode="json")
    assert read(served, "").json() == read(served, "{}").json() == defaults
    changed = Config(epochs=7, num_stages=3)
    assert read(served, dump_config(changed)).json() == changed.model_dump(mode="json")
    assert read(served, json.dumps({"optimizer": {"lr": 0.5}})).json()["optimizer"]["lr"] == 0.5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epochs: [", "valid YAML"),
        ("- 1", "mapping of keys to values (got list)"),
        ("1: 2", "mapping of keys to values"),
        ("epochss: 3", "did you mean `epochs`?"),
        ("optimizer:\n  lr: -1", "`optimizer.lr` must be greater than 0"),
        ("a: &a [x]\nb: [*a, *a]", "line 2: an alias"),
        ("a: &a [*a]", "an alias"),
        ("[" * 5000, "too many levels"),
        ("a: 2001-99-99", "month must be in 1..12"),
        ("!!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("a: " + "9" * 5000, "digits"),
        ("a: \x07", "valid YAML"),
    ],
)
def test_a_pasted_text_that_is_no_configuration_is_one_clear_problem(
    served: Served, text: str, said: str
):
    answer = read(served, text)
    assert answer.status_code == 422, answer.text
    assert said in answer.json()["detail"]


def test_a_log_is_followed_from_its_last_lines_on(served: Served):
    job_id = served.submit()
    served.manager.stop(job_id)
    log = served.folder / job_id / "log.txt"
    url = f"{served.url}/v1/jobs/{job_id}/logs/events"

    def followed(**query: int) -> list[str]:
        lines = httpx.get(url, params=query).text.splitlines()
        return [line.removeprefix("data: ") for line in lines if line.startswith("data: ")][:-1]

    assert followed(most=5) == []
    log.write_text("one\ntwo\nthree\n")
    assert followed() == followed(most=14) == followed(most=99) == ["one", "two", "three"]
    assert followed(most=13) == followed(most=10) == ["two", "three"]
    assert followed(most=9) == followed(most=6) == ["three"]
    assert followed(most=5) == []
    assert followed(most=13, start=8) == ["three"]


def test_a_timeline_comes_without_traces_and_by_epoch_with_them(served: Served):
    job_id = served.submit()
    url = f"{served.url}/v1/jobs/{job_id}/timeline"
    assert httpx.get(url).json() == []
    served.run(job_id).mkdir()
    lines = [timeline_line(epoch) for epoch in (1, 2, 3)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (served.run(job_id) / "timeline.jsonl").write_text(text + '{"epoch": 4, "pha')
    found = httpx.get(url, params={"start": 1}).json()
    assert [line["epoch"] for line in found] == [2, 3]
    for line, whole in zip(found, lines[1:], strict=True):
        for phase, full in zip(line["phases"], whole["phases"], strict=True):
            assert phase.pop("is_traced") == bool(full["trace"])
            assert phase == {key: value for key, value in full.items() if key != "trace"}
    assert httpx.get(f"{url}/2").json() == lines[1]
    assert httpx.get(f"{url}/4").status_code == 404
    assert httpx.get(f"{url}/0").status_code == 422
