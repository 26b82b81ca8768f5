"""What a stage keeps of a window, and how a segment is divided into windows."""

from __future__ import annotations

import os

import pytest
import torch

from laminar.plan import Segment
from laminar.store import Store
from laminar.windows import split_windows


def test_what_is_put_is_got_in_memory_and_in_files(tmp_path):
    """Of three names of 80 bytes each two fit into 170."""
    store = Store(num_micro=5, memory_limit=170, folder=str(tmp_path))
    for micro in range(5):
        store.put("x", micro, (torch.full((2, 2), float(micro)),))
        store.put("p", micro, (torch.full((16,), micro, dtype=torch.int8),))
        store.put("q", micro, (torch.full((2, 2), micro / 2), torch.full((2,), -micro).half()))
    store.put("x", 3, (torch.full((2, 2), 30.0),))
    assert (store.memory_bytes, store.file_bytes) == (160, 100)
    assert [float(store.get("x", m)[0].mean()) for m in range(5)] == [0, 1, 2, 30, 4]
    assert [int(store.get("p", m)[0][-1]) for m in range(5)] == [0, 1, 2, 3, 4]
    values, halves = store.get("q", 4)
    assert values.tolist() == [[2, 2], [2, 2]]
    assert halves.dtype == torch.float16
    assert halves.tolist() == [-4, -4]


def test_files_have_no_name_left(tmp_path):
    store = Store(num_micro=4, memory_limit=0, folder=str(tmp_path))
    store.put("x", 2, (torch.arange(3.0),))
    assert list(tmp_path.iterdir()) == []
    assert store.get("x", 2)[0].tolist() == [0, 1, 2]


def test_a_full_disk_is_an_error_and_no_crash(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        Store(num_micro=4, memory_limit=0, folder=str(tmp_path)).put("x", 0, (torch.zeros(3),))


@pytest.mark.parametrize(
    ("length", "window", "expected"),
    [
        (10, None, [10]),
        (10, 20, [10]),
        (10, 5, [5, 5]),
        (10, 4, [5, 5]),
        (11, 3, [3, 4, 4]),
        (3, 1, [1, 1, 1]),
    ],
)
def test_no_window_is_shorter_than_asked_for(length, window, expected):
    windows = split_windows(Segment("parallel", 2, 7, length), window)
    assert [w.num_batches for w in windows] == expected
    ends = [w.first_batch + w.num_batches for w in windows]
    assert [w.first_batch for w in windows] == [7, *ends[:-1]]
    assert ends[-1] == 7 + length
    assert {w.epoch for w in windows} == {2}
