"""Ray's client of its Jobs API, with a time limit on every request."""

from __future__ import annotations

from typing import Any

from ray.job_submission import JobSubmissionClient

TIMEOUT_S = 30.0


class TimedClient(JobSubmissionClient):
    """Ray's own waits for ever where a head is half dead."""

    def _do_request(self, method: str, endpoint: str, **named: Any) -> Any:
        named.setdefault("timeout", TIMEOUT_S)
        return super()._do_request(method, endpoint, **named)
