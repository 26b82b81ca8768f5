"""Masks are a function of seed, epoch, sample and place, and of nothing else."""

import numpy as np
import pytest
import torch

from laminar.blocks import Block, BlockSequence
from laminar.data.philox import philox4x32, ten_rounds
from laminar.dropout import SampleDropout, Samples
from laminar.errors import ConfigError


def layer(p=0.3, stream=7, **samples):
    dropout = SampleDropout(p)
    dropout.stream = stream
    indices = torch.as_tensor(samples.pop("indices", range(64)))
    dropout.samples = Samples(**{"seed": 1, "epoch": 2, "indices": indices, **samples})
    return dropout


def mask(dropout, *shape):
    return dropout(torch.ones(len(dropout.samples.indices), *shape)) != 0


def test_the_generator_is_the_same_in_torch_and_numpy():
    counter = np.random.default_rng(0).integers(0, 2**32, (50, 4), dtype=np.uint32)
    key = 0xA4093822, 0x299F31D0
    words = ten_rounds(list(torch.from_numpy(counter.astype(np.int64)).T), key)
    expected = philox4x32(counter, key).astype(np.int64)
    assert torch.equal(torch.stack(words, 1), torch.from_numpy(expected))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_frequency_and_mean(p):
    x = torch.full((64, 16, 8, 8), 2.0)
    out = layer(p)(x)
    num = x.numel()
    sigma = (p * (1 - p) / num) ** 0.5
    assert abs((out == 0).double().mean() - p) < 4 * sigma + 2**-17
    assert torch.allclose(out[out != 0], torch.tensor(2 / (1 - p)), rtol=1e-3)
    per_place = (out == 0).double().mean(0)
    assert per_place.min() >= 0 if p < 0.5 else per_place.min() > 0
    assert (per_place - p).abs().max() < 6 * (p * (1 - p) / 64) ** 0.5


def test_a_samples_mask_depends_on_neither_place_nor_size_of_the_batch():
    whole = mask(layer(), 5, 3, 3)
    part = mask(layer(indices=[9, 40, 3]), 5, 3, 3)
    assert torch.equal(part, whole[[9, 40, 3]])
    # Samples that are far apart in the cache's portions, and large maps.
    large = mask(layer(), 8, 64, 64)
    assert torch.equal(mask(layer(indices=[63]), 8, 64, 64)[0], large[63])


@pytest.mark.parametrize(
    "other", [{"seed": 3}, {"epoch": 3}, {"stream": 8}, {"indices": range(1, 65)}]
)
def test_it_depends_on_seed_epoch_layer_and_sample(other):
    agree = (mask(layer(p=0.5), 50) == mask(layer(p=0.5, **other), 50)).double().mean()
    assert abs(agree - 0.5) < 0.05


def test_values_of_a_sample_are_independent():
    x = mask(layer(p=0.5, indices=range(400)), 40).double()
    correlation = torch.corrcoef(x.T) - torch.eye(40)
    assert correlation.abs().max() < 5 / 400**0.5


def test_evaluation_and_zero_leave_the_input_alone():
    x = torch.rand(2, 3)
    assert SampleDropout(0.5).eval()(x) is x
    assert SampleDropout(0.0)(x) is x


def test_probabilities_at_the_ends():
    out = layer(p=0.9999999)(torch.ones(64, 2000))
    assert out.isfinite().all()
    for p in (1.0, -0.1, float("nan")):
        with pytest.raises(ConfigError, match="must be >= 0 and < 1"):
            SampleDropout(p)


def test_nobody_said_which_samples():
    with pytest.raises(RuntimeError, match="needs to know the samples"):
        SampleDropout(0.5)(torch.rand(2, 3))


def test_layers_are_numbered_by_the_network_not_by_the_cuts():
    def blocks(first, last):
        found = [Block(f"b{i}", torch.nn.Sequential(SampleDropout(0.5), SampleDropout(0.5)))
                 for i in range(first, last)]  # fmt: skip
        return BlockSequence(found, first=first, filters={}, adjoint_scale=1.0)

    def streams(module):
        return [m.stream for m in module.modules() if isinstance(m, SampleDropout)]

    whole, parts = blocks(0, 4), [blocks(0, 1), blocks(1, 4)]
    assert streams(whole) == [s for part in parts for s in streams(part)]
    assert len(set(streams(whole))) == 8
    samples = Samples(0, 0, torch.arange(3))
    x = torch.ones(3, 20)
    for module in (whole, *parts):
        module.set_samples(samples)
    assert torch.equal(whole(x), parts[1](parts[0](x)))


def test_gradient_is_the_mask():
    dropout = layer(p=0.25, indices=range(4))
    x = torch.rand(4, 30, requires_grad=True)
    dropout(x).sum().backward()
    assert torch.equal(x.grad, mask(dropout, 30) * (1 / 0.75))
