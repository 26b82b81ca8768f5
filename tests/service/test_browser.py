"""The web page in a real browser; cluster and drivers are played, the storage is real."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import expect

from laminar.config import Config
from service.jobs.models import JobRequest
from service.jobs.store import LOG
from tests.service.conftest import Serve, Served
from tests.service.ledgers import epoch_of, write_ledger
from tests.unit.test_report import metrics_line, timeline_line

expect.set_options(timeout=30_000)  # a busy machine is no failure

HOSTILE = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>"
LEDGER = {"stages": [{"cosine": 0.9, "relative_error": 0.1}] * 2, "cosine": 0.9}

CHARTS = (
    *("Loss", "Accuracy", "What the stages do", "Where the time of each stage goes"),
    *("Bytes over each cut", "Constraint violation", "Exactness of the gradients"),
)


@pytest.fixture
def page(chromium: Any) -> Iterator[Any]:
    """A page of its own whose script must not fail."""
    context = chromium.new_context(viewport={"width": 1200, "height": 900})
    opened = context.new_page()
    opened.set_default_timeout(30_000)  # a busy machine is no failure
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    yield opened
    context.close()
    assert errors == []


def running(served: Served, name: str = "first") -> str:
    job_id = served.submit(name=name)
    served.tick()
    served.say(job_id, "running")
    served.tick()
    return job_id


def write_run(served: Served, job_id: str, num_epochs: int) -> None:
    run = served.run(job_id)
    run.mkdir(exist_ok=True)
    metrics = [{**metrics_line(n), "ledger": LEDGER} for n in range(1, num_epochs + 1)]
    for name, lines in (
        ("timeline", [timeline_line(n) for n in range(1, num_epochs + 1)]),
        ("metrics", metrics),
    ):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (run / f"{name}.jsonl").write_text(text)


def submitted(served: Served) -> JobRequest:
    (job_id,) = served.store.ids()
    return served.store.spec(job_id).request


def opened(page: Any, section: str) -> Any:
    part = page.locator("details", has=page.get_by_role("heading", name=section, exact=True))
    if part.get_attribute("open") is None:
        part.locator("summary").first.click()
    return part


def test_the_form_holds_the_whole_configuration_and_submits_what_was_chosen(
    served: Served, page: Any
):
    page.goto(f"{served.url}/#/new")
    page.get_by_text("Workers").wait_for()  # the estimate is there before anything was asked for
    names = set(page.locator("[name]").evaluate_all("all => all.map(e => e.name)"))
    wanted = Config().model_dump(mode="json")
    missing = [
        f"{key}.{inner}"
        for key, value in wanted.items()
        if isinstance(value, dict)
        for inner in value
        if f"{key}.{inner}" not in names
    ]
    assert missing == []
    assert {key for key, value in wanted.items() if not isinstance(value, dict | list)} <= names
    assert page.get_by_text("changed", exact=True).count() == page.locator("details").count()
    assert page.locator(".mark:visible").count() == 0

    page.get_by_label("Name").first.fill("from the form")
    page.get_by_label("Priority").fill("7")
    optimizer = opened(page, "Optimizer")
    optimizer.get_by_label("Name").select_option("adamw")
    optimizer.get_by_label("Lr").fill("2e-3")
    filters = opened(page, "Filters")
    filters.get_by_label("Filters").select_option(label="list: filter")
    filters.get_by_role("button", name="Add one").click()
    filters.get_by_label("Cast").select_option("int8")
    opened(page, "Ema").get_by_label("Ema").select_option(label="ema")
    opened(page, "Precision").get_by_label("Tf32").select_option("true")
    assert page.locator(".mark:visible").count() == 4
    page.get_by_role("button", name="Submit job").click()
    page.get_by_role("heading", name="from the form").wait_for()
    request = submitted(served)
    assert request == JobRequest.model_validate(
        {
            "name": "from the form",
            "priority": 7,
            "config": {
                "optimizer": {"name": "adamw", "lr": 2e-3},
                "filters": [{"cast": "int8"}],
                "ema": {},
                "precision": {"tf32": True},
            },
        }
    )


MISTAKES = (
    (None, "Batch size", "7", "batch_size must be a multiple of parallel.micro_batches"),
    (None, "Epochs", "many", "`epochs` must be a valid integer"),
    (None, "Priority", "1000", "`priority`: Input should be less than or equal to 100"),
    ("Optimizer", "Momentum", "1", "must be less than 1"),
    ("Phases", "Warmup", "1", "phases.warmup + phases.correction must be <= 1"),
    ("Model", "Name", "resnet7", "`model.name` must name a network"),
)


def test_a_mistake_is_shown_at_its_field(served: Served, page: Any):
    page.goto(f"{served.url}/#/new")
    page.get_by_text("Workers").wait_for()
    invalid = page.locator("[aria-invalid=true]")
    for section, label, text, said in MISTAKES:
        where = page if section is None else opened(page, section)
        field = where.get_by_label(label, exact=True).first
        before = field.input_value()
        field.fill(text)
        page.get_by_role("button", name="Submit job").click()
        invalid.wait_for()
        name = field.get_attribute("id")
        assert invalid.get_attribute("id") == name
        described = str(field.get_attribute("aria-describedby")).split()[0]
        assert said in page.locator(f"#{described}").inner_text()
        assert page.evaluate("document.activeElement.id") == name
        field.fill(before)
        invalid.wait_for(state="detached")
    assert served.store.ids() == []


def test_a_pasted_file_fills_the_form_or_says_what_is_wrong(served: Served, page: Any):
    page.goto(f"{served.url}/#/new")
    page.get_by_role("tab", name="Form").press("ArrowRight")
    text = page.get_by_role("textbox", name="Configuration")
    text.fill("epochs: 3\noptimizer:\n  nesterov: yes please")
    page.get_by_role("button", name="Fill in the form").click()
    page.get_by_text("must be a valid boolean").wait_for()
    text.fill('{"epochs": 3, "schedule": {"name": "step", "milestones": [1, 2]}}')
    page.get_by_role("button", name="Fill in the form").click()
    expect(page.get_by_label("Epochs", exact=True)).to_have_value("3")
    schedule = opened(page, "Schedule")
    expect(schedule.get_by_label("Milestones")).to_have_value("1, 2")
    page.get_by_role("button", name="Submit job").click()
    page.get_by_role("button", name="Stop").wait_for()
    config = submitted(served).config
    assert (config.epochs, config.schedule.milestones) == (3, (1.0, 2.0))


def test_the_table_is_live_tells_changes_and_works_by_keyboard(served: Served, page: Any):
    first, second = running(served), served.submit(name="second", owner="bob", priority=4)
    page.goto(served.url)
    row = page.get_by_role("row").filter(has_text="second")
    row.get_by_text("queued").wait_for()
    assert [text.strip() for text in row.locator("td").all_inner_texts()][2:4] == ["bob", "4"]
    served.tick()  # there is room for both
    row.get_by_text("starting").wait_for()
    page.locator("#announcer", has_text="Job second: starting").wait_for(state="attached")
    assert page.get_by_role("progressbar", name="Progress of first").get_attribute("value") == "0.3"

    page.get_by_role("button", name="Queued").click()
    page.get_by_text("No job is queued.").wait_for()
    page.get_by_role("button", name="Active").click()
    page.get_by_role("link", name="first").wait_for()
    reached = []
    page.get_by_role("button", name="Stopped").focus()
    for _ in range(2):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.textContent"))
        style = "getComputedStyle(document.activeElement).outlineStyle"
        assert page.evaluate(style) == "solid"
    assert reached == ["second", "first"]
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="first").wait_for()
    assert page.url.endswith(f"#/jobs/{first}")
    assert served.state(second) == "starting"


def test_a_job_is_watched_stopped_resumed_and_deleted(served: Served, page: Any):
    job_id = running(served)
    write_run(served, job_id, 2)
    (served.folder / job_id / LOG).write_text("hello\n")
    page.goto(f"{served.url}/#/jobs/{job_id}")
    page.get_by_role("log").get_by_text("hello").wait_for()
    for title in CHARTS:
        figure = page.get_by_role("figure").filter(has=page.get_by_role("heading", name=title))
        figure.locator("svg.main-svg").first.wait_for()
    loss = page.get_by_role("img", name="Loss, after epoch 2").locator(".scatterlayer .trace")
    expect(loss).to_have_count(3)  # training, test, and the epoch under way
    expect(loss.first.locator(".point")).to_have_count(2)
    write_run(served, job_id, 3)
    with (served.folder / job_id / LOG).open("a") as log:
        log.write("more\n")
    page.get_by_role("img", name="Loss, after epoch 3").wait_for()
    page.get_by_role("log").get_by_text("more").wait_for()
    assert page.get_by_label("Epoch", exact=True).locator("option").all_inner_texts()[0] == "3"

    page.get_by_role("button", name="Stop").click()
    page.get_by_text("stopping").first.wait_for()
    served.say(job_id, "ended", "stopped", "last checkpoint: epoch_0003")
    served.tick()
    page.get_by_text("last checkpoint: epoch_0003").first.wait_for()
    with page.expect_download() as download:
        page.get_by_role("link", name="metrics.jsonl").click()
    assert (
        Path(download.value.path()).read_bytes()
        == (served.run(job_id) / "metrics.jsonl").read_bytes()
    )
    page.get_by_role("button", name="Resume").click()
    page.get_by_text("resume was asked for").first.wait_for()
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    page.get_by_role("heading", name="No jobs yet").wait_for()
    assert served.store.ids() == []


def test_text_of_strangers_stays_text(served: Served, page: Any):
    job_id = running(served)
    write_run(served, job_id, 1)
    (served.run(job_id) / HOSTILE.replace("/", "|")).write_text("")
    (served.folder / job_id / LOG).write_text(f"\x1b[31m{HOSTILE}\x1b[0m\n")
    page.goto(f"{served.url}/#/jobs/{job_id}")
    page.get_by_role("log").get_by_text(HOSTILE).wait_for()
    page.get_by_role("link", name="<img").wait_for()
    served.say(job_id, "ended", "refused", HOSTILE)
    served.tick()
    page.locator("p.reason", has_text=HOSTILE).wait_for()
    page.get_by_role("link", name="Jobs").click()
    page.locator("td .reason", has_text=HOSTILE).wait_for()
    page.goto(f"{served.url}/#/jobs/{quote('<img src=x>')}")
    page.get_by_text("there is no such job").wait_for()
    assert page.locator("main img, main script").count() == 0
    assert page.evaluate("window.hacked === undefined")
    # And were there a hole, the policy would keep a script from running in it.
    page.evaluate("document.body.append(Object.assign(document.createElement('script'),"
                  " {textContent: 'window.hacked=1'}))")  # fmt: skip
    assert page.evaluate("window.hacked === undefined")


def test_a_token_is_asked_for_kept_in_the_tab_and_rules_what_is_offered(
    serve: Serve, tokens: Any, page: Any
):
    file, secrets = tokens
    served = serve(file)
    job_id = running(served)
    write_run(served, job_id, 1)
    page.goto(f"{served.url}/#/jobs/{job_id}")
    field = page.get_by_role("textbox", name="Token")
    field.fill("lam_wrong")
    field.press("Enter")
    page.get_by_text("does not know this token").wait_for()
    field.fill(secrets["reader"])
    field.press("Enter")
    page.get_by_text("reader (read)").wait_for()
    page.get_by_role("img", name="Loss, after epoch 1").wait_for()  # its stream sent the token
    assert page.get_by_role("button", name="Stop").count() == 0
    assert page.evaluate("Object.values(localStorage).join()") == ""
    with page.expect_download() as download:
        page.get_by_role("link", name="metrics.jsonl").click()
    assert download.value.suggested_filename == "metrics.jsonl"
    page.get_by_role("button", name="Sign out").click()
    page.get_by_role("textbox", name="Token").fill(secrets["ada"])
    page.get_by_role("textbox", name="Token").press("Enter")
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("stopping").first.wait_for()
    assert served.state(job_id) == "stopping"


def test_light_and_dark_narrow_and_wide(served: Served, page: Any):
    job_id = running(served)
    write_run(served, job_id, 2)
    background = "getComputedStyle(document.body).backgroundColor"
    page.emulate_media(color_scheme="dark")
    page.goto(f"{served.url}/#/jobs/{job_id}")
    dark = page.evaluate(background)
    line = page.locator("path.js-line").first  # of a chart, which Plotly draws
    line.wait_for(state="attached")
    dark_line = line.get_attribute("style")
    page.emulate_media(color_scheme="light")
    page.locator(f"path.js-line:not([style='{dark_line}'])").first.wait_for(state="attached")
    light = page.evaluate(background)
    assert light != dark
    toggle = page.get_by_role("button", name="Theme")
    toggle.click()
    toggle.click()
    assert page.evaluate(background) == dark
    page.reload()
    assert page.evaluate(background) == dark  # the choice is kept
    for width in (360, 1600):
        page.set_viewport_size({"width": width, "height": 800})
        for path in (f"#/jobs/{job_id}", "#/new", "#/"):
            page.goto(f"{served.url}/{path}")
            page.get_by_role("heading", level=1).wait_for()
            scrolls = "document.documentElement.scrollWidth > innerWidth"
            assert not page.evaluate(scrolls), (width, path)


SEARCH = """
epochs: 2
model: {name: resnet8, width: 4}
data: {name: synthetic, image_size: 8, num_classes: 4, num_train: 41, num_test: 15}
batch_size: 8
optimizer:
  lr: {loguniform: [0.01, 0.1]}
search: {num_trials: 3, algorithm: random}
"""


def test_a_search_is_submitted_and_its_trials_are_watched(
    served: Served, page: Any, tmp_path: Path
):
    page.goto(f"{served.url}/#/new")
    page.get_by_role("link", name="New search").click()
    text = page.get_by_label("Search file")
    page.get_by_role("button", name="Insert an example").click()
    assert "loguniform" in text.input_value()
    text.fill(SEARCH.replace("0.01, 0.1", "-1, 1"))
    page.get_by_text("`optimizer.lr.loguniform` must be a range with low > 0").wait_for()
    assert text.get_attribute("aria-invalid") == "true"
    text.fill(SEARCH)
    page.get_by_label("Name").fill("step-size")
    page.get_by_label("Cost and submission").get_by_text("Trials").wait_for()
    page.get_by_role("button", name="Submit search").click()
    page.get_by_role("heading", name="step-size").wait_for()
    (job_id,) = served.store.ids()
    spec = served.store.spec(job_id)
    assert (spec.request.kind, spec.request.search_file["epochs"]) == ("search", 2)

    served.tick()
    served.say(job_id, "running")
    served.tick()
    ledger = write_ledger(served.run(job_id))
    (served.run(job_id) / "best.yaml").write_text("epochs: 2\n")
    (served.run(job_id) / "report.html").write_text(HOSTILE)
    rows = page.get_by_role("table", name="Trials in the order of their starts").locator("tbody tr")
    expect(rows).to_have_count(3)
    assert rows.first.locator("th, td").all_inner_texts() == [
        *("0 (best)", "finished", "2 of 2", "75.00\N{NO-BREAK SPACE}%", "0.02"),
    ]
    expect(rows.nth(1)).to_contain_text("a stage died")
    page.get_by_text("Best: trial 0, test_accuracy 75.00").wait_for()
    page.get_by_text("1 of 3 trials · 1 under way · best test_accuracy 75.00").wait_for()
    for title in ("Trials", "Learning curves"):
        heading = page.get_by_role("heading", name=title, exact=True)
        page.get_by_role("figure").filter(has=heading).locator("svg.main-svg").first.wait_for()
    ledger.report("cc", {"optimizer.lr": 0.09}, epoch_of(2, 0.875, is_last=True))
    page.get_by_text("Best: trial 2, test_accuracy 87.50").wait_for()
    ledger.note("cc", {"optimizer.lr": 0.09}, "failed", HOSTILE)
    expect(rows.nth(2)).to_contain_text(HOSTILE)
    served.say(job_id, "ended", "succeeded", "best of 3 trials: number 2, test_accuracy 0.875")
    served.tick()
    page.get_by_text("best of 3 trials").first.wait_for()
    page.screenshot(path=tmp_path / "search.png", full_page=True)
    with page.expect_download() as download:
        page.get_by_role("link", name="Report", exact=True).click()
    assert Path(download.value.path()).read_text() == HOSTILE
    assert page.locator("main img, main script").count() == 0

    page.get_by_role("link", name="Use as a template").click()
    expect(page.get_by_label("Search file")).to_have_value(re.compile('"loguniform"'))
    page.goto(served.url)
    row = page.get_by_role("row").filter(has_text="step-size")
    expect(row).to_contain_text("search")
    expect(row).to_contain_text("1 of 3 trials")
    for width in (360, 1600):
        page.set_viewport_size({"width": width, "height": 800})
        for path in (f"#/jobs/{job_id}", "#/search"):
            page.goto(f"{served.url}/{path}")
            page.get_by_role("heading", level=1).wait_for()
            scrolls = "document.documentElement.scrollWidth > innerWidth"
            assert not page.evaluate(scrolls), (width, path)
