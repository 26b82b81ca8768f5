"""What a user may get wrong in Python code of their own: one error, before an actor starts."""

from functools import partial

import pytest
import torch
from torch import nn

from laminar.checkpoint import list_checkpoints, read_manifest
from laminar.config import Config, ModelConfig
from laminar.errors import ConfigError, FactoryError
from laminar.evaluation import evaluate_run
from laminar.factories import Factories
from laminar.filters import pack, unpack
from tests.own import OWN, WIDTH, blocks, data, own_plan
from tests.tiny import tiny_plan, write_run


def with_block(make, at="body.1"):
    """The usual blocks, one of them replaced."""
    return {"blocks": lambda problem: {**blocks(problem), at: make}}


def with_data(change, splits=("train", "test")):
    """The usual data, changed."""

    def load(split):
        return change(*data(split)) if split in splits else data(split)

    return {"datasets": {split: partial(load, split) for split in ("train", "test")}}


class Bad(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.linear, self.function = nn.Linear(WIDTH, WIDTH), forward

    def forward(self, x):
        return self.function(self.linear, x)


class Tokens(nn.Module):
    """Rows of numbers of tokens, as floats."""

    def forward(self, x):
        return x.float()


def frozen():
    layer = nn.Linear(WIDTH, WIDTH)
    layer.weight.requires_grad_(False)
    return layer


def raising(*arguments):
    raise KeyError("no such thing\nsecond line")


SHARED = nn.Linear(WIDTH, WIDTH)
SHARING = {
    "blocks": lambda problem: {
        **blocks(problem), "body.0": lambda: SHARED, "body.2": lambda: nn.Sequential(SHARED)
    }
}  # fmt: skip
CLASH = {
    "blocks": lambda problem: {
        **blocks(problem),
        "body": lambda: nn.Sequential(nn.Linear(3, WIDTH)),
        "body.0": lambda: nn.Linear(WIDTH, 3),
    }
}

WRONG = {
    # blocks
    "blocks is no function": ({"blocks": {"stem": nn.Linear}}, "blocks must be a function"),
    "blocks fails": ({"blocks": raising}, "got KeyError: 'no such thing"),
    "no mapping": ({"blocks": lambda p: [nn.Linear(5, 3)]}, "must return the functions"),
    "no functions": ({"blocks": lambda p: {"stem": 3}}, "must return the functions"),
    "no blocks": ({"blocks": lambda p: {}}, "must return the functions"),
    "a block fails": (with_block(raising), "builds the block `body.1` must return it"),
    "no module": (with_block(lambda: torch.relu), "`body.1` must be a torch.nn.Module"),
    "another shape": (with_block(lambda: nn.Linear(7, 7)), "`body.1` must map a batch"),
    "no batch": (with_block(lambda: Bad(lambda f, x: f(x).mean(0))), "`body.1` must map a batch"),
    "two tensors": (with_block(lambda: Bad(lambda f, x: (f(x), x))), "got TypeError: it made"),
    "integers": (with_block(lambda: Bad(lambda f, x: f(x).long())), "torch.int64"),
    "in place": (with_block(lambda: nn.Sequential(nn.ReLU(True), nn.Linear(WIDTH, WIDTH))),
                 "without changing its input"),
    "torch's dropout": (with_block(lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout())),
                        "use laminar.dropout.SampleDropout"),
    "frozen": (with_block(frozen), "no frozen parameters"),
    "unused": (with_block(lambda: Bad(lambda f, x: x)), "linear.weight unused"),
    "input unused": (with_block(lambda: Bad(lambda f, x: f(torch.ones_like(x)))),
                     "its input unused"),
    "shared": (SHARING, "share no parameter with another block"),
    "the same name twice": (CLASH, "have names of its own"),
    "too few logits": (with_block(lambda: nn.Linear(WIDTH, 2), "head"), "one logit for each class"),
    "no logits": (with_block(lambda: nn.Unflatten(1, (2, 3)), "head"), "one logit for each class"),
    # data
    "no splits": ({"datasets": data}, "must hold a function for `train`"),
    "a split too few": ({"datasets": {"train": partial(data, "train")}}, "one for `test`"),
    "data, not functions": ({"datasets": {"train": data("train"), "test": data("test")}},
                            "must hold a function for `train`"),
    "data fails": (with_data(raising), r"datasets\['train'\] must return \(inputs, targets\)"),
    "no targets": (with_data(lambda x, y: x[:1]), "must return"),
    "lengths differ": (with_data(lambda x, y: (x, y[:-1]), ["test"]), "15 rows and 14 targets"),
    "no rows": (with_data(lambda x, y: (3, y)), "must be rows"),
    "targets of floats": (with_data(lambda x, y: (x, y + 0.5)), "the class of each row"),
    "targets of two columns": (with_data(lambda x, y: (x, x.astype(int))), "the class of each row"),
    "negative class": (with_data(lambda x, y: (x, y - 1)), "number the classes from 0"),
    "other test rows": (with_data(lambda x, y: (x[:, 1:], y), ["test"]), "the same shape and type"),
    # loss
    "loss is no function": ({"loss": "mse"}, "loss must be a function"),
    "loss fails": ({"loss": raising}, "loss must map logits"),
    "loss of each sample": ({"loss": lambda x, y: x.sum(1)}, "to a scalar tensor"),
    "loss is a number": ({"loss": lambda x, y: 0.5}, "to a scalar tensor"),
    "loss without a gradient": ({"loss": lambda x, y: x.detach().sum()}, "to a scalar tensor"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_one_error_before_anything_starts(name):
    own, words = WRONG[name]
    with pytest.raises(FactoryError, match=words) as caught:
        own_plan(own)
    assert "\n" not in str(caught.value)


TOKENS = with_block(lambda: nn.Sequential(Tokens(), nn.Linear(5, WIDTH)), "stem")
MORE_LOGITS = with_block(lambda: nn.Linear(WIDTH, 5), "head")


@pytest.mark.parametrize(
    ("own", "changes", "words"),
    [
        (with_block(nn.ReLU, "act"), {"cuts": [5]}, "parameters to train .got none in stage 1"),
        (
            {**with_data(lambda x, y: (x.astype(int), y)), **TOKENS},
            {"data": {"name": "custom", "mixup": 0.2}},
            "numbers, of which it makes means .got int64",
        ),
        (
            {**MORE_LOGITS, "loss": None},
            {"data": {"name": "custom", "mixup": 0.2}},
            "as many logits",
        ),
        ({**with_data(lambda x, y: (x, 0 * y)), "loss": None}, {}, "at least two classes .got 1"),
        ({}, {"correction": {"micro_batches": 8}}, "more than one value .* in body.0"),
    ],
)
def test_what_fits_the_rules_and_not_the_run(own, changes, words):
    with pytest.raises(ConfigError, match=words):
        own_plan(own, **changes)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", {"name": "resnet8"}),
        ("model", {"width": 8}),
        ("data", {"name": "synthetic"}),
        ("loss", {"label_smoothing": 0.1}),
    ],
)
def test_what_is_brought_must_not_be_configured_too(key, value):
    with pytest.raises(FactoryError, match=f"config.{key} must be left out"):
        own_plan(**{key: value})


@pytest.mark.parametrize("kind", ["uint8", "uint16", "uint32", "int8"])
def test_classes_of_any_integers(kind):
    assert own_plan(with_data(lambda x, y: (x, y.astype(kind)))).problem.num_classes == 3


def test_only_mixup_is_configured_for_own_data():
    with pytest.raises(ValueError, match=r"data.flip must be left out for data of your own"):
        own_plan(data={"name": "custom", "flip": True})


def test_rows_are_not_pooled():
    with pytest.raises(ConfigError, match=r"block 2 must not pool what is no image.*shape \[6\]"):
        own_plan(cuts=[2], filters={"pool": 2, "cast": "fp16"})


@pytest.mark.parametrize("name", ["blocks", "datasets", "loss"])
def test_a_run_needs_again_what_it_began_with(name, tmp_path):
    plan = own_plan()
    write_run(tmp_path, plan)
    given = {key: value for key, value in OWN.items() if key != name}
    with pytest.raises(FactoryError, match=f"a run with {name} of its own must be given them"):
        evaluate_run(tmp_path, **given)
    folder = list_checkpoints(tmp_path / "checkpoints")[-1]
    with pytest.raises(FactoryError, match="in Python, each time"):
        read_manifest(folder, Factories(**given))
    assert read_manifest(folder, Factories(**OWN)).plan == plan


def test_and_nothing_that_it_did_not(tmp_path):
    write_run(tmp_path, tiny_plan())
    with pytest.raises(FactoryError, match="blocks must be left out for a run that has none"):
        evaluate_run(tmp_path, blocks=blocks)


def test_weights_of_an_own_network():
    marked = Factories(blocks=blocks).mark(Config(model=ModelConfig(weights="w.pth")))
    assert marked.model == ModelConfig(name="custom", weights="w.pth")
    assert Factories(blocks=blocks).mark(marked) == marked


def test_int8_of_rows_has_one_scale_per_sample():
    x = torch.randn(4, 9) * torch.tensor([1.0, 10.0, 0.1, 0.0])[:, None]
    values, scale = pack(x, "int8")
    assert (values.shape, scale.shape) == ((4, 9), (4, 1))
    assert torch.equal(pack(x[1:2], "int8")[0], values[1:2])
    assert (unpack((values, scale)) - x).abs().max(1).values.le(scale[:, 0] / 2 + 1e-7).all()
