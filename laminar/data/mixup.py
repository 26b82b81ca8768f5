"""Mixup (Zhang et al. 2018, arXiv 1710.09412): train on w x_i + (1 - w) x_j, labels alike.

The partner j of a sample is the one that follows it in the batch, the last one's the first: the
order of an epoch is random, so the pairs are. The weight w of a sample is drawn from
Beta(alpha, alpha) by the counter-based generator. Both are functions of the seed and of which
samples a batch holds, so stage 0 mixes images and the last stage labels without a word between
them, and the split into micro-batches changes nothing.

Deviation: the authors' program draws one weight for a whole batch; the method is stated for pairs.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from laminar.data.philox import sample_bits

_MIXUP = 3
"""Stream of the generator."""


def mix_weights(seed: int, epoch: int, indices: NDArray[np.int64], alpha: float) -> Tensor:
    """Draw each sample's weight from Beta(alpha, alpha), by the inverse of its distribution.

    Args:
        seed: The run's seed.
        epoch: From 0.
        indices: int64 [B], sample indices.
        alpha: > 0; small values mix little, 1 is uniform.

    Returns:
        fp32 [B], 0..1.
    """
    from scipy.special import betaincinv  # only runs with mixup need it

    uniform = (sample_bits(seed, epoch, _MIXUP, indices)[:, 0] + 0.5) * 2.0**-32
    return torch.from_numpy(betaincinv(alpha, alpha, uniform).astype(np.float32))


def mix_images(images: Tensor, weights: Tensor) -> Tensor:
    """Return w x_i + (1 - w) x_j.

    Args:
        images: fp32 [B, ...].
        weights: fp32 [B].
    """
    w = weights.view(-1, *[1] * (images.dim() - 1))
    return images * w + images.roll(-1, 0) * (1.0 - w)


def mix_labels(labels: Tensor, weights: Tensor, num_classes: int) -> Tensor:
    """Return the probability of each class, w y_i + (1 - w) y_j, fp32 [B, num_classes].

    Args:
        labels: int64 [B].
        weights: fp32 [B].
        num_classes: Number of classes.
    """
    own = F.one_hot(labels, num_classes).to(torch.float32)
    return own * weights[:, None] + own.roll(-1, 0) * (1.0 - weights[:, None])
