"""Opening what the stages read: inputs at stage 0, labels at the last stage."""

from __future__ import annotations

from laminar.config import Config
from laminar.data.batches import InputBatches, LabelBatches
from laminar.data.own import Datasets, OwnInputs, describe_own, own_inputs, own_labels
from laminar.data.sources import class_names, describe, load_labels, open_images
from laminar.problem import Problem


def describe_data(config: Config, datasets: Datasets | None = None) -> Problem:
    """Return what the network must know of the data: the user's own, or what is configured.

    Raises:
        DataError: Files or folders are missing.
        FactoryError: The user's own data is none.
    """
    return describe(config.data) if datasets is None else describe_own(datasets)


def open_inputs(config: Config, datasets: Datasets | None = None) -> InputBatches | OwnInputs:
    """Open the images, or the rows of the user's own data, that stage 0 reads."""
    if datasets is not None:
        return OwnInputs(config, *(own_inputs(datasets, split) for split in ("train", "test")))
    train, test = (open_images(config, split) for split in ("train", "test"))
    return InputBatches(config, train, test)


def open_labels(config: Config, datasets: Datasets | None = None) -> LabelBatches:
    """Load the labels that the last stage reads; no image is opened."""
    if datasets is not None:
        train, test = (own_labels(datasets, split) for split in ("train", "test"))
        return LabelBatches(config, train, test, 1 + int(max(train.max(), test.max())))
    train, test = (load_labels(config.data, split) for split in ("train", "test"))
    # Only mixing asks how many classes there are, which some data sets must read files to say.
    num_classes = len(class_names(config.data)) if config.data.mixup else None
    return LabelBatches(config, train, test, num_classes)
