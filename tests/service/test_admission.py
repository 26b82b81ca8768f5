"""Who leaves the queue: by room, priority, age and person."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from service.jobs.admission import Candidate, Decision, Holder, admit, place
from service.jobs.models import ClusterInfo, Needs, NodeInfo, Versions

T0 = datetime(2026, 1, 1, tzinfo=UTC)


def needs(num: int = 1, cpus: float = 1.0, gpus: float = 0.0) -> Needs:
    return Needs(num_bundles=num, cpus=cpus, gpus=gpus)


def cluster(
    *nodes: tuple[float, float], used: tuple[float, float] = (0, 0), up: bool = True
) -> Any:
    infos = tuple(NodeInfo(cpus=c, gpus=g) for c, g in nodes)
    return ClusterInfo(
        is_reachable=up,
        nodes=infos,
        cpus=sum(n.cpus for n in infos),
        gpus=sum(n.gpus for n in infos),
        cpus_used=used[0],
        gpus_used=used[1],
        versions=None,
        service_versions=Versions(),
        num_active=0,
        num_queued=0,
    )


def job(name: str, minute: int, wants: Needs, priority: int = 0, owner: str = "ada", **more: Any):
    return Candidate(name, owner, priority, T0 + timedelta(minutes=minute), wants, **more)


def decide(
    queued: list[Candidate], where: Any, active: Any = (), **more: Any
) -> dict[str, Decision]:
    more = {"max_active_per_user": 8, "at": T0} | more
    return {d.id: d for d in admit(queued, active, where, **more)}


def admitted(found: dict[str, Decision]) -> list[str]:
    return [d.id for d in found.values() if d.is_admitted]


def test_priority_comes_before_age():
    queue = [job("old", 0, needs()), job("new", 1, needs()), job("urgent", 2, needs(), priority=5)]
    found = decide(queue, cluster((2, 0)))
    assert admitted(found) == ["urgent", "old"]
    assert found["new"].reason == "waits for room: needs 1 CPU, busy with other jobs"


def test_a_large_job_is_not_starved_by_small_ones_behind_it():
    queue = [job("large", 0, needs(4)), job("small", 1, needs())]
    found = decide(queue, cluster((4, 0)), [Holder("bob", needs())])
    assert admitted(found) == []
    assert found["large"].reason == "waits for room: needs 4 CPUs, busy with other jobs"
    assert found["small"].reason == "waits behind large"


@pytest.mark.parametrize(
    ("wants", "reason"),
    [
        (needs(4, 1, 1), "needs 4 GPUs, the cluster has 2"),
        (needs(1, 9), "needs 9 CPUs, the cluster has 8"),
        (
            needs(1, 5),
            "needs 1 times 5 CPUs on one node each, the cluster's 2 nodes have no such room",
        ),
    ],
)
def test_what_never_fits_says_so_and_holds_back_nobody(wants: Needs, reason: str):
    found = decide([job("huge", 0, wants), job("small", 1, needs())], cluster((4, 1), (4, 1)))
    assert found["huge"].reason == reason
    assert admitted(found) == ["small"]


def test_one_person_cannot_take_all():
    queue = [job(f"ada{i}", i, needs()) for i in range(3)] + [job("bob", 9, needs(), owner="bob")]
    found = decide(queue, cluster((4, 0)), max_active_per_user=2)
    assert admitted(found) == ["ada0", "ada1", "bob"]
    assert found["ada2"].reason == "ada has 2 active jobs, the most allowed at a time"


def test_work_of_others_is_counted_once():
    mine = [Holder("ada", needs(2))]
    # Three CPUs in use, two of them ours: of four, one is free.
    found = decide([job("a", 0, needs()), job("b", 1, needs())], cluster((4, 0), used=(3, 0)), mine)
    assert admitted(found) == ["a"]
    # A job of ours that was just admitted is not in the cluster's account yet.
    assert admitted(decide([job("a", 0, needs(3))], cluster((4, 0)), mine)) == []
    # One that has just ended is still in it.
    lagging = cluster((4, 0), used=(2, 0))
    assert admitted(decide([job("a", 0, needs(4))], lagging, left=[needs(2)])) == ["a"]
    assert admitted(decide([job("a", 0, needs(4))], lagging)) == []


def test_a_job_that_pauses_holds_back_nobody():
    later = T0 + timedelta(seconds=30)
    queue = [job("again", 0, needs(), not_before=later), job("b", 1, needs())]
    found = decide(queue, cluster((1, 0)))
    assert admitted(found) == ["b"]
    assert found["again"].reason == "waits until 00:00:30 UTC before it tries again"
    assert admitted(decide(queue, cluster((1, 0)), at=later)) == ["again"]


def test_nobody_starts_on_a_cluster_that_does_not_answer():
    found = decide([job("a", 0, needs())], cluster(up=False))
    assert found["a"] == Decision("a", False, "the cluster does not answer")


def test_bundles_are_packed_and_never_split():
    nodes = [NodeInfo(cpus=3, gpus=0), NodeInfo(cpus=2, gpus=1)]
    assert place(needs(2, 2), nodes) == [NodeInfo(cpus=1, gpus=0), NodeInfo(cpus=0, gpus=1)]
    assert place(needs(3, 2), nodes) is None
    assert place(needs(1, 0.1, 0.5), nodes) == [nodes[0], NodeInfo(cpus=1.9, gpus=0.5)]
    tenths = place(needs(10, 0.1), [NodeInfo(cpus=1, gpus=0)])
    assert tenths is not None
    assert tenths[0].cpus == pytest.approx(0)
