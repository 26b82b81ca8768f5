"""The coordinator does its whole work in a process that never imports torch."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import torch

from actors.reports import SentBytes, StageReport
from laminar.checkpoint import load_tensors, read_manifest, write_part
from laminar.exactness import Exactness
from laminar.run_directory import RunDirectory
from laminar.tally import Tally
from tests.tiny import differing, run_reference, tiny_plan

PROGRAM = """
import pickle
import sys
from pathlib import Path

sys.modules["torch"] = None  # importing it raises
from actors.coordinator import Coordinator, Stages

plan, reports, part, run = pickle.loads(sys.stdin.buffer.read())


class Scripted(Stages):
    def __init__(self):
        pass

    def setup(self, plan, *, is_new=True):
        return [{"mean": [0.0], "std": [1.0]}]

    def train(self, segment, **measured):
        return reports

    def measure_exactness(self, segment):
        return [report.exactness for report in reports]

    def evaluate(self):
        return reports

    def save(self, folder):
        return [part]


actor = Coordinator.__ray_metadata__.modified_class
coordinator = actor(plan, run, [], num_to_keep=None, checkpoint=None, first_epoch=1)
coordinator._stages = Scripted()
coordinator.setup()
coordinator.run()
assert sys.modules["torch"] is None
"""


def test_a_coordinator_trains_evaluates_and_publishes_without_torch(
    repository: Path, tmp_path: Path
):
    """Its stages answer by script; the plan and their reports cross as Ray would send them."""
    plan = tiny_plan(12, num_stages=2)
    reference = run_reference(plan)
    run = RunDirectory(tmp_path / "run")
    run.create(plan.config)
    part = write_part(run.checkpoints / "epoch_0002", "stage_000.safetensors", reference.state())
    tally = Tally()
    logits, labels = torch.eye(4)[[0, 1, 2, 3, 0]], torch.tensor([0, 1, 2, 3, 3])
    tally.add_test(logits, labels, torch.tensor(0.5))
    sent = {"forward": SentBytes(3, 4), "adjoint": SentBytes(1, 2)}
    exactness = Exactness(1.0, 1.0, 1.0, 0.0)
    report = StageReport(1.0, {"forward": 1.0}, sent, tally, (), None, True, exactness)
    content = pickle.dumps((plan, [report, report], part, str(run.path)))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=repository,
        input=content,
        capture_output=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr.decode()
    (metrics,) = run.read_metrics()
    assert (metrics["epoch"], metrics["test_accuracy"], metrics["test_loss"]) == (2, 0.8, 0.5)
    assert metrics["ledger"]["cosine"] == 1
    assert metrics["cuts"][0]["store_bytes"] % 6 == 0 < metrics["cuts"][0]["store_bytes"]
    assert json.loads(run.confusion_file.read_text())["matrix"][3] == [1, 0, 0, 1]
    assert list(run.events.iterdir())
    manifest = read_manifest(run.checkpoints / "epoch_0002")
    assert manifest.plan == plan
    assert differing(reference.state(), load_tensors(manifest)) == []
