"""What the engine is compared with: plain processes that train, and wait between blocks.

`serial` is ordinary backprop. `slice` is one of the two processes of the two-process ideal: it
trains its own blocks on tensors that it already holds, so nothing is ever exchanged or awaited.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from typing import Any

Steps = Callable[[int], None]


class Peer:
    """A process of its own that runs a block of steps whenever it is told to.

    Args:
        make: One of the functions below; called in the new process, returns what runs n steps.
        args: Its arguments.
    """

    def __init__(self, make: Callable[..., Steps], *args: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, args), daemon=True)
        self._process.start()

    def start(self, num_steps: int) -> None:
        """Begin a block."""
        self._pipe.send(num_steps)

    def seconds(self) -> float:
        """Wait for the block to end; return how long it took by the peer's own clock."""
        return float(self._pipe.recv())

    def close(self) -> None:
        """End the process."""
        self._pipe.send(None)
        self._process.join(30)


def run_together(peers: list[Peer], num_steps: int) -> float:
    """Run one block on all peers at once; return the seconds of the slowest."""
    for peer in peers:
        peer.start(num_steps)
    return max(peer.seconds() for peer in peers)


def _serve(pipe: Any, make: Callable[..., Steps], args: tuple[Any, ...]) -> None:
    run = make(*args)
    while (num_steps := pipe.recv()) is not None:
        started = time.perf_counter()
        run(num_steps)
        pipe.send(time.perf_counter() - started)


def serial(tree: dict[str, Any], num_threads: int) -> Steps:
    """Augment, forward, backward and update of the whole network, as anybody would write it."""
    import torch

    plan, inputs, labels = _open(tree, num_threads)
    network = plan.build_stage_module(0, plan.bounds[-1]).train()
    optimizer = _optimizer(plan, network)

    def run(num_steps: int) -> None:
        for step in range(num_steps):
            batch = step % plan.batches_per_epoch
            loss = plan.loss.train(network(inputs.train(0, batch)), labels.train(0, batch))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    assert torch.get_num_threads() == num_threads
    return run


def first_slice(tree: dict[str, Any], cut: int) -> Steps:
    """Augment, forward, backward from a gradient that is already there, update."""
    import torch

    plan, inputs, _ = _open(tree, 1)
    module = plan.build_stage_module(0, cut).train()
    optimizer = _optimizer(plan, module)
    gradient = torch.randn(plan.config.batch_size, *plan.shapes[cut]) * 1e-4

    def run(num_steps: int) -> None:
        for step in range(num_steps):
            out = module(inputs.train(0, step % plan.batches_per_epoch))
            optimizer.zero_grad()
            out.backward(gradient)
            optimizer.step()

    return run


def last_slice(tree: dict[str, Any], cut: int) -> Steps:
    """Forward from an input that is already there, backward to it and to the weights, update."""
    import torch

    plan, _, labels = _open(tree, 1)
    module = plan.build_stage_module(cut, plan.bounds[-1]).train()
    optimizer = _optimizer(plan, module)
    x = torch.rand(plan.config.batch_size, *plan.shapes[cut]).requires_grad_()

    def run(num_steps: int) -> None:
        for step in range(num_steps):
            loss = plan.loss.train(module(x), labels.train(0, step % plan.batches_per_epoch))
            optimizer.zero_grad()
            x.grad = None
            loss.backward()
            optimizer.step()

    return run


def _open(tree: dict[str, Any], num_threads: int) -> tuple[Any, Any, Any]:
    import torch

    from laminar.allocator import keep_freed_memory
    from laminar.config import Config
    from laminar.data import describe, open_inputs, open_labels
    from laminar.planning import make_plan

    torch.set_num_threads(num_threads)
    keep_freed_memory()
    config = Config.model_validate(tree | {"num_stages": 1, "cuts": None, "filters": []})
    return make_plan(config, describe(config.data)), open_inputs(config), open_labels(config)


def _optimizer(plan: Any, module: Any) -> Any:
    from benchmarks.serial import torch_optimizer

    return torch_optimizer(module.parameters(), plan.config.optimizer)
