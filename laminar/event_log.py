"""TensorBoard events of a run, a scalar per figure and epoch, and the figures themselves."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class EventLog:
    """Writes the epochs' figures as TensorBoard reads them.

    Args:
        folder: Where to.
        num_epochs: Epochs that a resumed run keeps; what an earlier attempt wrote of later ones is
            hidden, as TensorBoard wants it, by a mark to purge from there on.
    """

    def __init__(self, folder: Path, num_epochs: int) -> None:
        # What torch.utils.tensorboard wraps, without torch; half a second, not for drivers.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(folder))
        purge = SessionLog(status=SessionLog.START)
        self._writer.add_event(Event(step=num_epochs + 1, session_log=purge))

    def write(self, epoch: int, scalars: Mapping[str, float]) -> None:
        """Add one epoch, on disk when this returns.

        Args:
            epoch: From 1.
            scalars: From `epoch_scalars`.
        """
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        summary = Summary(value=values)
        self._writer.add_event(Event(wall_time=time.time(), step=epoch, summary=summary))
        self._writer.flush()


def epoch_scalars(metrics: dict[str, Any], timeline: dict[str, Any]) -> dict[str, float]:
    """Return the figures of an epoch by the names under which trackers show them.

    Args:
        metrics: Its line of metrics.jsonl.
        timeline: Its line of timeline.jsonl.
    """
    found = {
        f"{what}/{split}": metrics[f"{split}_{what}"]
        for what in ("loss", "accuracy")
        for split in ("train", "test")
    }
    if "test_top5_accuracy" in metrics:
        found["accuracy/test_top5"] = metrics["test_top5_accuracy"]
    found |= {name: metrics[name] for name in ("lr", "samples_per_s", "parallel_fraction")}
    found |= {f"seconds/{phase}": seconds for phase, seconds in metrics["seconds"].items()}
    for cut in metrics["cuts"]:
        at = f"cut_at_block_{cut['boundary']}"
        found |= {f"{kind}/{at}": cut[kind] for kind in ("inline_bytes", "store_bytes")}
    for k, stage in enumerate((metrics.get("ledger") or {"stages": ()})["stages"]):
        found |= {f"{name}/stage_{k}": stage[name] for name in ("cosine", "relative_error")}
    for phase in timeline["phases"]:
        for cut in phase["cuts"]:
            at = f"cut_at_block_{cut['boundary']}/{phase['phase']}"
            for name in ("violation", "filter_error", "adjoint_ratio"):
                if name in cut:
                    found[f"{name}/{at}"] = cut[name]
    return found
