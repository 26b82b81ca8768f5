"""The parallel phase with inputs that each stage makes itself: auxiliary-variable networks."""

from __future__ import annotations

from torch import Tensor

from laminar.auxiliary import InputNetwork
from laminar.engine import BatchDone, Feed, Inputs, Labels, Program, Receive, Send
from laminar.filters import Message, adjoint_scale, unpack
from laminar.plan import Segment
from laminar.schedule import Backward, Forward, unlocked_actions, updates_until_own
from laminar.stage import Stage


def auxnet_phase(
    stage: Stage, segment: Segment, inputs: Inputs | None, labels: Labels | None
) -> Program:
    """Train a segment with every stage at the same micro-batch (Sun et al. 2021, 2112.05387).

    No forward waits: stage k > 0 works on lambda = G_k(u), which its own small network makes of
    the images u. Its adjoint p goes back as in the streamed phase, (K-1-k)d ticks after the
    forward, and is what the local loss rho/2 |x - lambda_new|^2 of the stage before gives at x,
    for lambda_new = x - p/rho. The outputs x that cross a cut only say what G_k shall become.

    Deviation: which lambda the local loss has, when each network is fitted, and by what, is ours
    (docs/method.md).

    Args:
        stage: The stage.
        segment: What to train.
        inputs: Images, at every stage.
        labels: Labels, at the last stage.
    """
    stage.enter("parallel")
    p = stage.plan.config.parallel
    first = segment.epoch * stage.plan.batches_per_epoch + segment.first_batch
    feed = Feed(stage, segment, inputs, labels, p.micro_batches)
    images: dict[int, Tensor] = {}
    adjoints: dict[int, Message] = {}
    applied = 0
    num_micro = segment.num_batches * p.micro_batches
    for action in unlocked_actions(
        stage.index, stage.num_stages, num_micro, p.hop_delay, p.first_half
    ):
        micro = action.micro
        is_last_of_batch = (micro + 1) % p.micro_batches == 0
        if isinstance(action, Forward):
            images[micro] = _images(feed, micro)
            lr = stage.plan.learning_rate(first + applied)
            yield from _forward(stage, micro, images[micro], feed, lr)
        elif isinstance(action, Backward):
            reply = stage.backward(
                micro, None if stage.is_last else (yield Receive("adjoint", micro))
            )
            if reply is not None:
                adjoints[micro] = reply
                yield Send("adjoint", micro, reply)
            else:
                del images[micro]
            if is_last_of_batch:
                stage.update(first + applied)
                applied += 1
                yield BatchDone(applied)
        else:
            message = yield Receive("forward", micro)
            assert message is not None
            _fit(stage, images.pop(micro), message, adjoints.pop(micro))
            if is_last_of_batch and stage.auxiliary is not None:
                stage.auxiliary.update(first + micro // p.micro_batches)


def _images(feed: Feed, micro: int) -> Tensor:
    images = feed.images[micro]
    assert images is not None
    return images


def _forward(stage: Stage, micro: int, images: Tensor, feed: Feed, lr: float) -> Program:
    p, network = stage.plan.config.parallel, stage.auxiliary
    x: Tensor | Message = images
    if isinstance(network, InputNetwork):
        x = (network.make_input(images),)
    samples = feed.samples(micro)
    if samples is not None:
        stage.module.set_samples(samples)
    s = updates_until_own(
        micro, stage.index, stage.num_stages, p.micro_batches, p.hop_delay, p.first_half,
        is_unlocked=True,
    )  # fmt: skip
    out = stage.forward(micro, x, feed.targets[micro], num_micro=feed.num_micro, s=s, lr=lr)
    if out is not None:
        yield Send("forward", micro, out)


def _fit(stage: Stage, images: Tensor, sent: Message, adjoint: Message) -> None:
    assert isinstance(stage.auxiliary, InputNetwork)
    # Of a sample's own loss: the batch's mean has it over B.
    size = stage.plan.config.batch_size
    p = unpack(adjoint) * (size / adjoint_scale(size))
    stage.auxiliary.fit(images, unpack(sent), p, stage.plan.config.parallel.micro_batches)
