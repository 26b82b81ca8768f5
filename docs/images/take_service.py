"""Take the picture of a job's page anew: `python -m docs.images.take_service`, in the root.

A real job on a real cluster, of the nodes that the tests start; two or three minutes on two cores.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from laminar.config import Config
from service.client import LaminarClient
from service.jobs.models import ENDED, JobRequest
from tests.end_to_end.deployment import deployment

PICTURE = Path(__file__).with_name("service.png")
WIDTH, HEIGHT = 1180, 1366
"""Down to the bytes over each cut."""
AFTER_EPOCHS = 15


def main() -> None:
    """Submit, wait until there is something to see, take the picture while the job runs."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        sys.exit("error: a Chromium must be installed, which is Debian's package chromium")
    with (
        tempfile.TemporaryDirectory() as folder,
        deployment(Path(folder)) as deployed,
        LaminarClient(deployed.service.url) as client,
        sync_playwright() as driver,
    ):
        deployed.wait_for_nodes()
        request = JobRequest(config=Config(), name="digits-baseline", priority=5)
        job_id = client.submit(request).id
        while (progress := client.job(job_id).progress) is None or progress.epoch <= AFTER_EPOCHS:
            if client.job(job_id).state in ENDED:
                sys.exit(
                    f"error: the job ended before its picture was taken\n{client.logs(job_id)}"
                )
            time.sleep(0.5)
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(f"{deployed.service.url}/#/jobs/{job_id}")
        page.get_by_role("heading", name="Bytes over each cut").wait_for()
        page.locator(".js-plotly-plot").nth(4).wait_for()
        page.wait_for_timeout(1500)  # charts are drawn one after the other
        picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        browser.close()
    picture.quantize(64, dither=Image.Dither.NONE).save(PICTURE, optimize=True)


if __name__ == "__main__":
    main()
