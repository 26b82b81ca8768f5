"""What the tensors of a stage need: parameters, optimiser, and all that is in flight.

An estimate, up to a fifth below what a process was seen to grow by (docs/log.md). It is without
messages under way, evaluation (a batch of `eval_batch_size` without gradients), the small networks
of `method: greedy` and `auxnet`, and the process itself with torch and Ray, 0.7 GB.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from laminar.config import AdamWConfig, Config
from laminar.dropout import Samples
from laminar.inspection import zeros
from laminar.precision import autocast
from laminar.schedule import (
    HOP_DEPTH,
    Forward,
    correction_actions,
    lateness_ticks,
    parallel_actions,
    updates_until_own,
)

if TYPE_CHECKING:
    from laminar.plan import Plan


@dataclass(frozen=True)
class BlockMemory:
    """Bytes of one block."""

    parameters: float
    input_per_sample: float
    """What the block's input adds where a cut is before it."""
    saved_per_sample: float
    """What a forward keeps for its backward, beyond what the blocks before it keep."""
    saved_per_micro_batch: float
    """The same, for what does not grow with the micro-batch."""
    crossing_per_sample: float
    """The block's input itself."""


@dataclass(frozen=True)
class InFlight:
    """The most that one stage holds at a time in the parallel phase."""

    num_visits: int
    """Forwards that wait for their backward, the one under way included."""
    num_weights: int
    """Copies of the weights that those ran at, its own weights apart."""
    num_ends: int = 0
    """Forwards of which only input and output wait, to be run again."""


def block_memories(plan: Plan) -> list[BlockMemory]:
    """Run two and three samples through the network and count what each block keeps, on the CPU."""
    return [
        BlockMemory(
            parameters=two.parameters,
            input_per_sample=(three.input - two.input),
            saved_per_sample=three.saved - two.saved,
            saved_per_micro_batch=max(0, two.saved - 2 * (three.saved - two.saved)),
            crossing_per_sample=three.crossing - two.crossing,
        )
        for two, three in zip(_run(plan, 2), _run(plan, 3), strict=True)
    ]


def stage_bytes(
    memories: Sequence[BlockMemory], plan: Plan, stage: int, first: int, last: int
) -> float:
    """Return the bytes of stage k if it consists of blocks first .. last-1."""
    config, own = plan.config, memories[first:last]
    is_stored = config.parallel.feed == "stored"
    flight = InFlight(0, 0) if is_stored else in_flight(config, stage)
    moments = 2 if isinstance(config.optimizer, AdamWConfig) else int(config.optimizer.momentum > 0)
    accumulates = max(config.num_micro_of("parallel"), config.correction.micro_batches) > 1
    # The gradient so far, the one that is added, and their sum; or a gradient and its clipped copy.
    gradients = 3 if accumulates else 2
    # Weights and gradient of a batch, from when it is applied to when the phase has drained.
    kept = 0 if config.ledger is None else 2
    copies = 1 + moments + gradients + flight.num_weights + (config.ema is not None) + kept
    per_sample = sum(m.saved_per_sample for m in own) + own[0].input_per_sample
    fixed = sum(m.saved_per_micro_batch for m in own)
    ends = 0.0
    if flight.num_ends:  # so this is not the last stage
        at_both = own[0].crossing_per_sample + memories[last].crossing_per_sample
        ends = flight.num_ends * (config.batch_size // config.parallel.micro_batches) * at_both

    def activations(num_visits: int, num_micro: int) -> float:
        # A backward needs about what one forward keeps; alone, it lives on what that frees.
        room = num_visits + (num_visits > 1)
        return room * (config.batch_size // num_micro * per_sample + fixed)

    return (
        (_store_bytes(memories, plan, stage, first, last) if is_stored else 0.0)
        + copies * sum(m.parameters for m in own)
        + max(
            activations(flight.num_visits, config.parallel.micro_batches) + ends,
            activations(_correction_visits(config, stage), config.correction.micro_batches),
        )
    )


def _store_bytes(
    memories: Sequence[BlockMemory], plan: Plan, stage: int, first: int, last: int
) -> float:
    """Return what a window of the stored feed keeps, as if filters sent all; at most its limit."""
    stored, per_epoch = plan.config.stored, plan.batches_per_epoch
    # A window is as long as the setting says, or up to twice that (`split_windows`).
    batches = per_epoch if stored.window is None else min(per_epoch, 2 * stored.window - 1)
    per_sample = 0.0
    if stage > 0:  # lambda and kappa
        has_kappa = plan.config.method != "delayed_gradient"
        per_sample += (1 + has_kappa) * memories[first].crossing_per_sample
    if stage < plan.config.num_stages - 1:  # what was sent, and its adjoint
        per_sample += 2 * memories[last].crossing_per_sample
    return min(stored.memory_limit_mb * 1e6, batches * plan.config.batch_size * per_sample)


def in_flight(config: Config, stage: int) -> InFlight:
    """Play the parallel phase of one stage and count."""
    p, K = config.parallel, config.num_stages
    M, d = p.micro_batches, p.hop_delay
    live: dict[int, tuple[int, int]] = {}
    updates, num_visits, num_weights, num_ends = 0, 0, 0, 0
    num_micro = 4 * (lateness_ticks(stage, K, d) + M) // M * M
    for _, action in parallel_actions(stage, K, num_micro, d, p.first_half):
        if isinstance(action, Forward):
            s = updates_until_own(action.micro, stage, K, M, d, p.first_half)
            live[action.micro] = updates, s
            late = [v for v in live.values() if v[1]]
            if p.runs_again:
                # Beside these a late one that runs again, or a forward that is not late.
                num_visits = max(num_visits, max(1, len(live) - len(late)))
                num_weights = max(num_weights, len({v for v in late if v[0] == updates}))
                num_ends = max(num_ends, len(late))
            else:
                num_visits = max(num_visits, len(live))
                num_weights = max(num_weights, len(set(late)))
        else:
            del live[action.micro]
            updates += (action.micro + 1) % M == 0
    return InFlight(num_visits, num_weights, num_ends)


def _correction_visits(config: Config, stage: int) -> int:
    live = most = 0
    M = config.correction.micro_batches
    for action in correction_actions(stage, config.num_stages, M, HOP_DEPTH):
        live += 1 if isinstance(action, Forward) else -1
        most = max(most, live)
    return most


@dataclass(frozen=True)
class _Kept:
    parameters: int
    input: int
    saved: int
    crossing: int


class _Counter:
    """Counts the bytes of tensors that autograd saves, each storage once."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self._alive: dict[int, Tensor] = {}
        """By address; alive to the end, so that no address is used twice."""

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        self._alive |= {_address(tensor): tensor for tensor in tensors}

    def has(self, tensor: Tensor) -> bool:
        return _address(tensor) in self._alive

    def __call__(self, tensor: Tensor) -> Tensor:
        if not self.has(tensor):
            self.num_bytes += tensor.untyped_storage().nbytes()
            self.ignore([tensor])
        return tensor


def _run(plan: Plan, num_samples: int) -> list[_Kept]:
    """Return for each block what a forward of the whole network keeps on its account."""
    device, precision = torch.device("cpu"), plan.config.precision
    counter, found = _Counter(), []
    x = zeros(plan.problem, num_samples)
    for index in range(plan.bounds[-1]):
        module = plan.build_stage_module(index, index + 1).train()
        module.set_samples(Samples(seed=0, epoch=0, indices=torch.arange(num_samples)))
        counter.ignore([*module.parameters(), *module.buffers()])
        before, x_in = counter.num_bytes, x
        is_of_block_before = counter.has(x_in)
        hooks = torch.autograd.graph.saved_tensors_hooks(counter, lambda tensor: tensor)
        with hooks, autocast(precision, device):
            x = module(x_in.requires_grad_() if index else x_in).detach()
        is_counted_here = counter.has(x_in) and not is_of_block_before
        received = 4 * x_in.numel() if index else 0
        found.append(
            _Kept(
                parameters=sum(p.nbytes for p in module.parameters()),
                input=received - (x_in.nbytes if is_counted_here and index else 0),
                saved=counter.num_bytes - before,
                # A stage keeps both of its ends in fp32, whatever it computes in.
                crossing=received or x_in.nbytes,
            )
        )
    return found


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
