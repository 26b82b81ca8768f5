"""What will run: cuts, filters, segments, all explicit; `laminar.planning` makes it.

Whoever holds a plan and computes nothing, as the coordinator does, need not import torch, which
takes three seconds and 285 MB: only what builds modules does, where it is called.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from laminar.config import Config, FilterConfig
from laminar.factories import NO_FACTORIES, Factories
from laminar.learning_rate import learning_rate
from laminar.phases import Phase as Phase
from laminar.phases import Segment as Segment
from laminar.phases import as_phases, correct_from
from laminar.problem import Problem as Problem
from laminar.problem import num_test_batches

if TYPE_CHECKING:
    import torch

    from laminar.blocks import BlockSequence
    from laminar.filters import Filter
    from laminar.loss import CrossEntropy, OwnLoss


@dataclass(frozen=True)
class Plan:
    """A resolved run."""

    config: Config
    """With cuts, filters and phases written out."""
    problem: Problem
    segments: tuple[Segment, ...]
    shapes: tuple[tuple[int, ...], ...]
    """Shape, without batch, of what each block receives; the last is the output."""
    factories: Factories = field(default=NO_FACTORIES, compare=False, repr=False)
    """What the user brought in Python."""

    @property
    def batches_per_epoch(self) -> int:
        """Full batches of an epoch; the ragged last one is dropped."""
        return self.problem.num_train // self.config.batch_size

    @property
    def num_batches(self) -> int:
        """Batches of the whole run."""
        return self.batches_per_epoch * self.config.epochs

    @property
    def num_test_batches(self) -> int:
        """Batches of the test set, the ragged last one counted."""
        return num_test_batches(self.config, self.problem.num_test)

    @property
    def bounds(self) -> tuple[int, ...]:
        """First block of each stage, and the number of blocks at the end."""
        return (0, *(self.config.cuts or ()), len(self.shapes) - 1)

    @property
    def filter_settings(self) -> dict[int, FilterConfig]:
        """What the configuration says of each boundary that has a filter, as in `filters`."""
        found = {f.boundary: f.plain() for f in self.config.kept_filters}
        for stage, boundary in enumerate(self.config.cuts or (), 1):
            found[boundary] = self.config.filter_of_cut(stage, boundary, self.shapes)
        return found

    @property
    def filters(self) -> dict[int, Filter]:
        """Filter of each boundary that has one, by the block that receives, at a cut or not."""
        from laminar.filters import Filter

        found = self.filter_settings.items()
        return {b: Filter(f.pool, f.cast, f.parallel_only) for b, f in found}

    @property
    def loss(self) -> CrossEntropy | OwnLoss:
        """The loss phi at the last stage."""
        from laminar.loss import CrossEntropy, OwnLoss

        if self.factories.loss is not None:
            return OwnLoss(self.factories.loss)
        return CrossEntropy(self.config.loss.label_smoothing)

    @property
    def parallel_fraction(self) -> float:
        """Fraction of all passes that are parallel, 0..1; see `Plan.num_visits`."""
        in_phase = sum(s.num_batches for s in self.segments if s.phase == "parallel")
        visits = self.num_visits * in_phase
        return visits / (self.num_batches + visits) if visits else in_phase / self.num_batches

    @property
    def num_visits(self) -> int:
        """Parallel passes over a batch of the parallel phase after its exact one; 0 if streamed.

        The stored feed begins with an exact pass (docs/decisions/passes-of-the-stored-feed.md).
        """
        config = self.config
        return config.stored.sweeps if config.parallel.feed == "stored" else 0

    def learning_rate(self, batch: int) -> float:
        """Return the learning rate of the update that applies this batch of the run."""
        return learning_rate(
            self.config.schedule,
            batch,
            peak=self.config.optimizer.lr,
            num_batches=self.num_batches,
            batches_per_epoch=self.batches_per_epoch,
        )

    def with_cuts(self, cuts: tuple[int, ...]) -> Plan:
        """Return the plan with these cuts, and with the filter of each cut written out."""
        config = self.config
        filters = tuple(
            config.filter_of_cut(k, boundary, self.shapes) for k, boundary in enumerate(cuts, 1)
        )
        kept = tuple(f for f in config.kept_filters if f.boundary not in cuts)
        update = {"cuts": cuts, "filters": filters, "kept_filters": kept}
        return dataclasses.replace(self, config=config.model_copy(update=update))

    def corrected_from(self, epoch: int) -> Plan:
        """Return the plan with all batches from this epoch on in the correction phase."""
        segments = correct_from(self.segments, epoch)
        phases = as_phases(segments, self.batches_per_epoch)
        config = self.config.model_copy(update={"phases": phases})
        return dataclasses.replace(self, config=config, segments=tuple(segments))

    def build_stage_module(
        self, first: int, last: int, device: torch.device | str = "cpu"
    ) -> BlockSequence:
        """Build blocks `first .. last-1`, freshly initialised, with the filters inside.

        Args:
            first: Index of the first block.
            last: Index after the last one.
            device: `meta` builds names and shapes only, where the network is one of ours.
        """
        from laminar.blocks import BlockSequence, build
        from laminar.filters import adjoint_scale
        from laminar.networks import block_specs

        specs = block_specs(self.config, self.problem, self.factories)
        if self.factories.blocks is not None:
            device = "cpu"  # what a user's code does on `meta` nobody knows
        seed = self.config.seed
        return BlockSequence(
            build(specs, seed=seed, first=first, last=last, device=device),
            first=first,
            filters=self.filters,
            adjoint_scale=adjoint_scale(self.config.batch_size),
        )
