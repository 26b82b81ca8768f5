"""What happens to a tensor at a cut: D pools, a cast packs, U upsamples; and their adjoints.

The sender computes `C(x) = cast(D(x))`, the receiver `U(lambda)`. Backwards the receiver sends
`cast(U^T g)` and the sender applies `D^T`. Casts pass gradients straight through. Shapes are
[B, C, H, W]; a factor that does not divide H or W leaves a smaller last window, averaged over its
true count, and the upsampled tensor is cropped to the original size. What goes in and what comes
out is fp32 whatever the stages compute in.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Cast = Literal["fp32", "fp16", "bf16", "int8"]
Message = tuple[Tensor, ...]
"""What crosses a cut: one tensor, or for int8 the values and their scales. The bits of a bf16 value
travel as an int16, for numpy has no bf16."""

_FP16_MAX = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class Filter:
    """The filter of one boundary."""

    pool: int = 1
    cast: Cast = "fp32"
    parallel_only: bool = False
    """Whether the correction phase and evaluation do without it."""

    def during(self, phase: str) -> Filter:
        """Return what acts in a phase (parallel, correction, evaluation): this or nothing."""
        return self if phase == "parallel" or not self.parallel_only else Filter()

    @property
    def is_identity(self) -> bool:
        """Whether a tensor crosses it unchanged."""
        return self.pool == 1 and self.cast == "fp32"

    def encode(self, x: Tensor) -> Message:
        """Return C(x) = cast(D(x)), what the sender puts on the wire."""
        return pack(downsample(x, self.pool), self.cast)

    def decode(self, message: Message, size: tuple[int, int]) -> Tensor:
        """Return U(lambda) at the original height and width, in fp32."""
        return upsample(unpack(message), self.pool, size)

    def sample_bytes(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of C(x) for one sample, scales of int8 included; adjoints have as many.

        Args:
            shape: Of x, without the batch.
        """
        return sum(part.nbytes for part in self.encode(torch.zeros(1, *shape)))

    def encode_adjoint(self, g: Tensor, scale: float) -> Message:
        """Return cast(scale * U^T g), what the receiver sends back.

        Args:
            g: Gradient with respect to U(lambda), [B, C, H, W].
            scale: Power of two that lifts batch-mean gradients into the range of fp16.
        """
        return pack(upsample_adjoint(g, self.pool) * scale, self.cast)

    def decode_adjoint(self, message: Message, scale: float, size: tuple[int, int]) -> Tensor:
        """Return D^T of the adjoint that came, its scale taken out, at the sender's size."""
        return downsample_adjoint(unpack(message) * (1.0 / scale), self.pool, size)


class FilterBoundary(nn.Module):
    """A filter at a boundary inside a stage: the same function, and gradient, as at a cut.

    One that acts in the parallel phase only does not until `enter` says so.
    """

    def __init__(self, filter_: Filter, adjoint_scale: float) -> None:
        super().__init__()
        self.filter, self.adjoint_scale = filter_, adjoint_scale
        self.enter("evaluation")

    def enter(self, phase: str) -> None:
        """Act as in this phase from now on."""
        self.active = self.filter.during(phase)

    def forward(self, x: Tensor) -> Tensor:
        """Return U(C(x)) in fp32, of the shape and, in training, the memory format of `x`.

        In plain operations where nothing is trained, so that it can be exported.
        """
        x = x.float()
        if not torch.is_grad_enabled():
            return self.active.decode(self.active.encode(x), spatial_size(x))
        out: Tensor = _Boundary.apply(x, self.active, self.adjoint_scale)
        return out


class _Boundary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, filter_: Filter, scale: float) -> Tensor:
        ctx.filter, ctx.scale, ctx.size = filter_, scale, spatial_size(x)
        out = torch.empty_like(x)  # of the same memory format
        out.copy_(filter_.decode(filter_.encode(x), ctx.size))
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        message = ctx.filter.encode_adjoint(g, ctx.scale)
        return ctx.filter.decode_adjoint(message, ctx.scale, ctx.size), None, None


def spatial_size(x: Tensor) -> tuple[int, int]:
    """Return (H, W) of an [B, C, H, W] tensor."""
    return x.shape[-2], x.shape[-1]


def adjoint_scale(batch_size: int) -> float:
    """Return the smallest power of two >= the batch size.

    Adjoints are gradients of the batch mean, about 1/B of a sample's own; multiplying by a power
    of two is exact, and fp16 no longer underflows.
    """
    return float(1 << max(0, batch_size - 1).bit_length())


def downsample(x: Tensor, pool: int) -> Tensor:
    """Return D(x): the mean over pool x pool windows."""
    return x if pool == 1 else _window_sums(x, pool) * _inverse_counts(x, spatial_size(x), pool)


def upsample(z: Tensor, pool: int, size: tuple[int, int]) -> Tensor:
    """Return U(z): nearest neighbour by the factor, cropped to `size` = (H, W)."""
    if pool == 1:
        return z
    if torch.compiler.is_exporting():  # the same values, as one operation of the exported graph
        return F.interpolate(z, scale_factor=pool, mode="nearest")[..., : size[0], : size[1]]
    # One strided copy per place in a window: six times faster than torch's interpolate here.
    out = z.new_empty(*z.shape[:-2], *size)
    for row in range(pool):
        for column in range(pool):
            place = out[..., row::pool, column::pool]
            place.copy_(z[..., : place.shape[-2], : place.shape[-1]])
    return out


def upsample_adjoint(g: Tensor, pool: int) -> Tensor:
    """Return U^T g: the sum over pool x pool windows."""
    return g if pool == 1 else _window_sums(g, pool)


def downsample_adjoint(g: Tensor, pool: int, size: tuple[int, int]) -> Tensor:
    """Return D^T g: each value shared equally among the pixels of its window."""
    return g if pool == 1 else upsample(g * _inverse_counts(g, size, pool), pool, size)


def _window_sums(x: Tensor, pool: int) -> Tensor:
    """Sum pool x pool windows; the last ones may be smaller."""
    bottom, right = (-x.shape[-2]) % pool, (-x.shape[-1]) % pool
    if bottom or right:
        x = F.pad(x, (0, right, 0, bottom))
    # Adding strided slices is ten times faster than torch's average pooling here.
    rows = functools.reduce(torch.add, (x[..., i::pool, :] for i in range(pool)))
    return functools.reduce(torch.add, (rows[..., i::pool] for i in range(pool)))


def _inverse_counts(like: Tensor, size: tuple[int, int], pool: int) -> Tensor | float:
    """Return one over the number of pixels in each window of an image of this size."""
    if size[0] % pool == 0 and size[1] % pool == 0:
        return 1.0 / (pool * pool)
    rows, columns = (
        (length - torch.arange(0, length, pool, device=like.device)).clamp(max=pool).to(like.dtype)
        for length in size
    )
    return 1.0 / (rows[:, None] * columns[None, :])


def pack(z: Tensor, cast: Cast) -> Message:
    """Cast fp32 values for the wire.

    fp16 saturates instead of overflowing; bf16 has the range of fp32 and rounds to 8 bits, to the
    nearest, ties to even. int8 has one scale per sample and channel, of [B, F] per sample, the
    largest magnitude over 127, so that a sample's values never depend on its batch.
    """
    if cast == "fp32":
        return (z.contiguous(),)
    if cast == "fp16":
        return (z.clamp(-_FP16_MAX, _FP16_MAX).to(torch.float16).contiguous(),)
    if cast == "bf16":
        rounded = z.to(torch.bfloat16).contiguous()
        # numpy has no bf16, so that it travels as int16; exported graphs know bf16 but no views.
        return (rounded if torch.compiler.is_exporting() else rounded.view(torch.int16),)
    largest = z.abs().amax(dim=tuple(range(min(2, z.dim() - 1), z.dim())), keepdim=True)
    # Not "where largest > 0": a NaN must arrive as one, or a dead network would look alive.
    scale = torch.where(largest == 0, torch.ones_like(largest), largest / 127.0)
    return ((z / scale).round().clamp(-127, 127).to(torch.int8).contiguous(), scale.contiguous())


def unpack(message: Message) -> Tensor:
    """Undo `pack` up to rounding; fp32, aliases an fp32 message."""
    values = message[0]
    if values.dtype == torch.int16:
        values = values.view(torch.bfloat16)
    values = values.to(torch.float32)
    return values * message[1] if len(message) == 2 else values
