"""Cutout, mixup and resized crops: against loops, torchvision and the laws they should follow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as tv

from laminar.config import Config
from laminar.data.augment import cutout
from laminar.data.batches import InputBatches, LabelBatches
from laminar.data.mixup import mix_images, mix_labels, mix_weights
from laminar.data.philox import sample_bits
from laminar.data.resized_crop import crop_bits, crop_boxes, resize_boxes
from laminar.engine import MicroBatches
from laminar.plan import Segment

INDICES = np.array([7, 0, 123, 5, 8, 2**33, 41, 6])


# -- cutout ----------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [1, 2, 3, 4])
def test_cutout_equals_a_loop_over_samples(side: int):
    images = torch.ones(8, 2, 5, 4)
    found = cutout(images.clone(), INDICES, seed=3, epoch=2, side=side)
    for row, index in enumerate(INDICES):
        bits = sample_bits(3, 2, 2, np.array([index]))[0]
        y, x = int(bits[0]) * 5 // 2**32, int(bits[1]) * 4 // 2**32
        top, left = y - side // 2, x - side // 2
        expected = np.ones((2, 5, 4))
        expected[:, max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = 0
        assert np.array_equal(found[row].numpy(), expected), index


def test_the_middle_of_cutout_is_uniform_and_may_leave_part_of_the_square_outside():
    num = 4000
    images = cutout(torch.ones(num, 1, 4, 4), np.arange(num), seed=0, epoch=0, side=2)
    areas = (images == 0).sum((1, 2, 3))
    # The middle is one of 16 pixels; the square sticks out at the first row and column.
    for area, chance in ((1, 1 / 16), (2, 6 / 16), (4, 9 / 16)):
        expected = num * chance
        assert abs(int((areas == area).sum()) - expected) < 6 * (expected * (1 - chance)) ** 0.5
    assert set(areas.tolist()) == {1, 2, 4}


# -- resized crops ---------------------------------------------------------------------------


def boxes(num: int, height: int, width: int, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), seed=0):
    sizes = np.full(num, height), np.full(num, width)
    return crop_boxes(crop_bits(seed, 0, np.arange(num)), *sizes, scale=scale, ratio=ratio)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (375, 500), (600, 100)])
def test_boxes_are_distributed_as_torchvisions(height: int, width: int):
    num = 3000
    ours = boxes(num, height, width).astype(float)
    torch.manual_seed(0)
    image = torch.empty(1, height, width)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(num)],
        float,
    )
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()
    for law in (lambda b: b, lambda b: np.log(b[:, 2:3] / b[:, 3:4]), lambda b: b[:, 2:3] ** 2):
        a, b = law(ours), law(theirs)
        spread = np.sqrt((a.var(0) + b.var(0)) / num)
        assert (np.abs(a.mean(0) - b.mean(0)) < 5 * spread + 1e-9).all()
        assert np.allclose(a.std(0), b.std(0), rtol=0.1)


@pytest.mark.parametrize(("height", "width"), [(10, 10), (9, 40), (41, 8), (1, 300)])
def test_where_no_try_fits_the_box_is_torchvisions_central_one(height: int, width: int):
    too_large = (4.0, 5.0)
    expected = RandomResizedCrop.get_params(
        torch.empty(1, height, width), list(too_large), [3 / 4, 4 / 3]
    )
    assert boxes(2, height, width, scale=too_large).tolist() == [list(expected)] * 2


def test_a_box_depends_on_its_own_sample_only():
    sizes = np.array([40, 50, 60, 70, 80, 90, 100, 110]), np.full(8, 64)
    kwargs = {"scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3)}
    whole = crop_boxes(crop_bits(1, 2, INDICES), *sizes, **kwargs)
    assert len({tuple(box) for box in whole.tolist()}) == 8
    for row in range(8):
        part = slice(row, row + 1)
        alone = crop_boxes(crop_bits(1, 2, INDICES[part]), *(s[part] for s in sizes), **kwargs)
        assert np.array_equal(alone[0], whole[row])


def test_boxes_are_resized_as_torchvision_does():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 3, 12, 16), dtype=torch.uint8, generator=generator)
    chosen = boxes(40, 12, 16)
    chosen[0] = (0, 0, 12, 16)
    chosen[1] = (11, 15, 1, 1)
    found = resize_boxes(images, chosen)
    assert found.dtype == torch.uint8
    assert torch.equal(found[0], images[0])
    assert torch.equal(found[1], images[1, :, 11:, 15:].expand(3, 12, 16))
    for row, box in enumerate(chosen.tolist()):
        expected = tv.resized_crop(images[row].float(), *box, [12, 16], antialias=True)
        assert (found[row].float() - expected).abs().max() <= 0.51


# -- mixup -----------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_mixing_weights_follow_the_beta_distribution(alpha: float):
    from scipy.stats import beta, kstest

    weights = mix_weights(0, 0, np.arange(5000), alpha).double().numpy()
    assert kstest(weights, beta(alpha, alpha).cdf).pvalue > 1e-3
    assert not np.array_equal(weights, mix_weights(0, 1, np.arange(5000), alpha))


def test_images_and_labels_are_mixed_with_the_sample_that_follows():
    weights = torch.tensor([1.0, 0.25, 0.5])
    images = torch.tensor([0.0, 8.0, 100.0])[:, None, None, None].expand(3, 1, 2, 2)
    mixed = mix_images(images, weights)
    assert mixed[:, 0, 0, 0].tolist() == [0.0, 0.25 * 8 + 0.75 * 100, 50.0]
    labels = mix_labels(torch.tensor([2, 0, 0]), weights, 3)
    assert labels.tolist() == [[0, 0, 1], [1, 0, 0], [0.5, 0, 0.5]]


def numbered(batch_size: int) -> tuple[InputBatches, LabelBatches]:
    """Batches of 30 images whose pixels are their own label, mixed."""
    config = Config.model_validate(
        {"batch_size": batch_size, "data": {"name": "synthetic", "mixup": 1.0}}
    )
    labels = torch.arange(30)
    images = labels.to(torch.uint8)[:, None, None, None].expand(-1, 1, 4, 4)
    stats = torch.zeros(1), torch.ones(1)
    return (
        InputBatches(config, images, images, stats),
        LabelBatches(config, labels, labels, 30),
    )


def test_both_ends_mix_alike_though_neither_sees_the_other():
    inputs, labels = numbered(8)
    for at in ((0, 0), (0, 2), (3, 1)):
        x, y = inputs.train(*at), labels.train(*at)
        assert (y.shape, y.dtype) == ((8, 30), torch.float32)
        assert torch.allclose(y.sum(1), torch.ones(8))
        assert ((y > 0).sum(1) == 2).all()
        expected = y @ torch.arange(30.0)
        assert torch.allclose(x, expected[:, None, None, None].expand(8, 1, 4, 4), atol=1e-4)


def test_mixing_does_not_depend_on_the_split_into_micro_batches():
    for source in numbered(8):
        whole = source.train(1, 2)
        for per_batch in (1, 2, 4, 8):
            parts = MicroBatches(source, Segment("parallel", 1, 2, 1), per_batch)
            assert torch.equal(torch.cat([parts[i] for i in range(per_batch)]), whole)


def test_evaluation_is_never_augmented():
    inputs, labels = numbered(8)
    assert torch.equal(labels.test(0), torch.arange(30))
    assert torch.equal(inputs.test(0)[:, 0, 0, 0], torch.arange(30.0))
