"""The parallel phase with auxiliary variables kept per sample: windows of a pass and sweeps.

A window is a stretch of batches. An exact pass over it trains as the correction phase does, and
what crosses the cuts on its way stays where it arrives: with it lambda and kappa are known. In each
of the sweeps that follow every stage visits every batch, all stages at once: it minimises its own
loss by local steps, and sends the x and p of the visit to its neighbours for the next sweep.
docs/method.md has the equations, `laminar/reference_stored.py` all of it in one process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from laminar.config.stored import BalancedPenalty
from laminar.constraints import (
    balanced_penalty,
    chosen_penalty,
    constraint_gradient,
    multiplier,
    offset,
)
from laminar.curvature import moved_adjoint
from laminar.engine import (
    BatchDone,
    Direction,
    Feed,
    Inputs,
    Labels,
    Program,
    Receive,
    Send,
    exact_pass,
)
from laminar.filters import Message, adjoint_scale, unpack
from laminar.plan import Segment
from laminar.stage import Stage
from laminar.store import Store
from laminar.windows import split_windows


def stored_phase(
    stage: Stage, segment: Segment, inputs: Inputs | None, labels: Labels | None
) -> Program:
    """Train a segment window by window; `BatchDone` counts a batch when all its visits are due.

    Messages are numbered through the segment.
    """
    stage.enter("parallel")
    config = stage.plan.config
    done = number = 0
    for window in split_windows(segment, config.stored.window):
        feed = Feed(stage, window, inputs, labels, config.num_micro_of("parallel"))
        program = _Window(stage, window, feed, number, done)
        yield from program.run()
        number += program.num_messages
        done += window.num_batches


class _Window:
    """One window of one stage.

    Kept of each micro-batch (names of the store): by the stage that receives, `lambda` and, for
    the augmented Lagrangian, `kappa`; by the one that sends, `sent`, what it last sent on, and
    `adjoint`, what was last sent back.

    Args:
        stage: The stage.
        segment: The window.
        feed: Its data.
        first_number: Of its messages.
        num_done: Batches of the windows before.
    """

    def __init__(
        self, stage: Stage, segment: Segment, feed: Feed, first_number: int, num_done: int
    ) -> None:
        self._stage, self._segment, self._feed = stage, segment, feed
        self._config = config = stage.plan.config
        self._per_batch = config.num_micro_of("parallel")
        self._num_micro = segment.num_batches * self._per_batch
        self._first_batch = segment.epoch * stage.plan.batches_per_epoch + segment.first_batch
        self._first_number = first_number
        self._first_visit = first_number + self._num_micro + 1
        self.num_messages = self._num_micro * config.stored.sweeps + 1
        """Numbers that the window uses up: an exact pass, a penalty, all sweeps but the last."""
        self._scale = adjoint_scale(config.batch_size)
        limit = config.stored.memory_limit_mb * 1e6
        self._store = Store(self._num_micro, limit, config.stored.scratch_dir)
        self._num_done, self._num_steps = num_done, 0
        self._collected: dict[Direction, int] = {"forward": 0, "adjoint": 0}
        self._rho_in = self._rho_out = 0.0
        """Of the cuts before and behind the stage, over the batch size."""

    def run(self) -> Program:
        """Exact pass, penalties, sweeps."""
        yield from self._fill()
        yield from self._find_penalties()
        num_sweeps = self._config.stored.sweeps
        for sweep in range(num_sweeps):
            for batch in range(self._segment.num_batches):
                yield from self._collect(self._num_visited(sweep - 1, batch + 1), waits=True)
                yield from self._visit(sweep, batch, is_last=sweep == num_sweeps - 1)
                yield self._count_step()
                if sweep < num_sweeps - 1:
                    yield from self._collect(self._num_visited(sweep, batch + 1), waits=False)

    # -- the exact pass -----------------------------------------------------------------------

    def _fill(self) -> Program:
        """Train exactly and keep what crosses the cuts; renumber the messages."""
        program = exact_pass(self._stage, self._segment, self._feed)
        answer: Message | None = None
        while True:
            try:
                step = program.send(answer)
            except StopIteration:
                return
            answer = None
            if isinstance(step, Receive):
                number = self._first_number + step.micro
                answer = yield Receive(step.direction, number)
                assert answer is not None
                if step.direction == "forward":
                    self._store.put("lambda", step.micro, (unpack(answer),))
                else:
                    self._store.put("adjoint", step.micro, answer)
            elif isinstance(step, Send):
                if step.direction == "forward":
                    self._store.put("sent", step.micro, step.message)
                elif self._config.method != "delayed_gradient":
                    self._store.put("kappa", step.micro, (self._adjoint(step.message),))
                yield Send(step.direction, self._first_number + step.micro, step.message)
            else:
                yield self._count_step()

    def _count_step(self) -> BatchDone:
        """Count an exact step or a visit; a batch is done when it has had as many as are due."""
        self._num_steps += 1
        return BatchDone(self._num_done + self._num_steps // (1 + self._config.stored.sweeps))

    # -- the penalty of each cut ----------------------------------------------------------------

    def _find_penalties(self) -> Program:
        """Agree on rho with the neighbours; the penalty method starts from lambda = x - p/rho."""
        config, stage = self._config, self._stage
        if config.method == "delayed_gradient":
            return
        penalty = config.penalty
        if isinstance(penalty, BalancedPenalty):
            number = self._first_visit - 1
            if not stage.is_last:
                self._rho_out = self._balance(config.penalty_ratio(penalty))
                yield Send("forward", number, (torch.tensor([self._rho_out]),))
            if not stage.is_first:
                answer = yield Receive("forward", number)
                assert answer is not None
                self._rho_in = float(answer[0])
        else:
            rho = chosen_penalty(penalty, self._first_batch, stage.plan.num_batches)
            self._rho_in = self._rho_out = rho / config.batch_size
        if config.method == "penalty" and not stage.is_first:
            for micro in range(self._num_micro):
                self._move_lambda(micro, offset(0.0, self._get("kappa", micro), self._rho_in))
            self._store.drop("kappa")

    def _balance(self, ratio: float) -> float:
        """Run the first batch once more, and see how far its x has moved since the exact pass."""
        stage, x, x_sent, p = self._stage, list[Tensor](), list[Tensor](), list[Tensor]()
        with unmoved_buffers(stage.module):
            for micro in range(self._per_batch):
                message = self._forward(micro)
                assert message is not None
                x.append(unpack(message))
                x_sent.append(unpack(self._load("sent", micro)))
                p.append(self._adjoint(self._load("adjoint", micro)))
        stage.discard()
        # In fp32 as a message, so that both ends of the cut have the same number.
        rho = balanced_penalty(torch.cat(p), torch.cat(x), torch.cat(x_sent), ratio)
        return float(torch.tensor(rho))

    # -- the sweeps -----------------------------------------------------------------------------

    def _visit(self, sweep: int, batch: int, *, is_last: bool) -> Program:
        """Take the local steps of one batch, and send x and p unless no sweep will need them."""
        config, stage = self._config, self._stage
        num_steps = config.stored.inner_steps
        micros = range(batch * self._per_batch, (batch + 1) * self._per_batch)
        replies: dict[int, Message] = {}
        for step in range(num_steps):
            moves = contextlib.nullcontext() if step == 0 else unmoved_buffers(stage.module)
            with moves:
                for micro in micros:
                    x = self._forward(micro)
                    if sweep == 0 and step == 0 and x is not None:
                        self._note_lambda(micro)
                    reply = stage.backward(micro, None if x is None else self._pull(micro, x))
                    number = self._first_visit + sweep * self._num_micro + micro
                    if not is_last and x is not None and step == num_steps - 1:
                        self._store.put("sent", micro, x)
                        yield Send("forward", number, x)
                    if not is_last and reply is not None and step == 0:
                        replies[micro] = reply
                        yield Send("adjoint", number, reply)
            stage.update(
                self._first_batch + batch,
                step_size=config.visit_step_size(),
                momentum=config.visit_momentum(),
            )
        for micro, reply in replies.items():
            self._take_adjoint(micro, reply)

    def _forward(self, micro: int) -> Message | None:
        stage = self._stage
        x = self._feed.images[micro] if stage.is_first else self._load("lambda", micro)
        assert x is not None
        samples = self._feed.samples(micro)
        if samples is not None:
            stage.module.set_samples(samples)
        targets = self._feed.targets[micro]
        return stage.forward(micro, x, targets, num_micro=self._per_batch, is_visit=True)

    def _note_lambda(self, micro: int) -> None:
        """Form the lambda that the next stage started the sweeps from."""
        lam, adjoint = unpack(self._load("sent", micro)), self._load("adjoint", micro)
        if self._config.method == "penalty":
            lam = lam + offset(0.0, self._adjoint(adjoint), self._rho_out)
        self._stage.note_lambda(micro, self._num_done * self._per_batch + micro, lam, adjoint)

    def _pull(self, micro: int, x: Message) -> Message:
        """Return the gradient of this stage's own loss with respect to x, as an adjoint."""
        p, x_sent = self._adjoint(self._load("adjoint", micro)), unpack(self._load("sent", micro))
        curvature = self._config.parallel.curvature
        if curvature:
            p = moved_adjoint(p, unpack(x) - x_sent, self._config.batch_size, curvature)
        return (constraint_gradient(p, unpack(x), x_sent, self._rho_out) * self._scale,)

    def _take_adjoint(self, micro: int, reply: Message) -> None:
        """Move kappa, and let lambda wait, as what x will be added to, for the x of this sweep."""
        p = self._adjoint(reply).to("cpu")
        kappa: Tensor | float = 0.0
        if self._config.method == "augmented_lagrangian":
            kappa = self._get("kappa", micro)
        self._store.put("lambda", micro, (offset(kappa, p, self._rho_in),))
        if isinstance(kappa, Tensor):
            moved = multiplier(kappa, p, self._config.stored.multiplier_step)
            self._store.put("kappa", micro, (moved,))

    # -- messages ---------------------------------------------------------------------------------

    def _num_visited(self, sweep: int, num_batches: int) -> int:
        return max(0, sweep * self._num_micro + num_batches * self._per_batch)

    def _collect(self, num: int, *, waits: bool) -> Program:
        """Take in the first `num` messages that sweeps send, from both sides."""
        sides: list[Direction] = [] if self._stage.is_first else ["forward"]
        sides += [] if self._stage.is_last else ["adjoint"]
        for side in sides:
            while self._collected[side] < num:
                number = self._collected[side]
                message = yield Receive(side, self._first_visit + number, waits=waits)
                if message is None:
                    break
                self._collected[side] += 1
                micro = number % self._num_micro
                if side == "forward":
                    # In one process it comes from the device; what is kept is on the CPU.
                    self._move_lambda(micro, unpack(message).to("cpu"))
                else:
                    self._store.put("adjoint", micro, message)

    def _move_lambda(self, micro: int, change: Tensor) -> None:
        self._store.put("lambda", micro, (self._get("lambda", micro) + change,))

    def _get(self, name: str, micro: int) -> Tensor:
        return self._store.get(name, micro)[0]

    def _load(self, name: str, micro: int) -> Message:
        """Return what is kept, where the stage computes."""
        return tuple(part.to(self._stage.device) for part in self._store.get(name, micro))

    def _adjoint(self, message: Message) -> Tensor:
        """Return p of an adjoint's message, its scale taken out."""
        return unpack(message) * (1.0 / self._scale)


@contextlib.contextmanager
def unmoved_buffers(module: nn.Module) -> Iterator[None]:
    """Put the buffers, such as batch norm's running statistics, back as they were."""
    before = [buffer.clone() for buffer in module.buffers()]
    yield
    for buffer, saved in zip(module.buffers(), before, strict=True):
        buffer.copy_(saved)
