"""Whatever the OpenAPI document allows, and some that it does not, never breaks the service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hypothesis
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from service.api.app import create_app
from service.api.context import ApiSettings
from tests.service.scripted_cluster import ScriptedCluster, Service

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
SETTINGS = hypothesis.settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[hypothesis.Phase.generate],
    suppress_health_check=list(hypothesis.HealthCheck),
)


def test_every_operation_answers_as_documented(tmp_path: Path):
    service = Service(tmp_path / "jobs", ScriptedCluster((2, 0)))
    service.submit()
    # Also imports torch and reads the digits, for which a first request would have to wait.
    lr = {"optimizer": {"lr": {"loguniform": [0.01, 0.1]}}}
    service.submit_search(tree={**lr, "search": {"num_trials": 1}})
    service.tick()
    app = create_app(service.manager, settings=ApiSettings(burst=1e9, poll_s=0.01))
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    seen = []
    for result in schema.get_all_operations():
        operation = result.ok()

        @SETTINGS
        @hypothesis.given(operation.as_strategy())
        def answers(case: Any) -> None:
            case.call_and_validate(checks=CHECKS)

        answers()
        seen.append(operation.label)
    assert len(seen) >= 20
    assert {"POST /v1/jobs", "GET /v1/jobs/{job_id}/trials", "POST /v1/search-file"} <= {*seen}
