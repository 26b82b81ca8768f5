"""Data sets, their order and augmentation; data never crosses a cut."""

from laminar.data.batches import InputBatches, LabelBatches, SampleIndices
from laminar.data.opening import describe_data, open_inputs, open_labels
from laminar.data.sources import (
    class_names,
    describe,
    load_image,
    load_images,
    load_labels,
    open_images,
    with_absolute_paths,
)

__all__ = [
    "InputBatches",
    "LabelBatches",
    "SampleIndices",
    "class_names",
    "describe",
    "describe_data",
    "load_image",
    "load_images",
    "load_labels",
    "open_images",
    "open_inputs",
    "open_labels",
    "with_absolute_paths",
]
