"""Somebody who submits a job, watches it and stops it: on the page in a browser, or over REST."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from service.client import LaminarClient
from service.jobs.models import JobRequest

_WAIT_MS = 90_000  # drivers and stages import torch, on a busy machine slowly


class RestUser:
    """Whoever has no browser; does the same as `BrowserUser`.

    Args:
        client: Of the service.
        folder: For what is fetched.
        why_no_browser: In words.
    """

    def __init__(self, client: LaminarClient, folder: Path, *, why_no_browser: str) -> None:
        self.why_no_browser = why_no_browser
        self._client, self._folder, self._id = client, folder, ""

    def submit(self, request: JobRequest) -> str:
        """Submit a job; return its id."""
        self._id = self._client.submit(request).id
        return self._id

    def watch(self) -> None:
        """Wait for the first epoch."""
        for event in self._client.follow_metrics(self._id):
            assert event.event != "end", self._client.logs(self._id)
            if event.event == "epoch":
                return

    def stop(self) -> None:
        """Ask for the end; it may take a while."""
        self._client.stop(self._id)

    def fetch_weights(self) -> bytes:
        """Return the first stage's file of a checkpoint of the stopped job."""
        path = f"checkpoints/{self._client.checkpoints(self._id)[-1].name}/stage_000.safetensors"
        self._client.download(self._id, path, self._folder / "stage_000.safetensors")
        return (self._folder / "stage_000.safetensors").read_bytes()


class BrowserUser:
    """Whoever looks at the page, in a real browser.

    Args:
        page: An empty one.
        client: Of the service that the page is of; to look up the job's id.
    """

    why_no_browser = ""

    def __init__(self, page: Any, client: LaminarClient) -> None:
        self._page, self._client = page, client
        self._name, self._num_stages = "", 0
        self._errors: list[str] = []
        page.on("pageerror", lambda error: self._errors.append(str(error)))
        page.set_default_timeout(_WAIT_MS)

    def submit(self, request: JobRequest) -> str:
        """Paste a configuration, look at what it will take, submit it; return the job's id."""
        page, name = self._page, request.name or ""
        self._name, self._num_stages = name, request.config.num_stages
        page.goto(self._client.url)
        page.get_by_role("link", name="New job").last.click()
        page.get_by_role("tab", name="YAML or JSON").click()
        text = yaml.safe_dump(request.config.model_dump(mode="json"))
        page.get_by_role("textbox", name="Configuration").fill(text)
        page.get_by_role("button", name="Fill in the form").click()
        page.get_by_label("Name").first.fill(name)
        page.get_by_role("term").filter(has_text="Memory").wait_for()
        page.get_by_role("button", name="Submit job").click()
        page.get_by_role("heading", name=name).wait_for()
        (job,) = (found for found in self._client.jobs() if found.name == name)
        return job.id

    def watch(self) -> None:
        """See the curve of the loss, and it grow."""
        page = self._page
        page.locator(".badge", has_text="running").wait_for()
        loss = page.get_by_role("img", name="Loss, after epoch").locator(".scatterlayer .trace")
        points = loss.first.locator(".point")
        points.nth(0).wait_for(state="attached")
        points.nth(points.count() + 1).wait_for(state="attached")

    def stop(self) -> None:
        """Press the button and wait; then look at what there is to see of the run."""
        page = self._page
        page.get_by_role("button", name="Stop").click()
        page.locator(".badge", has_text="stopped").wait_for()
        page.get_by_text("last checkpoint: epoch_").first.wait_for()
        page.get_by_role("img", name=f"Timeline of {self._num_stages} stages").wait_for()
        page.get_by_role("log").get_by_text("epoch 1/").wait_for()

    def fetch_weights(self) -> bytes:
        """Return the first stage's file of a checkpoint; then find the job in the table, and go."""
        page = self._page
        page.get_by_text("Checkpoint of epoch").first.click()
        with page.expect_download() as download:
            page.get_by_role("link", name="stage_000.safetensors").first.click()
        fetched = Path(download.value.path()).read_bytes()
        page.get_by_role("link", name="Jobs").click()
        row = page.get_by_role("row").filter(has_text=self._name)
        row.get_by_text("stopped").first.wait_for()
        page.close()
        assert self._errors == []
        return fetched
