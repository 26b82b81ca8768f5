"""Going on with a run at other cuts, or with another number of stages."""

from __future__ import annotations

from laminar.config import Config, FilterConfig, KeptFilterConfig, PhaseCycles, PhaseSegment
from laminar.config_file import validate_config
from laminar.filters import Filter
from laminar.plan import Plan
from laminar.planning import make_plan

_FREE = ("num_stages", "cuts", "filters", "kept_filters", "partition", "resources", "tracking")
"""What may differ between the two halves of a run; and `phases`, as `is_same_run` says."""


def repartition(
    plan: Plan,
    num_stages: int,
    cuts: tuple[int, ...] | None,
    phases: PhaseCycles | tuple[PhaseSegment, ...] | None = None,
) -> Config:
    """Return the configuration of the same run with other cuts.

    The filters stay at their boundaries, for they belong to the network; a new cut where there is
    none sends fp32 unpooled. Parallel segments that are too short for this number of stages
    become exact.

    Args:
        plan: The run so far, resolved.
        num_stages: K from now on.
        cuts: First block of stages 1..K-1; None chooses them as for a new run.
        phases: The checkpoint's, if the plan's own have been made to fit another number of stages
            with which no epoch was trained; None takes the plan's.

    Raises:
        ConfigError: The network cannot be cut so.
    """
    kept = tuple(
        KeptFilterConfig(boundary=b, pool=f.pool, cast=f.cast, parallel_only=f.parallel_only)
        for b, f in sorted(plan.filters.items())
        if not f.is_identity
    )
    update = {
        "num_stages": num_stages,
        "cuts": cuts,
        "filters": FilterConfig(),
        "kept_filters": kept,
        "phases": plan.config.phases if phases is None else phases,
    }
    config = validate_config(plan.config.model_copy(update=update).model_dump())
    phases = make_plan(
        config, plan.problem, plan.factories, correct_short_phases=True
    ).config.phases
    return config.model_copy(update={"phases": phases})


def is_same_run(before: Plan, after: Plan, epoch: int) -> bool:
    """Whether a run may go on from a checkpoint of another plan.

    All but partition, resources and trackers must be equal, and so must the filters at every
    boundary, for they are part of the network's function. Phases may differ if the number of
    stages does, or if the run has diverged since and went back: it is exact from there on.

    Args:
        before: The checkpoint's.
        after: What is to be trained now.
        epoch: Epochs finished at the checkpoint.
    """
    went_back = (
        after.config.on_divergence == "correct"
        and after.config.phases == before.corrected_from(epoch).config.phases
    )
    free = {*_FREE, *(["phases"] if went_back or _num_stages_differ(before, after) else [])}
    fixed = set(Config.model_fields) - free
    return (
        before.config.model_dump(include=fixed) == after.config.model_dump(include=fixed)
        and _acting(before) == _acting(after)
        and before.problem == after.problem
    )


def changes(before: Plan, after: Plan) -> list[str]:
    """Return what the user of a run should know of its new partition, if it has one."""
    if before.config.cuts == after.config.cuts:
        return []
    found = [
        f"goes on with num_stages {after.config.num_stages}, cuts {list(after.config.cuts or ())}"
    ]
    inside = [str(b) for b in sorted(_acting(after)) if b not in (after.config.cuts or ())]
    if inside:
        found.append(f"filters stay before blocks {', '.join(inside)}, inside stages")
    if before.parallel_fraction > after.parallel_fraction:
        found.append(
            "parallel segments that are too short for so many stages are trained exactly: "
            f"{after.parallel_fraction:.0%} of the whole plan is parallel, not "
            f"{before.parallel_fraction:.0%}"
        )
    return found


def _num_stages_differ(before: Plan, after: Plan) -> bool:
    return before.config.num_stages != after.config.num_stages


def _acting(plan: Plan) -> dict[int, Filter]:
    return {boundary: f for boundary, f in plan.filters.items() if not f.is_identity}
