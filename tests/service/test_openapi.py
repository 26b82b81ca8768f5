"""Whatever the OpenAPI document allows, and some that it does not, never breaks the service."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import schemathesis
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from service.api.app import create_app
from service.api.auth import Tokens
from service.api.context import ApiSettings
from tests.service.ledgers import write_ledger
from tests.service.scripted_cluster import ScriptedCluster, Service
from tests.unit.test_report import timeline_line

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
NO_LIMIT = {"max_queued_per_user": 10**6, "max_active_per_user": 10**6}
PROBES = {"GET /healthz", "GET /readyz"}
WITH_BODY = {"POST /v1/jobs", "POST /v1/estimate", "POST /v1/config", "POST /v1/search-file"}
OF_SUBMITTERS = {"POST /v1/jobs", "POST /v1/estimate"}
OF_OWNERS = {
    "DELETE /v1/jobs/{job_id}",
    "POST /v1/jobs/{job_id}/stop",
    "POST /v1/jobs/{job_id}/resume",
}
Requests = st.SearchStrategy[Any]


def settings(max_examples: int) -> hypothesis.settings:
    return hypothesis.settings(
        max_examples=max_examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )


class Surface:
    """All operations of a service that has jobs of every kind.

    Args:
        folder: For the jobs.
        tokens: Who may come in; None lets everybody.
    """

    def __init__(self, folder: Path, tokens: Tokens | None = None) -> None:
        self.service = Service(folder, ScriptedCluster((1e6, 0)), **NO_LIMIT)
        self.trained = self._trained()
        self.searched = self._searched()
        self.app = create_app(
            self.service.manager, tokens=tokens, settings=ApiSettings(burst=1e9, poll_s=0.01)
        )
        schema = schemathesis.openapi.from_asgi("/openapi.json", self.app)
        self.operations = {o.label: o for o in (r.ok() for r in schema.get_all_operations())}
        self._made = count()

    def _trained(self) -> str:
        """Return a job that has left what one of two epochs does."""
        job_id = self._ended("succeeded")
        run = self.service.run(job_id)
        checkpoint = run / "checkpoints/epoch_0002"
        checkpoint.mkdir(parents=True)
        manifest = {"epoch": 2, "parts": [{"name": "stage_000.safetensors", "num_bytes": 4}]}
        (checkpoint / "manifest.json").write_text(json.dumps(manifest))
        (checkpoint / "stage_000.safetensors").write_bytes(bytes(4))
        for name, line in (("metrics", {"train_loss": 0.5}), ("timeline", timeline_line(1))):
            lines = [{**line, "epoch": epoch} for epoch in (1, 2)]
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (run / f"{name}.jsonl").write_text(text)
        (run.parent / "log.txt").write_text("-- attempt 1\nepoch 1/2\nepoch 2/2\n")
        return job_id

    def _searched(self) -> str:
        """Return a search that has run a trial."""
        job_id = self.service.submit_search()
        write_ledger(self.service.run(job_id))
        self._end(job_id, "succeeded")
        return job_id

    def _ended(self, outcome: str) -> str:
        return self._end(self.service.submit(), outcome)

    def _end(self, job_id: str, outcome: str) -> str:
        self.service.tick()
        self.service.say(job_id, "ended", outcome, "done")
        self.service.tick()
        return job_id

    def parameters(self, label: str) -> dict[str, Any]:
        """Return what is there for the path of an operation; where it changes a job, a new one."""
        number = next(self._made)
        either = (self.trained, self.searched)[number % 2]
        jobs: dict[str, Callable[[], str]] = {
            "DELETE /v1/jobs/{job_id}": lambda: self._ended("succeeded"),
            "POST /v1/jobs/{job_id}/resume": lambda: self._ended("stopped"),
            "POST /v1/jobs/{job_id}/stop": self.service.submit,
            "GET /v1/jobs/{job_id}/trials": lambda: self.searched,
            "GET /v1/jobs/{job_id}/metrics": lambda: either,
            "GET /v1/jobs/{job_id}/metrics/events": lambda: either,
        }
        found = {
            "job_id": jobs.get(label, lambda: self.trained)(),
            "path": ("metrics.jsonl", "checkpoints/epoch_0002/manifest.json")[number % 2],
            "epoch": 1 + number % 2,
        }
        return {name: value for name, value in found.items() if f"{{{name}}}" in label}

    def made(self, label: str, mode: GenerationMode) -> Requests:
        """Return requests made from the document, or such that break it somewhere."""
        return self.operations[label].as_strategy(generation_mode=mode)

    def examples(self, label: str) -> Requests:
        """Return those that the document gives, or where it gives none some made from it."""
        found = self.operations[label].get_strategies_from_examples()
        return st.one_of(found) if found else self.made(label, GenerationMode.POSITIVE)

    def answers(
        self,
        label: str,
        requests: Requests,
        num: int,
        *,
        is_there: bool = True,
        headers: dict[str, str] | None = None,
    ) -> set[int]:
        """Send so many requests and check the answers; return their statuses.

        Args:
            label: Of the operation.
            requests: To draw from.
            num: How many.
            is_there: Whether paths are put right, to name what is there.
            headers: Sent along.
        """
        found = set()

        @settings(num)
        @hypothesis.given(requests)
        def ask(case: Any) -> None:
            if is_there and case.path_parameters:
                case.path_parameters.update(self.parameters(label))
            found.add(case.call_and_validate(checks=CHECKS, headers=headers).status_code)

        ask()
        return found


def test_every_operation_answers_as_documented_whatever_it_is_sent(tmp_path: Path):
    surface = Surface(tmp_path / "jobs")
    assert len(surface.operations) >= 20
    for label in surface.operations:
        found = surface.answers(label, surface.examples(label), 6)
        good = surface.made(label, GenerationMode.POSITIVE)
        found |= surface.answers(label, good, 12)
        found |= surface.answers(label, good, 4, is_there=False)
        if label not in PROBES:  # which take nothing that could be wrong
            bad = surface.made(label, GenerationMode.NEGATIVE)
            found |= surface.answers(label, bad, 12)
            found |= surface.answers(label, bad, 4, is_there=False)
        assert min(found) < 300, f"{label} has never succeeded: {found}"
        if "{job_id}" in label:
            assert 404 in found, label
        if label in WITH_BODY:
            assert 422 in found, label


def test_every_operation_answers_each_role_as_documented(
    tmp_path: Path, tokens: tuple[Tokens, dict[str, str]]
):
    """Where whoever asks may not, with no word of whether the request was right."""
    file, secret = tokens
    surface = Surface(tmp_path / "jobs", file)
    for label in surface.operations:

        def ask(user: str, label: str = label) -> set[int]:
            token = secret.get(user, "lam_unknown")
            headers = {"Authorization": f"Bearer {token}"}
            return surface.answers(label, surface.examples(label), 3, headers=headers)

        takes_submit = label in OF_OWNERS or label in OF_SUBMITTERS
        refused = {
            "nobody": {401} if label not in PROBES else None,
            "reader": {403} if takes_submit else None,
            "bob": {403} if label in OF_OWNERS else None,
            "ada": None,
            "root": None,
        }
        for user, expected in refused.items():
            found = ask(user)
            if expected is None:
                assert min(found) < 300, (label, user, found)
                assert not found & {401, 403}, (label, user, found)
            else:
                assert found == expected, (label, user, found)


def test_settings_are_described_alike_in_requests_and_answers(service: Service) -> None:
    """Two kinds, `Config-Input` and `Config-Output`, would be a serializer's doing."""
    schemas = create_app(service.manager).openapi()["components"]["schemas"]
    assert "micro_batches" in schemas["ParallelConfig"]["properties"]
    assert "parallel" in schemas["Config"]["properties"]
