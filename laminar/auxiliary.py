"""Small networks beside the stages, which decouple them; neither evaluated nor exported.

Decoupled greedy learning (Belilovsky, Eickenberg, Oyallon 2020, arXiv 1901.08164) gives each stage
but the last a classifier of its own, and the stage and its classifier minimise the loss of that.

Auxiliary-variable networks (Sun et al. 2021, arXiv 2112.05387) give each stage but the first a
network that makes its input, the auxiliary variable lambda, of the images themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from laminar.blocks import Block, BlockSequence, block_seed
from laminar.learner import Learner
from laminar.plan import Plan
from laminar.precision import autocast, place, place_input

_FIRST_SEED = 1 << 16
"""Seeds by boundary; those of blocks are below."""

RHO = 1.0
"""Penalty coefficient of a sample's own auxiliary variable."""

_NUM_CONVOLUTIONS, _NUM_LINEAR = 3, 3


class Classifier(nn.Module):
    """MLP-SR-aux, the small classifier of decoupled greedy learning (its section 4).

    Pooled to a quarter of height and width, three 1x1 convolutions with batch norm, pooled to 2x2,
    three hidden linear layers with batch norm, and logits. Of what is no image, only the last part.

    Args:
        shape: Of a sample that it gets, [C, H, W] or [F].
        num_classes: Logits.
    """

    def __init__(self, shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = shape[0]
        if len(shape) == 3:
            layers.append(nn.AdaptiveAvgPool2d(tuple(math.ceil(n / 4) for n in shape[1:])))
            for _ in range(_NUM_CONVOLUTIONS):
                layers += [nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            layers += [nn.AdaptiveAvgPool2d(2), nn.Flatten()]
            width *= 4
        for _ in range(_NUM_LINEAR):
            layers += [nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Map a stage's output [b, *shape] to logits [b, classes]."""
        out: Tensor = self.layers(x)
        return out


class AuxNet(nn.Module):
    """A network of low capacity that makes a stage's input of the images.

    3x3 convolutions with batch norm, as wide as the input that is wanted: one at full size, one for
    each halving, and a last one without norm or activation. Deviation: the architecture is ours.
    Batch norm has no running statistics, for this is never evaluated.

    Args:
        image_shape: [C, H, W].
        shape: What is wanted, [c, h, w], with h <= H.
    """

    def __init__(self, image_shape: tuple[int, ...], shape: tuple[int, ...]) -> None:
        super().__init__()
        (channels, size, _), width = image_shape, shape[0]
        layers: list[nn.Module] = []
        stride = 1
        while True:
            layers += [
                nn.Conv2d(channels, width, 3, stride, 1, bias=False),
                nn.BatchNorm2d(width, track_running_stats=False),
                nn.ReLU(),
            ]
            channels, stride = width, 2
            size = size if len(layers) == 3 else -(-size // 2)
            if size == 1 or -(-size // 2) < shape[1]:
                break
        layers += [nn.AdaptiveAvgPool2d(shape[1:]), nn.Conv2d(width, width, 3, 1, 1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Map images [b, *image_shape] to auxiliary variables [b, *shape]."""
        out: Tensor = self.layers(images)
        return out


def build_classifier(plan: Plan, boundary: int) -> BlockSequence:
    """Return the classifier of the stage that ends before a block, freshly initialised."""
    shape, num_outputs = plan.shapes[boundary], plan.shapes[-1][0]
    return _build(plan, boundary, "auxiliary", lambda: Classifier(shape, num_outputs))


def build_auxnet(plan: Plan, boundary: int) -> BlockSequence:
    """Return the network that makes the input of the stage that begins with a block, fresh.

    What it makes is what would cross the cut, downsampled by the filter there.
    """
    channels, *size = plan.shapes[boundary]
    pool = plan.filters[boundary].pool
    shape = (channels, *(-(-n // pool) for n in size))
    return _build(plan, boundary, "auxnet", lambda: AuxNet(plan.problem.image_shape, shape))


def _build(plan: Plan, boundary: int, name: str, make: Callable[[], nn.Module]) -> BlockSequence:
    """Return a network whose weights and names depend on the boundary only, not on the cuts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(block_seed(plan.config.seed, _FIRST_SEED + boundary))
        block = Block(f"{name}.{boundary}", make())
    return BlockSequence([block], first=boundary, filters={}, adjoint_scale=1.0)


class Auxiliary:
    """Such a network with its weights' learner, on a stage's device.

    Args:
        plan: The resolved run.
        module: The network.
        device: Where it computes.
    """

    def __init__(self, plan: Plan, module: BlockSequence, device: torch.device) -> None:
        self._plan, self._precision, self._device = plan, plan.config.precision, device
        self._module = place(module.train(), self._precision, device)
        self.learner = Learner(plan, self._module)
        self._gradients: list[Tensor] | None = None

    def update(self, batch: int) -> None:
        """Apply what the batch's micro-batches have added up, at the batch's learning rate."""
        assert self._gradients is not None
        self.learner.update(self._gradients, batch)
        self._gradients = None

    def discard(self) -> None:
        """Drop a batch's partial gradient."""
        self._gradients = None

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what a checkpoint has of it; one at a new boundary stays fresh."""
        if all(f"model.{name}" in tensors for name, _ in self._module.public_tensors()):
            self.learner.load_state(tensors)

    def _call(self, x: Tensor) -> Tensor:
        with autocast(self._precision, self._device):
            named = dict(zip(self.learner.keys, self.learner.parameters, strict=True))
            x = place_input(x, self._precision, self._device)
            out: Tensor = functional_call(self._module, named, (x,))
        return out.float()

    def _add(self, gradients: Sequence[Tensor]) -> None:
        if self._gradients is None:
            self._gradients = list(gradients)
        else:
            pairs = zip(self._gradients, gradients, strict=True)
            self._gradients = [total + gradient for total, gradient in pairs]


class LocalLoss(Auxiliary):
    """A stage's own classifier: an answer in place of the next stage's."""

    def adjoint(self, out: Tensor, labels: Tensor, num_micro: int) -> Tensor:
        """Differentiate the local loss, and keep what that says of the classifier's own weights.

        Args:
            out: The stage's output, detached, [b, *shape].
            labels: As `Stage.forward`.
            num_micro: Micro-batches per update, M.

        Returns:
            The gradient of the loss over M with respect to `out`, fp32.
        """
        x = out.detach().requires_grad_()
        loss = self._plan.loss.train(self._call(x), labels.to(self._device)) / num_micro
        p, *gradients = torch.autograd.grad(loss, [x, *self.learner.parameters])
        self._add(gradients)
        return p


class InputNetwork(Auxiliary):
    """What makes a stage's input, and is fitted to what the method of multipliers makes of it."""

    @torch.no_grad()
    def make_input(self, images: Tensor) -> Tensor:
        """Return the auxiliary variable lambda of these images, fp32, detached."""
        return self._call(images)

    def fit(self, images: Tensor, sent: Tensor, p: Tensor, num_micro: int) -> None:
        """Differentiate the mean square of G(u) - lambda_new, and keep the gradient.

        lambda_new = x - p / rho is the penalty method's update with eta = 1/rho.

        Args:
            images: u, [b, C, H, W].
            sent: x, what the stage before sent of them, unpacked.
            p: Gradient of a sample's own loss with respect to lambda.
            num_micro: Micro-batches per update, M.
        """
        target = sent.to(self._device) - p / RHO
        loss = (self._call(images) - target).square().mean() / num_micro
        self._add(torch.autograd.grad(loss, self.learner.parameters))


def make_auxiliary(plan: Plan, stage: int, device: torch.device) -> Auxiliary | None:
    """Return what a stage has beside it with the method of this plan."""
    method, bounds = plan.config.method, plan.bounds
    if method == "greedy" and stage < plan.config.num_stages - 1:
        return LocalLoss(plan, build_classifier(plan, bounds[stage + 1]), device)
    if method == "auxnet" and stage > 0:
        return InputNetwork(plan, build_auxnet(plan, bounds[stage]), device)
    return None
