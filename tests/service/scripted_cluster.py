"""A cluster that a test drives: it knows names of drivers, and nothing trains on it.

The real one is in tests/end_to_end/test_service.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from laminar.storage import Storage
from service.jobs.cluster import ClusterState, ClusterUnreachable, DriverState, SubmissionRefused
from service.jobs.dispatcher import submission_id
from service.jobs.manager import JobManager
from service.jobs.models import (
    Config,
    Estimate,
    JobRequest,
    Needs,
    NodeInfo,
    SearchRequest,
    Versions,
    now,
)
from service.jobs.search_models import SearchFile
from service.jobs.searches import estimate_search
from service.jobs.settings import Settings
from service.jobs.store import RUN, JobStore, attempt_file
from tests.tiny import tiny_config

VERSIONS = Versions(python="3.11.1", ray="2.60.0", torch="2.15.0", laminar="0.1.0")


class ScriptedCluster:
    """Remembers what was submitted; `drivers` may be edited at will."""

    def __init__(self, *nodes: tuple[float, float]) -> None:
        self.nodes = tuple(NodeInfo(cpus=c, gpus=g) for c, g in nodes)
        self.used = (0.0, 0.0)
        self.drivers: dict[str, DriverState] = {}
        self.submitted: list[str] = []
        self.stopped: list[str] = []
        self.is_reachable = True
        self.refusal = ""
        self.known_versions: Versions | None = VERSIONS
        self.head = "session_1"

    def _answer(self) -> None:
        if not self.is_reachable:
            raise ClusterUnreachable("connection refused")

    def state(self) -> ClusterState:
        self._answer()
        return ClusterState(self.nodes, *self.used)

    def lose_head(self) -> None:
        """Another head comes in its place, which knows of no driver."""
        self.drivers.clear()
        self.head = f"session_{int(self.head.removeprefix('session_')) + 1}"

    def session(self) -> str:
        self._answer()
        return self.head

    def versions(self) -> Versions | None:
        self._answer()
        return self.known_versions

    def submit(self, name: str, folder: str, attempt: int) -> None:
        self._answer()
        if self.refusal:
            raise SubmissionRefused(self.refusal)
        if name not in self.drivers:
            self.submitted.append(name)
            self.drivers[name] = "running"

    def driver(self, name: str) -> tuple[DriverState, str]:
        self._answer()
        return self.drivers.get(name, "absent"), "said Ray"

    def stop(self, name: str) -> None:
        self._answer()
        self.stopped.append(name)
        self.drivers[name] = "ended"

    def forget(self, name: str) -> None:
        self._answer()


class CountingPlanner:
    """Plans in no time, as the real one does for a configuration that it has seen."""

    def plan(self, config: Config) -> Estimate:
        needs = config.resources.cpus_per_stage * config.num_stages
        return Estimate(
            num_workers=config.num_stages,
            cpus=needs,
            gpus=0,
            stage_bytes=(1,) * config.num_stages,
            memory_bytes=2,
            seconds=3,
        )

    def plan_search(self, tree: SearchFile) -> tuple[Needs, Estimate]:
        """As the real one, in this process."""
        return estimate_search(json.dumps(tree))

    def close(self) -> None:
        """Nothing was started."""


class Service:
    """A manager on real storage, whose cluster and drivers the test plays."""

    def __init__(self, folder: Path, cluster: ScriptedCluster, **settings: Any) -> None:
        self.folder, self.cluster = folder, cluster
        self.settings = Settings(**settings)
        self.restart()

    def restart(self) -> None:
        """Forget all that is in memory, as a service that is killed and started again."""
        self.store = JobStore(Storage.open(str(self.folder)))
        self.manager = JobManager(
            self.store,
            self.cluster,
            CountingPlanner(),  # type: ignore[arg-type]
            self.settings,
        )

    def submit_search(self, owner: str = "ada", **changes: Any) -> str:
        job, _ = self.manager.submit(search_request(**changes), owner)
        return job.id

    def submit(self, owner: str = "ada", key: str | None = None, **changes: Any) -> str:
        job, _ = self.manager.submit(request(**changes), owner, key)
        return job.id

    def tick(self) -> None:
        self.manager.dispatcher.tick()

    def say(self, job_id: str, phase: str, outcome: str | None = None, reason: str = "") -> None:
        """Write what the driver of the present try would."""
        attempt = self.store.status(job_id).last.attempt
        content = {"phase": phase, "outcome": outcome, "reason": reason, "at": now().isoformat()}
        if phase != "starting" and self.store.spec(job_id).request.kind == "search":
            content["search_progress"] = {
                "num_trials": 3, "num_done": 1, "num_running": 1, "best_trial": 0,
                "best": {"test_accuracy": 0.75},
            }  # fmt: skip
        elif phase != "starting":
            content["progress"] = {
                "epoch": 1, "num_epochs": 2, "phase": "parallel", "num_batches_done": 3,
                "num_batches": 10, "loss": 1.5, "accuracy": 0.5, "samples_per_s": 100.0,
            }  # fmt: skip
        path = self.folder / job_id / attempt_file(attempt)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))
        if phase == "ended":
            self.cluster.drivers[submission_id(job_id, attempt)] = "ended"

    def state(self, job_id: str) -> str:
        return self.store.status(job_id).state

    def reason(self, job_id: str) -> str:
        return self.store.summary(job_id).reason

    def run(self, job_id: str) -> Path:
        return self.folder / job_id / RUN


def request(*, cpus: float = 1.0, stages: int = 1, gpus: float = 0.0, **changes: Any) -> JobRequest:
    config = tiny_config(
        num_stages=stages, resources={"cpus_per_stage": cpus, "gpus_per_stage": gpus}
    )
    return JobRequest.model_validate({"config": config, **changes})


SEARCH_FILE: dict[str, Any] = {
    **tiny_config().model_dump(mode="json", exclude_defaults=True),
    "optimizer": {"lr": {"loguniform": [0.01, 0.1]}},
    "search": {"num_trials": 3, "algorithm": "random"},
}


def with_search(**changes: Any) -> dict[str, Any]:
    return {**SEARCH_FILE, "search": {**SEARCH_FILE["search"], **changes}}


def search_request(tree: dict[str, Any] | None = None, **changes: Any) -> SearchRequest:
    return SearchRequest.model_validate({"search_file": tree or SEARCH_FILE, **changes})
