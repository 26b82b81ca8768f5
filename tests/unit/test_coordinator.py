"""What the coordinator says of a run while its stages are busy, without Ray."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from actors.coordinator import Coordinator
from actors.reports import StageProgress
from laminar.tally import Tally
from tests.tiny import tiny_plan


def test_a_late_answer_keeps_the_last_figures_and_a_lost_stage_is_lost(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    tally = Tally(num_samples=4, loss_sum=2.0, num_correct=1)
    late, lost = ray.exceptions.GetTimeoutError("late"), ray.exceptions.RayActorError()
    answers = [StageProgress(3, tally), late, lost]

    def get(ref: Any, timeout: float) -> StageProgress:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(ray, "get", get)
    kind: Any = Coordinator.__ray_metadata__.modified_class  # type: ignore[attr-defined]
    stage = SimpleNamespace(progress=SimpleNamespace(remote=lambda: "ref"))
    one = kind(
        tiny_plan(3), str(tmp_path), [stage], num_to_keep=None, checkpoint=None, first_epoch=0
    )
    one._enter("parallel", 0)
    for _ in range(2):
        found, _ = kind.status(one, 0)
        assert (found.num_batches_done, found.loss, found.accuracy) == (3, 0.5, 0.25)
    with pytest.raises(ray.exceptions.RayActorError):
        kind.status(one, 0)
