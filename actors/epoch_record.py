"""The lines of an epoch in metrics.jsonl and timeline.jsonl, of what every stage reported."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from actors.reports import StageReport
from laminar.exactness import Exactness, probed_batch
from laminar.plan import Plan, Segment
from laminar.progress import PhaseName
from laminar.tally import Tally


def epoch_metrics(
    plan: Plan,
    epoch: int,
    reports: Sequence[tuple[Segment, Sequence[StageReport]]],
    test: Tally,
    seconds: dict[str, float],
    before: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return an epoch's line of metrics.jsonl.

    Args:
        plan: The resolved run.
        epoch: From 0.
        reports: Its segments in order, each with the reports of all stages.
        test: Of the test images.
        seconds: By phase, as the coordinator saw them.
        before: The lines of the epochs before; they may be of another plan.
    """
    tallies = [of_stages[-1].tally for _, of_stages in reports]
    num = sum(tally.num_samples for tally in tallies)
    phases = [_phase(plan, s, tally) for (s, _), tally in zip(reports, tallies, strict=True)]
    return {
        "epoch": epoch + 1,
        "num_batches": plan.batches_per_epoch,
        "phases": phases,
        "parallel_fraction": _parallel_fraction([*(m["phases"] for m in before), phases]),
        "lr": plan.learning_rate((epoch + 1) * plan.batches_per_epoch - 1),
        "train_loss": sum(tally.loss_sum for tally in tallies) / num,
        "train_accuracy": sum(tally.num_correct for tally in tallies) / num,
        **{f"test_{name}": value for name, value in test.means().items()},
        "seconds": seconds,
        "samples_per_s": num / (seconds["parallel"] + seconds["correction"]),
        "cuts": _cut_bytes(plan, [of_stages for _, of_stages in reports]),
    }


def _phase(plan: Plan, segment: Segment, tally: Tally) -> dict[str, Any]:
    """Return what was trained: batches once each, and the visits of the stored feed beside them."""
    entry: dict[str, Any] = {
        "phase": segment.phase,
        "num_batches": segment.num_batches,
        "train_loss": tally.loss_sum / tally.num_samples,
    }
    if tally.num_visited:
        entry["num_visits"] = plan.num_visits * segment.num_batches
        entry["visit_loss"] = tally.visit_loss_sum / tally.num_visited
    return entry


def _parallel_fraction(epochs: Sequence[Sequence[Mapping[str, Any]]]) -> float:
    """Return the parallel share of all passes, from the phases of each epoch."""
    done = [phase for phases in epochs for phase in phases]
    visits = sum(p.get("num_visits", 0) for p in done)
    streamed = sum(
        p["num_batches"] for p in done if p["phase"] == "parallel" and "num_visits" not in p
    )
    return float((streamed + visits) / (sum(p["num_batches"] for p in done) + visits))


def _cut_bytes(plan: Plan, reports: Sequence[Sequence[StageReport]]) -> list[dict[str, int]]:
    """Return the bytes of the epoch that crossed each cut, both directions together."""
    cuts = []
    for k, boundary in enumerate(plan.bounds[1:-1]):
        sent = [report[k].sent["forward"] for report in reports]
        sent += [report[k + 1].sent["adjoint"] for report in reports]
        inline, store = (sum(s.inline_bytes for s in sent), sum(s.store_bytes for s in sent))
        cuts.append({"boundary": boundary, "inline_bytes": inline, "store_bytes": store})
    return cuts


def ledger_entry(
    plan: Plan,
    segment: Segment,
    stages: Sequence[Exactness],
    reports: Sequence[StageReport],
) -> dict[str, Any]:
    """Return an epoch's entry of the exactness ledger, `ledger` in its line of metrics.jsonl.

    Args:
        plan: The resolved run.
        segment: Whose middle batch was looked at.
        stages: The comparison of each stage.
        reports: Of the segment, for the constraint violation of each cut.
    """
    whole = functools.reduce(operator.add, stages)
    return {
        "batch": probed_batch(segment).first_batch,
        "cosine": whole.cosine,
        "relative_error": whole.relative_error,
        "stages": [
            {
                "cosine": stage.cosine,
                "relative_error": stage.relative_error,
                "norm": stage.square**0.5,
                "exact_norm": stage.exact_square**0.5,
            }
            for stage in stages
        ],
        "cuts": [
            {"boundary": boundary, "violation": report.cut.violation}
            for boundary, report in zip(plan.bounds[1:-1], reports, strict=False)
            if report.cut is not None
        ],
    }


def phase_record(
    phase: PhaseName,
    num_batches: int,
    seconds: float,
    reports: Sequence[StageReport],
    boundaries: Sequence[int],
) -> dict[str, Any]:
    """Return what is kept of one phase.

    Args:
        phase: Its name.
        num_batches: Batches in it.
        seconds: As the coordinator saw them.
        reports: Of all stages.
        boundaries: Of the cuts, the first block of stages 1..K-1.
    """
    return {
        "phase": phase,
        "num_batches": num_batches,
        "seconds": seconds,
        "stages": [{kind: round(s, 6) for kind, s in r.seconds_by_kind.items()} for r in reports],
        "cuts": [
            {
                "boundary": boundary,
                "forward": asdict(before.sent["forward"]),
                "adjoint": asdict(after.sent["adjoint"]),
                **(asdict(before.cut) if before.cut else {}),
            }
            for boundary, before, after in zip(boundaries, reports, reports[1:], strict=False)
        ],
        "trace": _trace(reports),
    }


def _trace(reports: Sequence[StageReport]) -> list[list[list[Any]]] | None:
    """Return [kind, micro-batch, start, end] of each span of each stage, in milliseconds.

    Zero is where the last stage to be traced begins; None if the phase was not measured.
    """
    if not all(report.spans for report in reports):
        return None
    zero = max(report.spans[0].start_s for report in reports)
    return [
        [
            [s.kind, s.micro, round((s.start_s - zero) * 1e3, 3), round((s.end_s - zero) * 1e3, 3)]
            for s in report.spans
        ]
        for report in reports
    ]
