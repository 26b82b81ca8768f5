"""Our torchvision networks against torchvision's own: names, shapes, numbers, both ways."""

import pytest
import torch
import torch.nn.functional as F
from torchvision.models import get_model, get_model_weights

from laminar.config import Config
from laminar.config.architecture import TORCHVISION
from laminar.planning import make_plan
from laminar.problem import Problem

IMAGE = (3, 40, 40)


def our_plan(name, num_classes=1000, image=IMAGE, num_stages=4, **changes):
    config = Config.model_validate(
        {
            "model": {"name": name},
            "num_stages": num_stages,
            "filters": {"pool": 1, "cast": "fp32"},
            "epochs": 1,
            **changes,
        }
    )
    return make_plan(config, Problem(image, num_classes, 640, 10))


@pytest.mark.parametrize("name", TORCHVISION)
def test_names_shapes_and_documented_parameters(name):
    with torch.device("meta"):
        theirs = get_model(name).state_dict()
    plan = our_plan(name, image=(3, 32, 32))
    module = plan.build_stage_module(0, plan.bounds[-1], device="meta")
    ours = dict(module.public_tensors())
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}
    assert list(ours) == list(theirs)
    documented = get_model_weights(name).DEFAULT.meta["num_params"]
    assert sum(p.numel() for p in module.parameters()) == documented


def randomised(network):
    """Return a state without symmetries: running statistics and norms are none of 0 and 1."""
    generator = torch.Generator().manual_seed(3)
    return {
        n: t + 0.1 * torch.rand(t.shape, generator=generator) if t.dim() == 1 else t
        for n, t in network.state_dict().items()
    }


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2"])
def test_the_same_weights_give_the_same_bits(name):
    """Both ways, evaluating and training, with cuts but without filters."""
    theirs = get_model(name)
    state = randomised(theirs)
    theirs.load_state_dict(state)
    plan = our_plan(name)
    module = plan.build_stage_module(0, plan.bounds[-1])
    ours = dict(module.public_tensors())
    with torch.no_grad():
        for key, tensor in ours.items():
            tensor.copy_(state[key])
    x = torch.rand(2, *IMAGE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        a, b = module.eval()(x), theirs.eval()(x)
    assert a.isfinite().all()
    assert torch.equal(a, b)
    y = torch.tensor([3, 900])
    losses = [F.cross_entropy(network.train()(x), y) for network in (module, theirs)]
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    for key, parameter in theirs.named_parameters():
        assert torch.equal(ours[key].grad, parameter.grad), key
    # Statistics have moved, alike; and torchvision takes what ours is called.
    theirs.load_state_dict({n: t.detach() for n, t in ours.items()}, strict=True)
    assert not torch.equal(ours["bn1.running_mean"], state["bn1.running_mean"])
