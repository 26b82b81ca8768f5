"""Which queued jobs may start: by placement group, priority and person.

Ray starts jobs at once and lets them wait inside for their placement groups, in no order that
anybody chose; so the queue is ours, and a job reaches Ray when there is room for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from service.jobs.models import ClusterInfo, Needs, NodeInfo

_EPSILON = 1e-6  # Ray itself counts in ten-thousandths


@dataclass(frozen=True)
class Candidate:
    """A queued job as admission sees it."""

    id: str
    owner: str
    priority: int
    created_at: datetime
    needs: Needs
    not_before: datetime | None = None


@dataclass(frozen=True)
class Holder:
    """A job that holds room."""

    owner: str
    needs: Needs


@dataclass(frozen=True)
class Decision:
    """What becomes of a queued job now."""

    id: str
    is_admitted: bool
    reason: str


def admit(
    queued: Sequence[Candidate],
    active: Sequence[Holder],
    cluster: ClusterInfo,
    *,
    max_active_per_user: int,
    at: datetime,
    left: Sequence[Needs] = (),
) -> list[Decision]:
    """Decide about every queued job, in the order in which they leave the queue.

    Higher priority first, then older. A job that would fit into the empty cluster holds back those
    behind it, so that small ones never starve it; one that is too large for the cluster, whose
    owner has enough running, or that waits after a failure, holds back nobody.

    Args:
        queued: In any order.
        active: Jobs that hold room.
        cluster: What it has, and by its own account, in use.
        max_active_per_user: Active jobs that one person may have.
        at: The time now.
        left: Needs of jobs that ended so lately that the cluster may still count them as in use.
    """
    free = _free(cluster, active, left)
    counts = Counter(holder.owner for holder in active)
    queued = [replace(job, needs=fitting(job.needs, cluster.nodes)) for job in queued]
    decisions: list[Decision] = []
    ahead: str | None = None
    for job in sorted(queued, key=lambda j: (-j.priority, j.created_at, j.id)):
        if not cluster.is_reachable:
            reason = "the cluster does not answer"
        elif (lacking := _lacking(job.needs, cluster)) is not None:
            reason = lacking
        elif counts[job.owner] >= max_active_per_user:
            reason = f"{job.owner} has {counts[job.owner]} active jobs, the most allowed at a time"
        elif job.not_before is not None and at < job.not_before:
            reason = f"waits until {job.not_before:%H:%M:%S} UTC before it tries again"
        elif ahead is not None:
            reason = f"waits behind {ahead}"
        elif (rest := place(job.needs, free)) is None:
            ahead = job.id
            reason = f"waits for room: needs {describe(job.needs)}, busy with other jobs"
        else:
            free = rest
            counts[job.owner] += 1
            decisions.append(Decision(job.id, True, f"admitted: room for {describe(job.needs)}"))
            continue
        decisions.append(Decision(job.id, False, reason))
    return decisions


def fitting(needs: Needs, nodes: Sequence[NodeInfo]) -> Needs:
    """Return needs with as many groups as an empty cluster has room for, one at least.

    A search that may have more trials at once than there can be is not to wait for ever; Tune lets
    the others queue.
    """
    if needs.num_groups == 1:
        return needs
    num_bundles = sum(_capacity(needs, node) for node in nodes)
    groups = min(needs.num_groups, max(1, num_bundles // needs.num_bundles))
    return needs.model_copy(update={"num_groups": groups})


def place(needs: Needs, free: Sequence[NodeInfo]) -> list[NodeInfo] | None:
    """Put equal bundles on nodes, as PACK does: fill one node, then the next.

    Returns:
        What is left, or None where they do not fit.
    """
    left, remaining = [], needs.total_bundles
    for node in free:
        count = min(remaining, _capacity(needs, node))
        remaining -= count
        left.append(
            NodeInfo(cpus=node.cpus - count * needs.cpus, gpus=node.gpus - count * needs.gpus)
        )
    return None if remaining else left


def describe(needs: Needs) -> str:
    """Return needs in words: `4 GPUs and 4 CPUs`."""
    num = needs.total_bundles
    totals = (needs.gpus * num, "GPU"), (needs.cpus * num, "CPU")
    return " and ".join(_count(total, kind) for total, kind in totals if total)


def _count(number: float, kind: str) -> str:
    return f"{number:g} {kind}{'' if number == 1 else 's'}"


def _capacity(needs: Needs, node: NodeInfo) -> int:
    """Return how many bundles fit on a node."""
    fits = [needs.total_bundles]
    for each, have in ((needs.cpus, node.cpus), (needs.gpus, node.gpus)):
        if each:
            fits.append(int((have + _EPSILON) / each))
    return max(0, min(fits))


def _lacking(needs: Needs, cluster: ClusterInfo) -> str | None:
    """Return why a job does not even fit into the empty cluster, or None."""
    for each, have, kind in ((needs.gpus, cluster.gpus, "GPU"), (needs.cpus, cluster.cpus, "CPU")):
        wanted = each * needs.total_bundles
        if wanted > have + _EPSILON:
            return f"needs {_count(wanted, kind)}, the cluster has {have:g}"
    if place(needs, cluster.nodes) is None:
        bundle = describe(needs.model_copy(update={"num_bundles": 1, "num_groups": 1}))
        return (
            f"needs {needs.total_bundles} times {bundle} on one node each, "
            f"the cluster's {len(cluster.nodes)} nodes have no such room"
        )
    return None


def _free(cluster: ClusterInfo, active: Sequence[Holder], left: Sequence[Needs]) -> list[NodeInfo]:
    """Return what each node has left, by our own account and by the cluster's.

    Ours knows of jobs that were admitted a moment ago, the cluster's of work that is not ours; of
    that it is not known on which node it is, so it is taken from the last ones.
    """
    free = list(cluster.nodes)
    held = [fitting(holder.needs, cluster.nodes) for holder in active]
    for needs in held:
        free = place(needs, free) or free
    ours = [*held, *(fitting(needs, cluster.nodes) for needs in left)]
    ours_cpus = sum(needs.cpus * needs.total_bundles for needs in ours)
    ours_gpus = sum(needs.gpus * needs.total_bundles for needs in ours)
    others_cpus = max(0.0, cluster.cpus_used - ours_cpus)
    others_gpus = max(0.0, cluster.gpus_used - ours_gpus)
    for index in reversed(range(len(free))):
        node = free[index]
        cpus, gpus = min(node.cpus, others_cpus), min(node.gpus, others_gpus)
        free[index] = NodeInfo(cpus=node.cpus - cpus, gpus=node.gpus - gpus)
        others_cpus, others_gpus = others_cpus - cpus, others_gpus - gpus
    return free
