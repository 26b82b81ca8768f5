"""What network and plan need to know about the data."""

from __future__ import annotations

from dataclasses import dataclass

from laminar.config import Config


@dataclass(frozen=True)
class Problem:
    """The shape of a sample, and how many there are."""

    image_shape: tuple[int, ...]
    """(C, H, W); of a user's own data the shape of one sample, whatever it is."""
    num_classes: int
    num_train: int
    num_test: int
    class_names: tuple[str, ...] = ()
    """Name of each class; empty where the data set only numbers them."""
    dtype: str = "float32"
    """Of a sample, as torch calls it."""

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each class, its number where it has none."""
        return self.class_names or tuple(str(n) for n in range(self.num_classes))


def num_test_batches(config: Config, num_test: int) -> int:
    """Return the batches of the test set, the ragged last one counted."""
    return -(-num_test // config.eval_batch_size)
