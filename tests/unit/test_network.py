import pytest
import torch

from laminar.config import ModelConfig
from laminar.resnet import build_blocks, num_blocks
from tests.tiny import tiny_plan

# Parameters of He et al. 2016, table 6 (0.27M, 0.46M, 0.66M, 0.85M, 1.7M), to the last one.
COUNTS = {
    "resnet8": 75_290,
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name):
    blocks = build_blocks(ModelConfig(name=name), in_channels=3, num_classes=10, seed=0)
    parameters = [p for block in blocks for p in block.module.parameters()]
    assert sum(p.numel() for p in parameters) == COUNTS[name]
    assert len(blocks) == num_blocks(ModelConfig(name=name)) == (int(name[6:]) - 2) // 2 + 2
    assert len({block.name for block in blocks}) == len(blocks)


def test_a_blocks_weights_do_not_depend_on_the_cuts():
    kwargs = {"in_channels": 3, "num_classes": 10, "seed": 5}
    whole = build_blocks(ModelConfig(), **kwargs)
    part = build_blocks(ModelConfig(), **kwargs, first=4, last=7)
    for a, b in zip(whole[4:7], part, strict=True):
        assert a.name == b.name
        for p, q in zip(a.module.parameters(), b.module.parameters(), strict=True):
            assert torch.equal(p, q)


def test_building_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    build_blocks(ModelConfig(name="resnet8"), in_channels=3, num_classes=10, seed=0)
    assert torch.equal(torch.rand(4), expected)


def test_shortcut_of_option_a():
    block = build_blocks(ModelConfig(name="resnet8"), in_channels=3, num_classes=10, seed=0)[2]
    for parameter in block.module.parameters():
        parameter.data.zero_()
    x = torch.rand(1, 16, 4, 4)
    out = block.module(x)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert out[:, :8].abs().sum() == out[:, 24:].abs().sum() == 0


def test_public_names_do_not_depend_on_the_cuts():
    plan = tiny_plan(num_stages=1)
    whole = {name for name, _ in plan.build_stage_module(0, 5).public_tensors()}
    parts = [plan.build_stage_module(a, b).public_tensors() for a, b in ((0, 2), (2, 5))]
    assert whole == {name for part in parts for name, _ in part}
    assert "layer2.0.conv1.weight" in whole
