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
    assert (config.seed, config.epochs) == (1, gpu.EPOCHS)
    assert config.num_stages == {"serial": 1, "k2": 2, "k4": 4}[setting]


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
