"""What is measured of a cut."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CutProbe:
    """How far a cut is from its constraint lambda = C F(u; W), measured on one micro-batch.

    With the forward's own weights the streamed phase never forms lambda = x - p/rho, so what can
    be measured is its parts. All are Euclidean norms over the micro-batch, as fractions.
    """

    violation: float
    """|x - lambda| / |x|: lambda is what the next stage worked on, x what this stage would send
    for the same input at the weights that the gradient is applied to. Zero in the correction
    phase; in the parallel phase what lateness leaves after look-ahead, and with the stored feed
    what the first sweep starts from."""
    filter_error: float
    """|y - U C y| / |y| of the unfiltered output y: what pooling and casting lose."""
    adjoint_ratio: float
    """|p| / |y|, p the gradient of a sample's own loss with respect to y. A stationary point of
    the penalty method with rho = 1 is that far from the constraint."""
