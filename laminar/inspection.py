"""Whether a user's blocks and loss can be trained by stages: found out before an actor starts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from laminar.blocks import Block, BlockSequence
from laminar.dropout import Samples
from laminar.errors import FactoryError
from laminar.factories import LossFunction, describe_error
from laminar.problem import Problem

_TORCHS_DROPOUT = (
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.AlphaDropout, nn.FeatureAlphaDropout),
)
_SAMPLES = Samples(0, 0, torch.arange(2))


def inspect_blocks(blocks: Sequence[Block], problem: Problem) -> None:
    """Run two samples of zeros through the blocks and back, each as if a cut stood before it.

    Args:
        blocks: The network, all of it; its statistics are no longer fresh afterwards.
        problem: The data.

    Raises:
        FactoryError: What a stage could not train: a block that fails, changes its input, has
            parameters that are frozen, unused or shared, or torch's own dropout; a last block that
            puts out no logits.
    """
    _check_modules(blocks)
    x = zeros(problem, 2)
    for index, block in enumerate(blocks):
        x = _inspect(block, index, x)
    if x.dim() != 2 or x.shape[1] < problem.num_classes:
        raise FactoryError(
            "the last block must put out one logit for each class",
            got=f"shape {list(x.shape)} for a batch of 2",
            expected=f"[2, {problem.num_classes}]",
            fix="end with a layer of as many outputs as there are classes",
        )


def inspect_loss(loss: LossFunction, num_classes: int, *, has_mixed_targets: bool) -> None:
    """Try a loss on two samples.

    Raises:
        FactoryError: It fails, or returns no scalar that can be differentiated.
    """
    logits = torch.zeros(2, num_classes, requires_grad=True)
    for is_mixed in {False, has_mixed_targets}:
        targets = torch.tensor([0, num_classes - 1])
        try:
            value = loss(logits, torch.eye(num_classes)[targets] if is_mixed else targets)
            if not isinstance(value, Tensor) or value.dim() or not value.requires_grad:
                raise TypeError(f"it returned {value!r}"[:80])
        except Exception as error:
            kind = "fp32 [b, num_classes]" if is_mixed else "int64 [b]"
            raise FactoryError(
                f"loss must map logits [b, num_classes] and targets, {kind}, to a scalar tensor",
                got=describe_error(error),
                fix="return the mean over the samples, as torch.nn.functional.cross_entropy does",
            ) from error


def zeros(problem: Problem, num: int) -> Tensor:
    """Return so many samples of zeros, in the shape and type of the data."""
    return torch.zeros(num, *problem.image_shape, dtype=getattr(torch, problem.dtype))


def _check_modules(blocks: Sequence[Block]) -> None:
    owners: dict[int, str] = {}
    names: set[str] = set()
    for block in blocks:
        if not isinstance(block.module, nn.Module):
            raise _unfit(block, "be a torch.nn.Module", type(block.module).__name__, "build one")
        for layer in block.module.modules():
            if isinstance(layer, _TORCHS_DROPOUT) and layer.p:
                raise _unfit(
                    block,
                    "not contain torch's dropout, whose masks depend on the cuts",
                    type(layer).__name__,
                    "use laminar.dropout.SampleDropout(p) instead",
                )
        for key, parameter in block.module.named_parameters():
            if not parameter.requires_grad:
                raise _unfit(block, "have no frozen parameters", key, "make it a buffer")
            if owners.setdefault(id(parameter), block.name) != block.name:
                raise _unfit(
                    block,
                    "share no parameter with another block",
                    f"{key}, also of `{owners[id(parameter)]}`",
                    "put both into one block, or give each its own",
                )
        for key in block.module.state_dict():
            if block.public_name(key) in names:
                raise _unfit(
                    block, "have names of its own", block.public_name(key), "rename the block"
                )
            names.add(block.public_name(key))


def _inspect(block: Block, index: int, x: Tensor) -> Tensor:
    """Return what the block makes of `x`, after a backward through it."""
    module = BlockSequence([block], first=index, filters={}, adjoint_scale=1.0)
    module.set_samples(_SAMPLES)
    x = x.detach().requires_grad_(index > 0)
    inputs = [*([x] if index else []), *module.parameters()]
    names = [*(["its input"] if index else []), *(name for name, _ in module.named_parameters())]
    try:
        out = module(x)
        if not isinstance(out, Tensor) or not out.is_floating_point() or len(out) != len(x):
            got = f"{tuple(out.shape)}, {out.dtype}" if isinstance(out, Tensor) else type(out)
            raise TypeError(f"it made {got} of {tuple(x.shape)}")
        grads = torch.autograd.grad(out.sum(), inputs, allow_unused=True) if inputs else ()
    except Exception as error:
        raise _unfit(
            block,
            "map a batch [B, ...] to a tensor [B, ...] of floats, without changing its input",
            describe_error(error),
            "mend it; in-place layers must not come first",
        ) from error
    for name, grad in zip(names, grads, strict=True):
        if grad is None:
            raise _unfit(
                block, "use all of its parameters and its input", f"{name} unused", "remove it"
            )
    return out


def _unfit(block: Block, rule: str, got: str, fix: str) -> FactoryError:
    return FactoryError(f"the block `{block.name}` must {rule}", got=got, fix=fix)
