"""The loss phi at the last stage: one object for engine, reference, evaluation and baseline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class CrossEntropy:
    """Cross entropy of the logits, mean over samples.

    In training a share eps of every target is spread over all C classes, (1 - eps) y + eps / C
    (Szegedy et al. 2016, arXiv 1512.00567, section 7). The test loss is without it, so that runs
    with and without smoothing can be compared.
    """

    label_smoothing: float = 0.0
    """eps, 0 <= eps < 1."""

    def train(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the training loss, a scalar that can be differentiated.

        The mean is over the samples given: of a micro-batch, where a batch is split.

        Args:
            logits: fp32 [b, C].
            targets: int64 [b], or fp32 [b, C] with a probability for each class (mixup).
        """
        return F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)

    def test(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the test loss, a scalar: the mean over the samples given, without smoothing.

        Args:
            logits: fp32 [b, C].
            labels: int64 [b].
        """
        return F.cross_entropy(logits, labels)


@dataclass(frozen=True)
class OwnLoss:
    """A user's function of logits and targets, for training and test alike."""

    function: Callable[[Tensor, Tensor], Tensor]

    def train(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the training loss; see `CrossEntropy.train`."""
        return self.function(logits, targets)

    def test(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the test loss; see `CrossEntropy.test`."""
        return self.function(logits, labels)
