import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laminar.filters import (
    Filter,
    FilterBoundary,
    adjoint_scale,
    downsample,
    downsample_adjoint,
    pack,
    unpack,
    upsample,
    upsample_adjoint,
)

shapes = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 17), st.integers(1, 17))
pools = st.integers(1, 8)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def small(shape, pool):
    return (*shape[:2], -(-shape[2] // pool), -(-shape[3] // pool))


@given(shape=shapes, pool=pools)
@settings(deadline=None)
def test_adjoint_of_downsampling(shape, pool):
    x, z = randn(*shape), randn(*small(shape, pool), seed=1)
    left = (downsample(x, pool) * z).sum()
    assert torch.allclose(left, (x * downsample_adjoint(z, pool, shape[2:])).sum())


@given(shape=shapes, pool=pools)
@settings(deadline=None)
def test_adjoint_of_upsampling(shape, pool):
    z, g = randn(*small(shape, pool)), randn(*shape, seed=1)
    left = (upsample(z, pool, shape[2:]) * g).sum()
    assert torch.allclose(left, (z * upsample_adjoint(g, pool)).sum())


@given(shape=shapes, pool=pools)
@settings(deadline=None)
def test_downsampling_undoes_upsampling(shape, pool):
    z = randn(*small(shape, pool))
    assert torch.allclose(downsample(upsample(z, pool, shape[2:]), pool), z)


def test_pooling_by_hand():
    x = torch.tensor([[1.0, 3.0, 5.0], [5.0, 7.0, 9.0], [2.0, 4.0, 8.0]])[None, None]
    assert downsample(x, 2).tolist() == [[[[4.0, 7.0], [3.0, 8.0]]]]
    assert upsample(downsample(x, 2), 2, (3, 3))[0, 0].tolist() == [[4, 4, 7], [4, 4, 7], [3, 3, 8]]
    assert upsample_adjoint(x, 2).tolist() == [[[[16.0, 14.0], [6.0, 8.0]]]]


@pytest.mark.parametrize("cast", ["fp32", "fp16", "bf16", "int8"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_arrives_as_none(cast, bad):
    """Else a network that has died would look alive to the stages behind it; fp16 saturates."""
    z = torch.ones(1, 2, 2, 2)
    z[0, 0, 0, 0] = bad
    found = unpack(pack(z, cast))
    assert not found[0, 0].isfinite().all() or (cast, bad) == ("fp16", float("inf"))
    assert found[0, 1].tolist() == z[0, 1].tolist()


@pytest.mark.parametrize(
    ("filter_", "num_bytes"),
    [
        (Filter(), 3 * 5 * 5 * 4),
        (Filter(2, "fp16"), 3 * 3 * 3 * 2),
        (Filter(1, "int8"), 3 * 5 * 5 + 3 * 4),
        (Filter(2, "int8"), 3 * 3 * 3 + 3 * 4),
    ],
)
def test_bytes_of_a_sample_by_hand(filter_, num_bytes):
    """Three channels of 5x5; int8 has a scale of four bytes for each of them."""
    assert filter_.sample_bytes((3, 5, 5)) == num_bytes


TOLERANCES = [("fp32", 0.0), ("fp16", 2**-11), ("bf16", 2**-8), ("int8", 0.005)]


@pytest.mark.parametrize(("cast", "tolerance"), TOLERANCES)
def test_casts_are_close(cast, tolerance):
    x = randn(2, 3, 4, 4).float()
    message = pack(x, cast)
    largest = x.abs().amax((2, 3), keepdim=True)
    assert ((unpack(message) - x).abs() <= tolerance * largest).all()
    sizes = {"fp32": 4 * 96, "fp16": 2 * 96, "bf16": 2 * 96, "int8": 96 + 4 * 6}
    assert sum(part.nbytes for part in message) == sizes[cast]


def test_int8_of_a_sample_does_not_depend_on_its_batch():
    x = randn(4, 3, 6, 6).float()
    x[1] *= 1000
    assert torch.equal(unpack(pack(x, "int8"))[0], unpack(pack(x[:1], "int8"))[0])


def test_int8_of_zeros_and_fp16_of_huge_values_stay_finite():
    assert torch.equal(unpack(pack(torch.zeros(1, 2, 2, 2), "int8")), torch.zeros(1, 2, 2, 2))
    assert unpack(pack(torch.full((1, 1, 1, 1), 1e9), "fp16")).item() == 65504.0


def test_bf16_rounds_as_torch_does_and_travels_through_numpy():
    x = torch.tensor([1.0, 1.00390625, 1.01171875, 3e38, -1e-30, float("inf")]).reshape(1, 1, 2, 3)
    arrays = [part.numpy() for part in pack(x, "bf16")]
    assert [a.dtype for a in arrays] == ["int16"]
    back = unpack(tuple(torch.from_numpy(a) for a in arrays))
    assert back.dtype == torch.float32
    assert torch.equal(back, x.bfloat16().float())
    assert back.flatten()[1:3].tolist() == [1.0, 1.015625]  # ties to even


@given(st.integers(1, 5000))
def test_adjoint_scale_is_the_next_power_of_two(batch_size):
    scale = adjoint_scale(batch_size)
    assert batch_size <= scale < 2 * batch_size
    assert int(scale).bit_count() == 1


def test_scale_saves_small_adjoints_from_fp16_underflow():
    f = Filter(1, "fp16")
    g = torch.full((1, 1, 2, 2), 3e-8)
    back = f.decode_adjoint(f.encode_adjoint(g, 1024.0), 1024.0, (2, 2))
    assert torch.allclose(back, g, rtol=1e-2)
    unscaled = f.decode_adjoint(f.encode_adjoint(g, 1.0), 1.0, (2, 2))
    assert not torch.allclose(unscaled, g, rtol=1e-1)


@pytest.mark.parametrize("pool", [1, 2, 3, 5])
@pytest.mark.parametrize("cast", ["fp32", "fp16", "bf16", "int8"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_boundary_inside_a_stage_equals_the_cut(pool, cast, memory_format):
    f = Filter(pool, cast)
    x, g = randn(2, 3, 7, 5).float(), randn(2, 3, 7, 5, seed=1).float()
    leaf = x.clone(memory_format=memory_format).requires_grad_()
    out = FilterBoundary(f, 64.0)(leaf)
    assert out.is_contiguous(memory_format=memory_format)
    out.backward(g)
    assert torch.equal(out.detach(), f.decode(f.encode(x), (7, 5)))
    assert torch.equal(leaf.grad, f.decode_adjoint(f.encode_adjoint(g, 64.0), 64.0, (7, 5)))


def test_a_filter_of_the_parallel_phase_lets_everything_through_elsewhere():
    f, x = Filter(2, "int8", parallel_only=True), randn(1, 2, 4, 4).float()
    boundary = FilterBoundary(f, 64.0)
    for phase in ("parallel", "correction", "evaluation"):
        boundary.enter(phase)
        found = boundary(x), f.during(phase).decode(f.during(phase).encode(x), (4, 4))
        assert torch.equal(*found)
        assert torch.equal(found[0], x) == (phase != "parallel")
    assert not torch.equal(FilterBoundary(Filter(2), 64.0)(x), x)
