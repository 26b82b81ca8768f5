"""The benchmark for a lent GPU, on this CPU: a run in two sittings equals one in a single one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from benchmarks.accuracy import gpu
from laminar.data import describe
from laminar.planning import make_plan
from tests.tiny import differing, run_reference, tiny_config


@pytest.mark.parametrize("setting", gpu.SETTINGS)
def test_every_setting_is_a_configuration(setting: str, tmp_path: Path):
    config = gpu.configure("resnet20", setting, 1, str(tmp_path))
    is_hybrid = setting in ("k2", "k4", "k4-int8")
    assert config.num_stages == (int(setting[1]) if is_hybrid else 1)
    assert (config.epochs < gpu.EPOCHS) == setting.endswith(("-only", "-time"))


def test_controls_have_the_exact_passes_and_the_time_of_their_hybrid():
    """Of 30: a tenth and .15 are 3 and 4.5; K=2 takes .604 of serial's time, K=4 .278."""
    lengths = {name: row.epochs for name, row in gpu.SETTINGS.items() if row.epochs < 30}
    assert lengths == {
        "k2-exact-only": 3,
        "k2-same-time": 19,
        "k4-exact-only": 5,
        "k4-same-time": 9,
    }


def test_a_run_goes_on_where_the_last_sitting_left_it(tmp_path: Path):
    state = tmp_path / "a.jsonl", tmp_path / "a.safetensors"
    config = tiny_config(6, epochs=3)
    # An epoch takes a second; the second would end at 4.
    assert not gpu.go_on(config, state, "cpu", 3.5, iter((1.0, 2.0, 3.0)).__next__)
    assert len(state[0].read_text().splitlines()) == 1
    assert gpu.go_on(config, state, "cpu", 9.0, iter((1.0, 2.0, 3.0, 4.0)).__next__)
    reference = run_reference(make_plan(config, describe(config.data)))
    assert differing(reference.state(), load_file(tmp_path / "a.3.safetensors")) == []
    lines = [json.loads(line) for line in state[0].read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert 0 <= lines[-1]["test_accuracy"] <= 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.3.safetensors", "a.jsonl"]
