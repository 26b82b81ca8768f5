"""What is counted of the network's answers: loss, accuracy, and of test images which for which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

_TOP = 5


@dataclass
class Tally:
    """Sums over training or test samples, kept by the last stage."""

    loss_sum: float = 0.0
    num_correct: int = 0
    num_samples: int = 0
    num_top5: int | None = None
    """Test samples whose class is among the five likeliest; None with five classes or fewer."""
    visit_loss_sum: float = 0.0
    """Over visits of the stored feed, whose losses are none of the network."""
    num_visited: int = 0
    confusion: NDArray[np.int64] | None = None
    """Of test samples, int64 [C, C]: how many of class i (row) were taken for class j (column)."""

    def add(self, logits: Tensor, targets: Tensor, mean_loss: Tensor) -> None:
        """Count samples; one is right where its class, with mixup the larger share, is likeliest.

        Args:
            logits: [b, C].
            targets: int64 [b], or fp32 [b, C] with a probability for each class.
            mean_loss: Mean over these samples.
        """
        labels = targets if targets.dim() == 1 else targets.argmax(1)
        self.loss_sum += float(mean_loss) * len(labels)
        self.num_correct += int((logits.argmax(1) == labels).sum())
        self.num_samples += len(labels)

    def add_visit(self, num_samples: int, mean_loss: Tensor) -> None:
        """Count a visit's samples."""
        self.visit_loss_sum += float(mean_loss) * num_samples
        self.num_visited += num_samples

    def add_test(self, logits: Tensor, labels: Tensor, mean_loss: Tensor) -> None:
        """Count test samples, with all that is wanted of those.

        Args:
            logits: [b, C].
            labels: int64 [b].
            mean_loss: Mean over these samples.
        """
        self.add(logits, labels, mean_loss)
        num_classes = logits.shape[1]
        if num_classes > _TOP:
            is_among = (logits.topk(_TOP, dim=1).indices == labels[:, None]).any(1)
            self.num_top5 = (self.num_top5 or 0) + int(is_among.sum())
        pairs = (labels * num_classes + logits.argmax(1)).cpu().numpy()
        counts = np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
        self.confusion = counts if self.confusion is None else self.confusion + counts

    def confusion_matrix(self) -> list[list[int]]:
        """Return the confusion matrix of the test samples as plain lists; empty without any."""
        matrix: list[list[int]] = [] if self.confusion is None else self.confusion.tolist()
        return matrix

    def means(self) -> dict[str, float]:
        """Return loss and accuracy per sample; of test samples top5_accuracy, if there is one."""
        found = {
            "loss": self.loss_sum / self.num_samples,
            "accuracy": self.num_correct / self.num_samples,
        }
        if self.num_top5 is not None:
            found["top5_accuracy"] = self.num_top5 / self.num_samples
        return found
