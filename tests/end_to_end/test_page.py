"""A walk through the web page in a real browser, with a real service on a real cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from service.client import LaminarClient
from tests.end_to_end.deployment import Deployment
from tests.tiny import tiny_config

WAIT_MS = 90_000  # drivers and stages import torch, on a busy machine slowly
NUM_EPOCHS = 3000  # more than anybody waits for


@pytest.mark.timeout(300)
def test_a_job_is_submitted_watched_and_stopped_in_the_browser(chromium: Any, deployed: Deployment):
    config = tiny_config(10, epochs=NUM_EPOCHS, num_stages=2)
    text = yaml.safe_dump(config.model_dump(mode="json"))
    service = deployed.service
    page = chromium.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.set_default_timeout(WAIT_MS)
    page.goto(service.url)
    page.get_by_role("link", name="New job").last.click()
    page.get_by_role("tab", name="YAML or JSON").click()
    page.get_by_role("textbox", name="Configuration").fill(text)
    page.get_by_role("button", name="Fill in the form").click()
    page.get_by_label("Name").first.fill("walk")
    page.get_by_role("term").filter(has_text="Memory").wait_for()  # what it will take
    page.get_by_role("button", name="Submit job").click()

    page.get_by_role("heading", name="walk").wait_for()
    page.locator(".badge", has_text="running").wait_for()
    loss = page.get_by_role("img", name="Loss, after epoch").locator(".scatterlayer .trace")
    points = loss.first.locator(".point")
    points.nth(0).wait_for(state="attached")
    seen = points.count()
    points.nth(seen + 1).wait_for(state="attached")  # and it grows
    page.get_by_role("img", name="Timeline of 2 stages").wait_for()
    page.get_by_role("log").get_by_text("epoch 1/").wait_for()

    page.get_by_role("button", name="Stop").click()
    page.locator(".badge", has_text="stopped").wait_for()
    page.get_by_text("last checkpoint: epoch_").first.wait_for()
    page.get_by_text("Checkpoint of epoch").first.click()
    with page.expect_download() as download:
        page.get_by_role("link", name="stage_000.safetensors").first.click()
    fetched = Path(download.value.path()).read_bytes()
    page.get_by_role("link", name="Jobs").click()
    page.get_by_role("row").filter(has_text="walk").get_by_text("stopped").first.wait_for()
    with LaminarClient(service.url) as client:
        (job,) = (found for found in client.jobs() if found.name == "walk")
        epochs = [line["epoch"] for line in client.metrics(job.id)]
    assert (job.name, job.state) == ("walk", "stopped")
    assert 2 < len(epochs) < NUM_EPOCHS
    saved = service.storage.glob(f"{job.id}/run/checkpoints/*/stage_000.safetensors")
    assert fetched in [file.read_bytes() for file in saved]
    assert errors == []
    page.close()
