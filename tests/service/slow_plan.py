"""A plan that takes as long as a test likes, in a module that a new process imports at once."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from service.jobs.models import Estimate

MARK = "LAMINAR_TEST_MARK"
"""Environment variable that names the file which the slow job leaves when it begins."""


def slow_plan(config_json: str) -> Estimate:
    """Plan in no time, but a job of 99 epochs never."""
    if json.loads(config_json)["epochs"] == 99:
        Path(os.environ[MARK]).touch()
        time.sleep(300)
    return Estimate(num_workers=1, cpus=1, gpus=0, stage_bytes=(1,), memory_bytes=1, seconds=None)
