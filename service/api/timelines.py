"""Routes to what each stage did when, from timeline.jsonl."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Path, Query

from service.api.context import ExistingJob, Service
from service.api.problems import responses
from service.api.streams import parse_lines
from service.jobs.store import RUN, JobStore

router = APIRouter(prefix="/v1/jobs/{job_id}", responses=responses(400, 401, 403, 404, 422, 429))

_BYTES = {"inline_bytes": 0, "store_bytes": 1_048_576, "num_messages": 32}
_PHASE = {
    "phase": "parallel",
    "num_batches": 20,
    "seconds": 4.2,
    "stages": [
        {"forward": 1.3, "backward": 2.5, "other": 0.4},
        {"forward": 1.2, "backward": 2.4, "wait_forward": 0.6},
    ],
    "cuts": [{"boundary": 5, "forward": _BYTES, "adjoint": _BYTES, "violation": 0.08}],
}
_SPANS = [
    [["forward", 4, 0.0, 2.0], ["backward", 3, 2.0, 6.0]],
    [["forward", 3, 0.1, 2.1], ["backward", 2, 2.1, 6.2]],
]
_EPOCH = {"epoch": 1, "phases": [{**_PHASE, "is_traced": True}]}
_TRACED_EPOCH = {"epoch": 1, "phases": [{**_PHASE, "trace": _SPANS}]}


def _example(value: Any) -> dict[int | str, dict[str, Any]]:
    return {200: {"content": {"application/json": {"example": value}}}}


@router.get("/timeline", operation_id="timeline", responses=_example([_EPOCH]))
def timeline(
    spec: ExistingJob,
    service: Service,
    start: Annotated[int, Query(ge=0, le=2**62, description="Epochs to leave out.")] = 0,
) -> list[dict[str, Any]]:
    """Return what each finished epoch's seconds and bytes went into, by phase, stage and cut.

    Traces, which are large, are left out; `is_traced` says where `timeline/{epoch}` has one.
    """
    return [_without_traces(line) for line in read_timeline(service.store, spec.id)[start:]]


@router.get(
    "/timeline/{epoch}", operation_id="timeline_of_epoch", responses=_example(_TRACED_EPOCH)
)
def timeline_of_epoch(
    spec: ExistingJob,
    service: Service,
    epoch: Annotated[int, Path(ge=1, le=2**62, description="From 1.", examples=[1])],
) -> dict[str, Any]:
    """Return one epoch's line: of each traced stage, [kind, micro-batch, start, end] in ms."""
    for line in read_timeline(service.store, spec.id):
        if line.get("epoch") == epoch:
            return line
    raise HTTPException(404, "this epoch is not finished, or was never in this run")


def read_timeline(store: JobStore, job_id: str) -> list[dict[str, Any]]:
    """Return a line for each finished epoch."""
    return parse_lines(store.storage.read(f"{job_id}/{RUN}/timeline.jsonl") or b"")


def _without_traces(line: dict[str, Any]) -> dict[str, Any]:
    phases = [
        {key: value for key, value in phase.items() if key != "trace"}
        | {"is_traced": bool(phase.get("trace"))}
        for phase in line.get("phases", ())
    ]
    return {**line, "phases": phases}
