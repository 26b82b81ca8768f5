"""The route to the trials of a search, put together from the lines of its ledger."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from fastapi import APIRouter, HTTPException

from service.api.context import ExistingJob, Service
from service.api.problems import responses
from service.jobs.models import SearchRequest
from service.jobs.search_models import SearchTrials, TrialInfo
from service.jobs.store import RUN
from tuning.ledger import Ledger, Trial, best_trials
from tuning.settings import SearchConfig, read_settings

router = APIRouter(prefix="/v1/jobs/{job_id}", responses=responses(400, 401, 403, 404, 422, 429))

_EXAMPLE = {
    "metrics": ["test_accuracy"],
    "modes": ["max"],
    "num_trials": 8,
    "best": [0],
    "trials": [
        {
            "number": 0,
            "id": "f3a1c0de",
            "status": "finished",
            "error": None,
            "params": {"optimizer.lr": 0.047},
            "epoch": 2,
            "num_epochs": 2,
            "values": {"test_accuracy": 0.9855},
            "curve": [[1, 0.91], [2, 0.9855]],
        }
    ],
}


@router.get(
    "/trials",
    operation_id="trials",
    responses={200: {"content": {"application/json": {"example": _EXAMPLE}}}},
)
def trials(spec: ExistingJob, service: Service) -> SearchTrials:
    """Return the trials of a search; 404 for a training, which has none."""
    if not isinstance(spec.request, SearchRequest):
        raise HTTPException(404, "this job is a training and has no trials")
    settings = read_settings(spec.request.search_file.get("search") or {})
    found = list(Ledger(Path(service.store.storage.path(f"{spec.id}/{RUN}"))).trials.values())
    return SearchTrials(
        metrics=settings.metrics,
        modes=settings.modes,
        num_trials=(spec.estimate and spec.estimate.num_trials) or len(found),
        best=tuple(trial.number for trial in best_trials(settings, found)),
        trials=tuple(_info(trial, settings) for trial in found),
    )


def _info(trial: Trial, settings: SearchConfig) -> TrialInfo:
    first = settings.metrics[0]
    return TrialInfo(
        number=trial.number,
        id=trial.id,
        status=trial.status,
        error=trial.error,
        params=dict(trial.params),
        epoch=trial.last.get("epoch", 0),
        num_epochs=trial.last.get("num_epochs"),
        values={name: _finite(trial.last[name]) for name in settings.metrics if trial.epochs},
        curve=[(epoch["epoch"], _finite(epoch[first])) for epoch in trial.epochs],
    )


def _finite(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
