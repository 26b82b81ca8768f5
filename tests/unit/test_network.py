import pytest
import torch
from torch import nn

from laminar.blocks import block_seed, infer_shapes
from laminar.config import ModelConfig
from laminar.networks import build_blocks, num_blocks
from tests.tiny import tiny_plan

# He et al. 2016, table 6 (0.27M, 0.46M, 0.66M, 0.85M, 1.7M), to the last parameter.
COUNTS = {
    "resnet8": 75_290,
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
}
# In millions, as published: He et al. 2016 (1512.03385), table 6; He et al. 2016b (1603.05027) and
# Zagoruyko & Komodakis (1605.07146), tables of CIFAR results.
PUBLISHED = {
    "resnet1202": "19.4",
    "preact_resnet110": "1.7",
    "preact_resnet164": "1.7",
    "preact_resnet1001": "10.2",
    "wrn40_1": "0.6",
    "wrn40_2": "2.2",
    "wrn40_4": "8.9",
    "wrn40_8": "35.7",
    "wrn28_10": "36.5",
    "wrn28_12": "52.5",
    "wrn22_8": "17.2",
    "wrn22_10": "26.8",
    "wrn16_8": "11.0",
    "wrn16_10": "17.1",
}


def count(name, **options):
    model = ModelConfig(name=name, **options)
    blocks = build_blocks(model, in_channels=3, num_classes=10, seed=0, device="meta")
    assert len(blocks) == num_blocks(model)
    assert len({block.name for block in blocks}) == len(blocks)
    layers = [layer for block in blocks for layer in block.module.modules()]
    parameters = [p for layer in layers for p in layer.parameters(recurse=False)]
    norms = [p for layer in layers if isinstance(layer, nn.BatchNorm2d) for p in layer.parameters()]
    total, in_norms = (sum(p.numel() for p in group) for group in (parameters, norms))
    return total, in_norms, len(blocks)


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name):
    total, _, num = count(name)
    assert total == COUNTS[name]
    assert num == (int(name[6:]) - 2) // 2 + 2


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_as_published(name):
    total, in_norms, _ = count(name)
    # Only that of ResNet-1001 leaves the norms out: 10.18M, and 10.33M with them.
    total -= in_norms if name == "preact_resnet1001" else 0
    assert f"{total / 1e6:.1f}" == PUBLISHED[name]


@pytest.mark.parametrize("name", ["resnet8", "resnet18", "resnext50_32x4d", "wrn10_2",
                                  "preact_resnet8", "preact_resnet164"])  # fmt: skip
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_networks_learn_from_every_parameter(name, norm):
    """Forward and backward on 12x12 images: odd maps on the way, and no dead end."""
    model = ModelConfig(name=name, norm=norm, width=16 if "next" in name else 4)
    blocks = build_blocks(model, in_channels=2, num_classes=3, seed=1)
    network = nn.Sequential(*(block.module for block in blocks))
    x = torch.rand(4, 2, 12, 12, generator=torch.Generator().manual_seed(0))
    network(x)[:, 0].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert all(p.grad.abs().sum() > 0 for n, p in network.named_parameters() if "conv1.w" in n)
    has_statistics = any("running_mean" in n for n, _ in network.named_buffers())
    assert has_statistics == (norm == "batch")
    assert infer_shapes(blocks, (2, 12, 12))[-1] == (3,)


def test_group_norm_does_not_look_at_the_batch():
    model = ModelConfig(name="wrn10_2", norm="group")
    blocks = build_blocks(model, in_channels=3, num_classes=3, seed=1)
    network = nn.Sequential(*(block.module for block in blocks))
    x = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(network(x)[1:2], network(x[1:2]), atol=1e-6)


def test_shapes_of_a_network_without_values():
    """As planning does it: nothing is allocated, and every block stays on the meta device."""
    kwargs = {"in_channels": 3, "num_classes": 1000, "seed": 0, "device": "meta"}
    blocks = build_blocks(ModelConfig(name="resnet50"), **kwargs)
    shapes = infer_shapes(blocks, (3, 224, 224))
    assert [shapes[i] for i in (1, 4, 8, 14, 17, 18)] == [
        (64, 56, 56), (256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7), (1000,)
    ]  # fmt: skip
    assert all(p.is_meta for block in blocks for p in block.module.parameters())
    assert all(block.module.training for block in blocks)


@pytest.mark.parametrize("name", ["resnet9", "resnet2", "wrn16", "wrn17_2", "wrn16_0", "resnet20_2",
                                  "preact_resnet51", "wrn4_2", "vgg", "RESNET20"])  # fmt: skip
def test_networks_that_do_not_exist(name):
    with pytest.raises(ValueError, match=r"`model.name` must name a network \(got '"):
        ModelConfig(name=name)


def test_dropout_is_refused_where_no_block_has_it():
    assert ModelConfig(name="wrn16_2", dropout=0.3).dropout == 0.3
    with pytest.raises(ValueError, match="must be 0 except for a wrn"):
        ModelConfig(name="resnet20", dropout=0.3)


def test_a_block_draws_its_weights_from_a_generator_of_its_own():
    """Written out: what the initial weights of a CIFAR ResNet are, whatever comes before them."""
    block = build_blocks(ModelConfig(name="resnet8"), in_channels=3, num_classes=10, seed=5)[2]
    torch.manual_seed(block_seed(5, 2))
    convs = [nn.Conv2d(i, 32, 3, bias=False) for i in (16, 32)]
    for conv in convs:
        nn.init.kaiming_normal_(conv.weight, mode="fan_out")
    assert torch.equal(block.module.conv1.weight, convs[0].weight)
    assert torch.equal(block.module.conv2.weight, convs[1].weight)


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
